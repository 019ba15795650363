"""Invented evaluations for the tests of reports: the hypotheses are invented, the real stages do the rest."""

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from scored import made_up_speed

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.evaluation import latency, speed
from askd_ray.evaluation.hypotheses import NON_SPEECH, RAW, STUDENT, Hypothesis, write_hypotheses
from askd_ray.evaluation.scores import score
from askd_ray.evaluation.sets import read_sets
from askd_ray.files import read_json, write_json
from askd_ray.results.timing import Speed
from askd_ray.runs import Run

WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa".split()
EQUAL = {"teacher": 0.1, "student": 0.1}
WORSE = {"teacher": 0.05, "student": 0.4}
BETTER = {"teacher": 0.4, "student": 0.05}
NOISY = {"white@0": 0.5, "white@10": 0.2, "white@20": 0.05, "babble@5": 0.4, "babble@15": 0.1, "telephone": 0.1}


def tone(duration_s: float) -> bytes:
    """A sound file."""
    file = io.BytesIO()
    at_s = np.arange(int(16000 * duration_s)) / 16000
    soundfile.write(file, 0.2 * np.sin(2 * np.pi * 440 * at_s), 16000, format="FLAC")
    return file.getvalue()


def texts(n: int, seed: str) -> list[str]:
    """Different texts of three to nine words."""
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(WORDS, k=rng.randint(2, 8)))} n{i}" for i in range(n)]


def misheard(text: str, rate: float, seed: str) -> str:
    """The text with errors: at this rate, a word is substituted, deleted, or doubled."""
    rng, hypothesis = random.Random(seed), list[str]()
    for word in text.split():
        kind = rng.choice(["another", "gone", "doubled"]) if rng.random() < rate else "right"
        hypothesis += {"another": ["zulu"], "gone": [], "doubled": [word, "yankee"], "right": [word]}[kind]
    return " ".join(hypothesis)


def write_run(root: Path, name: str, n: int = 30, study: Any = None, **settings: Any) -> Run:
    """A run with a test split of ``n`` tones, and a set ``far`` of half as many."""
    far = root / "far"
    far.mkdir(parents=True, exist_ok=True)
    lines = ["audio\ttext\tspeaker"]
    for i, text in enumerate(texts(max(1, n // 2), "far")):
        (far / f"{i}.flac").write_bytes(tone(0.4 + 0.1 * i))
        lines.append(f"{i}.flac\t{text}\tspeaker {i % 3}")
    (far / "manifest.tsv").write_text("\n".join(lines) + "\n")
    evaluated = {"sets": [{"name": "far", "path": str(far)}], **settings}
    run = Run(Recipe.model_validate({"name": name, "runs_root": str(root), "evaluate": evaluated, "study": study}))
    rows = [_utterance(i, text) for i, text in enumerate(texts(n, "test"))]
    write_table(run.shards / "test-00000.parquet", to_table(rows))
    return run


def _utterance(i: int, text: str) -> Utterance:
    return Utterance(
        id=f"clip-{i}",
        audio=tone(0.3 + 0.25 * i),
        path="",
        text=text,
        duration_s=0.3 + 0.25 * i,
        speaker="",
        language="en",
        domain="near",
        split="test",
        licence="CC0",
    )


def model_rows(run: Run, rates: Mapping[str, float], noisy: Mapping[str, float] | None = None) -> list[Hypothesis]:
    """Hypotheses of models with these error rates on a run's sets, and under conditions that add to the rates."""
    rows = list[Hypothesis]()
    for chosen in read_sets(run)[0]:
        for condition, more in {"clean": 0.0, **(noisy or {})}.items():
            for u in chosen.utterances:
                for model, rate in rates.items():
                    hypothesis = misheard(u.text, rate + more, f"{model} {condition} {u.text}")
                    tokens = tuple(f" {word}" for word in hypothesis.split())
                    probs = tuple(0.4 if word in (" zulu", " yankee") else 0.93 for word in tokens)
                    given = (u.id, u.speaker, u.language, u.duration_s, u.text)
                    rows.append(
                        Hypothesis(
                            model, chosen.name, chosen.in_domain, condition, *given, hypothesis, tokens, probs, True
                        )
                    )
    return rows


def raw_rows(rows: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Raw rows beside served ones: the student has an additional word, and does not end."""
    return [
        replace(row, path=RAW, hypothesis=f"{row.hypothesis} oh".strip(), ended=False)
        if row.model == STUDENT
        else replace(row, path=RAW)
        for row in rows
    ]


def non_speech_rows(models: Sequence[str]) -> list[Hypothesis]:
    """Clips without speech; the last model outputs words for the noise."""
    return [
        Hypothesis(model, NON_SPEECH, False, kind, f"{kind}-{i}", "", "en", 5.0, "", hypothesis)
        for model in models
        for kind in ("silence", "noise")
        for hypothesis in ["thank you" if (model, kind) == (models[-1], "noise") else ""]
        for i in range(3)
    ]


def finish(run: Run, rows: Sequence[Hypothesis], timed: Speed | None = None) -> Run:
    """Write the files and the record of the stage for these rows, scored with the run's normaliser."""
    timed = timed or made_up_speed(dict.fromkeys(row.model for row in rows))
    folder = run.path / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    write_hypotheses(folder / "hypotheses.parquet", rows)
    scores = score(rows, "teacher", run.recipe.evaluate.normalizer)
    more = {"left_out": {"far": {"no reference": 2}}, "speed": timed}
    write_json(folder / "scores.json", {**scores, **more})
    run.finish("evaluate", "evaluated", read_json(folder / "scores.json"), run.begin("evaluate"))
    return run


def time_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> Speed:
    """Measure the speed of a student and a teacher that only wait, in real time."""
    monkeypatch.setattr(latency, "_PAUSE_S", 0.0)
    monkeypatch.setattr(speed, "Isolated", Idle)
    monkeypatch.setattr(speed, "_threads", lambda *_: 1)
    monkeypatch.setattr(speed, "_cost", lambda reference: {"params_m": 37.18, "multiply_adds_g": 5.2, "window": "30 s"})
    clips = [u for chosen in read_sets(run)[0] for u in chosen.utterances]
    settings = run.recipe.evaluate.model_copy(update={"stock": False, "batch_sizes": (1, 4)})
    return speed.measure_speed({"student": "fast", "teacher": "slow"}, "teacher", clips, settings)


class Idle:
    """Replaces a process with a model."""

    opened_s = 0.5

    def __init__(self, _: object, reference: str, threads: int, device: str):
        self.steps = 10 if reference == "fast" else 100

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def transcribe(self, audio: bytes, language: str) -> str:
        for _ in range(self.steps):
            np.fft.rfft(np.frombuffer(audio[:1000], dtype=np.uint8))
        return ""

    def call(self, method: str, audios: Sequence[bytes], language: str) -> float:
        return 0.001 * len(audios)

    def peak_mb(self) -> float:
        return 123.0
