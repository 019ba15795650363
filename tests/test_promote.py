from dataclasses import replace
from pathlib import Path

import pytest
from serving import bundle_of

from askd_ray.errors import AskdError
from askd_ray.evaluation.hypotheses import CLEAN, STUDENT, Hypothesis, write_hypotheses
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, HYPOTHESES_FILE, hashes
from askd_ray.promote import promote
from askd_ray.serve.registry import Registry

WORDS = "one two three four five six seven eight nine ten".split()


def make_rows(n_wrong: int, in_domain: bool = True, n: int = 30, names: str = "u") -> list[Hypothesis]:
    """Return ``n`` utterances of ten words, in the first ``n_wrong`` of which two are wrong."""
    text = " ".join(WORDS)
    wrong = " ".join([*WORDS[:8], "nein", "zehn"])
    row = Hypothesis(STUDENT, "in" if in_domain else "out", in_domain, CLEAN, "", "", "en", 3.0, text, text)
    return [replace(row, id=f"{names}{i}", hypothesis=wrong if i < n_wrong else text) for i in range(n)]


def evaluated(folder: Path, weights: Path, rows: list[Hypothesis] | None) -> Path:
    bundle_of(folder, weights, folder.name.encode())
    if rows is not None:
        write_hypotheses(folder / HYPOTHESES_FILE, rows)
    write_json(folder / BUNDLE_FILE, {**read_json(folder / BUNDLE_FILE), "sha256": hashes(folder)})
    return folder


@pytest.mark.slow
def test_only_a_better_student_is_served(registry: Registry, tmp_path: Path, weights: Path):
    def bundle(name: str, rows: list[Hypothesis] | None) -> Path:
        return evaluated(tmp_path / name, weights, rows)

    first = promote(bundle("first", make_rows(20)), registry, "fast")
    assert registry.current("fast") == first
    refused = {
        "same": (make_rows(20), "does not beat"),
        "unsure": (make_rows(19), "does not beat"),
        "worse": (make_rows(25), "does not beat"),
        "strange": (make_rows(0, names="v"), "no utterance in common"),
        "unknown": (None, "was not evaluated"),
    }
    for name, (rows, why) in refused.items():
        with pytest.raises(AskdError, match=why):
            promote(bundle(name, rows), registry, "fast")
        assert registry.current("fast") == first
    better = promote(bundle("better", make_rows(2)), registry, "fast")
    assert registry.current("fast") == better
    forced = promote(tmp_path / "unknown", registry, "fast", force=True)
    assert registry.roll_back("fast") == better != forced


@pytest.mark.slow
def test_out_of_domain_loss_prevents_promotion(registry: Registry, tmp_path: Path, weights: Path):
    promote(evaluated(tmp_path / "old", weights, make_rows(20) + make_rows(5, False)), registry, "fast")
    with pytest.raises(AskdError, match="does not beat"):
        promote(evaluated(tmp_path / "narrow", weights, make_rows(2) + make_rows(25, False)), registry, "fast")
    promote(evaluated(tmp_path / "both", weights, make_rows(2) + make_rows(5, False)), registry, "fast")


@pytest.mark.slow
def test_damaged_bundle_is_refused(registry: Registry, tmp_path: Path, weights: Path):
    bundle = evaluated(tmp_path / "bad", weights, make_rows(0))
    (bundle / "ctranslate2-int8" / "config.json").write_text("{}")
    with pytest.raises(AskdError, match=r"config\.json is corrupt"):
        promote(bundle, registry, "fast", force=True)
    assert registry.names() == []
