"""`askd promote`: a bundle becomes what is served under a name, if its scores beat those of what is served now."""

from dataclasses import replace
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.evaluate.hypotheses import Hypothesis, read_hypotheses
from askd_ray.evaluate.scores import DomainScores, score
from askd_ray.evaluate.significance import RateDifference
from askd_ray.files import local_path
from askd_ray.models.bundle import HYPOTHESES_FILE, check_hashes, read_bundle
from askd_ray.progress import console
from askd_ray.serve.engine import Hardware
from askd_ray.serve.registry import Registry
from askd_ray.serve.swap import load_verified

_CANDIDATE, _CURRENT = "candidate", "current"


def promote(bundle: Path, registry: Registry, name: str, force: bool = False) -> Path:
    """Verify a bundle, compare it with what is served under ``name``, and have it served; returns its place.

    What runs from this registry takes it up within seconds. Without a bundle under that name nothing is compared;
    with ``force`` neither.

    Raises :class:`AskdError` for a bundle that is damaged or hears otherwise than when it was exported, and for one
    that does not beat the current one: the registry is left as it is.
    """
    bundle = local_path(bundle)
    check_hashes(bundle)
    version = read_bundle(bundle).version
    current = registry.current(name)
    if current is not None and current.name == version:
        console.print(f"{name}: version {version} is what is served already")
        return current
    load_verified(bundle, name, Hardware())
    if current is not None and not force:
        check_gate(bundle, current)
    place = registry.add(name, bundle)
    registry.promote(name, version)
    console.print(f"{name}: version {version} is served from now on ({registry.folder})")
    return place


def check_gate(candidate: Path, current: Path) -> None:
    """Compare two bundles on the utterances that both were evaluated on: a paired bootstrap, in domain and out of it.

    The candidate passes where its macro WER is lower, the whole 95 % interval of the difference being below 0, in one
    of the two, and it is not surely higher in the other.

    Raises :class:`AskdError` where it does not pass, and where there is nothing to compare.
    """
    places = _differences(candidate, current)
    told = ", ".join(
        f"{place.replace('_', ' ')} {100 * d['value']:+.2f} points ({100 * d['low']:+.2f} to {100 * d['high']:+.2f})"
        for place, d in places.items()
    )
    console.print(f"WER against what is served: {told}")
    if not any(d["high"] < 0.0 for d in places.values()) or any(d["low"] > 0.0 for d in places.values()):
        raise AskdError(
            f"promote: {candidate} does not beat what is served, WER {told}: the interval must lie below 0 in one "
            "domain and above it in none; --force promotes it all the same"
        )


def _differences(candidate: Path, current: Path) -> dict[str, RateDifference]:
    said = {name: _said(bundle) for name, bundle in ((_CANDIDATE, candidate), (_CURRENT, current))}
    shared = said[_CANDIDATE].keys() & said[_CURRENT].keys()
    if not shared:
        raise AskdError(
            f"promote: {candidate} and {current} were evaluated on no utterance in common: evaluate both on the same "
            "sets (askd evaluate), or use --force"
        )
    rows = [replace(said[name][key], model=name) for name in said for key in sorted(shared)]
    scores = score(rows, _CURRENT)
    domains: dict[str, DomainScores | None] = {p: scores[p] for p in ("in_domain", "out_of_domain")}
    return {p: d["macro"]["against_baseline"][_CANDIDATE] for p, d in domains.items() if d is not None}


def _said(bundle: Path) -> dict[tuple[str, str, str], Hypothesis]:
    """Return what a bundle's evaluation heard, by set, utterance and what was said in it."""
    if not (bundle / HYPOTHESES_FILE).is_file():
        raise AskdError(f"promote: {bundle} was not evaluated: run `askd evaluate` on it, or use --force")
    return {(row.set, row.id, row.reference): row for row in read_hypotheses(bundle / HYPOTHESES_FILE)}
