"""The result of an evaluation of made-up texts, and a bundle's description: what cards and reports are made of."""

from pathlib import Path
from typing import Any

from askd_ray.config.objective import Objective
from askd_ray.evaluation.hypotheses import CLEAN, Hypothesis
from askd_ray.evaluation.scores import score
from askd_ray.files import write_json
from askd_ray.models.bundle import BUNDLE_FILE, hashes

REFERENCES = ("red green blue", "black white", "paper stone river mountain tree")
TEXTS = {
    "student": ("red green blue", "black white", "paper stone river mountain three"),
    "teacher": ("red green blue", "block white", "paper stone river mountain"),
}


def hypotheses() -> list[Hypothesis]:
    """Return what student and teacher said of three clips."""
    return [
        Hypothesis(model, "test", True, CLEAN, f"u{i}", "ann", "en", 1.0 + i, reference, hypothesis)
        for model, texts in TEXTS.items()
        for i, (reference, hypothesis) in enumerate(zip(REFERENCES, texts, strict=True))
    ]


def evaluation() -> dict[str, Any]:
    """Return what `askd evaluate` records: the student has 1 error in 10 words, the teacher 2."""
    timed = {"rtfx": 54.6, "p50_ms": 23.0, "p95_ms": 90.0, "first_call_ms": 70.0, "memory_mb": 300}
    faster = {"value": 9.83, "low": 9.1, "high": 10.4}
    speed = {
        "clips": 3,
        "short_s": 5.0,
        "models": dict.fromkeys(TEXTS, timed),
        "speedup": {"student": {"all": faster}},
        "speedup_against": "teacher",
        "hardware": {"cpu": "a cpu", "cores": 2, "threads": 2},
    }
    return {**score(hypotheses(), "teacher"), "speed": speed, "left_out": {}}


def description_of_bundle(bundle: Path) -> None:
    """Describe the files of a folder as `askd export` does: a bundle that is not evaluated yet."""
    description = {
        "name": "small",
        "teacher": "wheel:tiny.en",
        "window": {"silence_s": 0.3},
        "languages": ["en"],
        "data": {"utterances": 4, "hours": 0.1, "domains": {"ivr": 4}, "licences": {"CC-BY-SA-3.0": 4}},
        "params_m": 37.8,
        "objective": Objective().model_dump(mode="json"),
        "epochs": 1,
        "scores": None,
        "versions": {},
    }
    write_json(bundle / BUNDLE_FILE, {**description, "sha256": hashes(bundle)})
