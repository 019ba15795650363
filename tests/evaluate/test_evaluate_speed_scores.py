import json

import numpy as np
from rich.console import Console

from askd_ray.evaluate.latency import Answers
from askd_ray.evaluate.speed_scores import score_latency, score_speed, speed_table

DURATIONS_S = np.asarray([2.0, 4.0, 6.0])


def answers(took: float) -> Answers:
    return Answers(("", "", ""), took * np.asarray([1.0, 2.0, 10.0]))


ALL = {"student": answers(0.01), "teacher": answers(0.05), "teacher_stock": answers(0.1)}


def test_latencies():
    latency = score_latency(ALL, DURATIONS_S, short_s=5.0)
    assert set(latency) == set(ALL)
    assert latency["student"] == {"rtfx": round(12.0 / 0.13, 2), "p50_ms": 20.0, "p95_ms": 92.0, "p50_short_ms": 15.0}
    assert score_latency(ALL, DURATIONS_S, short_s=1.0)["teacher"]["p50_short_ms"] is None
    json.dumps(latency, allow_nan=False)


def test_the_speed_up_is_that_of_the_medians():
    speed = score_speed(ALL, "teacher_stock")
    assert (speed["speedup_baseline"], speed["speedup_p50_short"], speed["speedup_clips"]) == ("teacher_stock", 10.0, 3)
    assert speed["speedup_p50_short_ci95"] == [10.0, 10.0]
    assert speed["p50_short_ms"] == {"student": 20.0, "teacher_stock": 200.0}
    json.dumps(speed, allow_nan=False)


def shown(speed: dict) -> str:
    console = Console(width=160, record=True)
    console.print(speed_table(speed))
    return console.export_text()


def test_the_table():
    systems = {"systems": score_latency(ALL, DURATIONS_S, 5.0), "short_s": 5.0}
    text = shown({**systems, **score_speed(ALL, "teacher_stock")})
    assert "10.0x as fast as teacher, stock on the median of 3 clips under 5 s" in text
    assert "92.3" in text and "150 ms" in text
    nothing = score_speed({name: a.only([]) for name, a in ALL.items()}, "teacher")
    assert nothing["speedup_p50_short"] is nothing["speedup_p50_short_ci95"] is None
    assert "as fast as" not in shown({**systems, **nothing})
