from dataclasses import replace

import numpy as np
import pytest

from askd_ray.data.schema import Utterance
from askd_ray.evaluation import latency
from askd_ray.evaluation.latency import evenly, percentile_ms, speedup, time_systems

CLIP = Utterance("a", b"", "a.wav", "one", 1.0, "", "en", "d", "test", "cc0")


class Recorder:
    """A system that records its calls, and returns its input as text."""

    def __init__(self, name: str, asked: list[str]):
        self.name, self.asked = name, asked

    def transcribe(self, audio: bytes, language: str) -> str:
        self.asked.append(self.name)
        return f"{self.name} {audio.decode()} {language}"


def test_percentiles_are_linear_between_clips():
    times = np.asarray([0.4, 0.1, 0.2, 0.3])
    assert percentile_ms(times, 50) == 250.0
    assert percentile_ms(times, 95) == 385.0
    assert percentile_ms(times[:1], 95) == 400.0


def test_systems_take_turns_and_who_is_first_rotates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(latency, "TURN_CLIPS", 2)
    asked: list[str] = []
    systems = {name: Recorder(name, asked) for name in "xyz"}
    clips = [replace(CLIP, audio=f"{i}".encode()) for i in range(5)]
    answers = time_systems(systems, clips)
    # Two clips a turn, and one before them to warm up; the last turn has a single clip.
    assert "".join(asked) == "xxxyyyzzz" + "yyyzzzxxx" + "zzxxyy"
    assert answers["y"].texts == ("y 0 en", "y 1 en", "y 2 en", "y 3 en", "y 4 en")
    assert all(a.latency_s.shape == (5,) and (a.latency_s > 0).all() for a in answers.values())


def test_the_sample_is_spread_over_durations():
    clips = [replace(CLIP, id=str(i), duration_s=float(i)) for i in (9, 3, 1, 2, 4, 0, 7)]
    assert [u.duration_s for u in evenly(clips, 4)] == [0.0, 2.0, 4.0, 9.0]
    assert [u.duration_s for u in evenly(clips, 99)] == [0.0, 1.0, 2.0, 3.0, 4.0, 7.0, 9.0]
    assert evenly([], 3) == []


def test_the_median_of_repeats_counts(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0])  # 9 s, 1 s, 2 s
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    answers = time_systems({"x": Recorder("x", [])}, [CLIP], repeats=3)
    assert answers["x"].latency_s.tolist() == [2.0]


def test_speedup_of_a_constant_factor_is_certain():
    times = np.linspace(0.01, 0.05, 21)
    assert speedup(8 * times, times) == {"value": 8.0, "low": 8.0, "high": 8.0}


def test_speedup_is_of_medians_and_its_interval_holds_it():
    rng = np.random.default_rng(3)
    system_s, baseline_s = rng.lognormal(0, 0.3, 101), 5 * rng.lognormal(0, 0.3, 101)
    found = speedup(baseline_s, system_s)
    assert found["value"] == pytest.approx(np.median(baseline_s) / np.median(system_s), abs=1e-3)
    assert 3.5 < found["low"] < found["value"] < found["high"] < 7.0
