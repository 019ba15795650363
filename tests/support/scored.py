"""The result of an evaluation of made-up texts, and a bundle's description: what cards and reports are made of."""

from collections.abc import Iterable
from pathlib import Path

from askd_ray.config.objective import Objective
from askd_ray.evaluation.hypotheses import CLEAN, Hypothesis
from askd_ray.evaluation.scores import score
from askd_ray.files import write_json
from askd_ray.models.bundle import BUNDLE_FILE, hashes
from askd_ray.models.description import BundleDescription
from askd_ray.results.evaluation import Evaluation
from askd_ray.results.timing import Latency, ModelSpeed, Speed, Speedup

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


def evaluation() -> Evaluation:
    """Return what `askd evaluate` records: the student has 1 error in 10 words, the teacher 2."""
    faster: Speedup = {"value": 9.83, "low": 9.1, "high": 10.4}
    speed: Speed = {**made_up_speed(TEXTS), "speedup": {"student": {"all": faster}}}
    return {**score(hypotheses(), "teacher"), "speed": speed, "left_out": {}}


def made_up_speed(models: Iterable[str]) -> Speed:
    """Return a speed measurement in which all models are equally fast, without a speed-up."""
    latency: Latency = {"clips": 3, "p50_ms": 23.0, "p95_ms": 90.0, "p99_ms": 95.0}
    timed: ModelSpeed = {
        **latency,
        "threads": 2,
        "open_s": 0.5,
        "first_call_ms": 70.0,
        "memory_mb": 300,
        "rtfx": 54.6,
        "by_duration": [{"from_s": 0.0, "to_s": 2.0, **latency}],
        "throughput": {},
    }
    return {
        "clips": 3,
        "short_s": 5.0,
        "models": dict.fromkeys(models, timed),
        "speedup": {},
        "speedup_against": "teacher",
        "hardware": {"cpu": "a cpu", "cores": 2, "threads": 2, "device": "cpu"},
        "decoding": "greedy, int8",
        "versions": {"torch": "2"},
    }


def description_of_bundle(bundle: Path) -> None:
    """Describe the files of a folder as `askd export` does: a bundle that is not evaluated yet."""
    write_json(bundle / BUNDLE_FILE, {**description_of(Objective()), "sha256": hashes(bundle)})


def description_of(objective: Objective) -> BundleDescription:
    """Describe a made-up student of an objective, without scores."""
    return {
        "format": 1,
        "git_sha": None,
        "name": "small",
        "teacher": "wheel:tiny.en",
        "window": {"silence_s": 0.3},
        "languages": ["en"],
        "data": {"utterances": 4, "hours": 0.1, "domains": {"ivr": 4}, "licences": {"CC-BY-SA-3.0": 4}},
        "params_m": 37.8,
        "objective": objective.model_dump(mode="json"),
        "epochs": 1,
        "scores": None,
        "versions": {},
    }
