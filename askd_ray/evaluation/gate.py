"""The gate before a student is served: is its WER lower than that of the served version?"""

from dataclasses import replace
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import RAW, SERVED, Hypothesis, read_hypotheses
from askd_ray.evaluation.scores import score_path
from askd_ray.evaluation.significance import verdict
from askd_ray.models.bundle import HYPOTHESES_FILE
from askd_ray.progress import console
from askd_ray.results.texts import difference
from askd_ray.results.wer import RateDifference, domains

_CANDIDATE, _CURRENT = "candidate", "current"


def check_gate(candidate: Path, current: Path) -> None:
    """Compare two bundles on the utterances of both evaluations: a paired bootstrap, in domain and out of domain.

    The candidate passes if the 95 % interval of its difference in macro WER is below 0 in at least one of the two, and
    above 0 in none.

    Raises :class:`AskdError` when the candidate does not pass, and when there is nothing to compare.
    """
    differences = _differences(candidate, current)
    summary = "; ".join(f"{place} {difference(of)}" for place, of in differences.items())
    console.print(f"WER difference to the served version: {summary}")
    verdicts = {verdict(of) for of in differences.values()}
    if "yes" not in verdicts or "no" in verdicts:
        raise AskdError(
            f"promote: {candidate} does not beat the served version, WER {summary}: the interval must be below 0 in "
            "one domain and above 0 in none; --force promotes it anyway"
        )


def _differences(candidate: Path, current: Path) -> dict[str, RateDifference]:
    by_model = {name: _hypotheses(bundle) for name, bundle in ((_CANDIDATE, candidate), (_CURRENT, current))}
    shared = by_model[_CANDIDATE].keys() & by_model[_CURRENT].keys()
    if not shared:
        raise AskdError(
            f"promote: the evaluations of {candidate} and {current} have no utterance in common: evaluate both on the "
            "same sets (askd evaluate), or use --force"
        )
    path = SERVED if any(key[0] == SERVED for key in shared) else RAW  # an earlier version had no served hypotheses
    keys = sorted(key for key in shared if key[0] == path)
    rows = [replace(by_model[name][key], model=name) for name in by_model for key in keys]
    scores = score_path(rows, _CURRENT)
    return {place: of["macro"]["against_baseline"][_CANDIDATE] for place, of in domains(scores).items()}


def _hypotheses(bundle: Path) -> dict[tuple[str, str, str, str], Hypothesis]:
    """Return the hypotheses of a bundle's evaluation, by decoding path, set, utterance id and reference."""
    if not (bundle / HYPOTHESES_FILE).is_file():
        raise AskdError(f"promote: {bundle} was not evaluated: run `askd evaluate` on it, or use --force")
    return {(row.path, row.set, row.id, row.reference): row for row in read_hypotheses(bundle / HYPOTHESES_FILE)}
