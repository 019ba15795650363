import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored import evaluation, made_up_speed

from askd_ray.results.texts import (
    count,
    difference,
    latency,
    percent,
    points,
    points_in_words,
    speed_verdicts,
    speedup,
    wer,
)
from askd_ray.results.timing import Speed

RATES = st.floats(0.0, 3.0)


def test_each_kind_of_number_in_its_form():
    assert (percent(0.12345), percent(1.5), percent(None)) == ("12.35", "150.00", "-")
    assert wer({"wer": 0.1234, "wer_ci95": [0.1105, 0.1362]}) == "12.34 (11.05 to 13.62)"
    assert points(-0.0052, [-0.011, 0.0006]) == "-0.52 (-1.10 to +0.06)"
    assert points_in_words(-0.0052, [-0.011, 0.0006]) == "-0.52 points (95 %: -1.10 to +0.06)"
    assert (points(0.01, None), points_in_words(0.01, None)) == ("+1.00", "+1.00 points")
    assert speedup({"value": 9.834, "low": 9.1, "high": 10.4}) == "9.83x (95 %: 9.10 to 10.40)"
    assert latency(22.6) == "23 ms"
    assert (count(1, "clip"), count(0, "clip"), count(2, "clip")) == ("1 clip", "0 clips", "2 clips")


@given(RATES, RATES, st.floats(0.0, 1.0))
def test_signs_are_those_of_the_numbers(one: float, other: float, probability: float):
    low, high = sorted((one - other, other - one))
    text = difference({"value": low, "low": low, "high": high, "p_improvement": probability})
    numbers = [float(number) for number in re.findall(r"[-+]\d+\.\d\d", text)]
    assert numbers == pytest.approx([100 * low, 100 * low, 100 * high], abs=0.0051)
    assert text.endswith(f"better with probability {probability:.2f}")


def test_short_clips_are_named_where_they_are_not_all():
    (line,) = speed_verdicts(evaluation()["speed"])
    assert line == "student: 9.83x (95 %: 9.10 to 10.40) as fast as teacher on the median of 3 clips"
    every = {"value": 4.0, "low": 3.0, "high": 5.0}

    def lines(n_short: int) -> list[str]:
        short = {**every, "clips": n_short, "ms": 10.0, "baseline_ms": 40.0}
        speed: Speed = {**made_up_speed(["student"]), "speedup": {"student": {"all": every, "short": short}}}
        return speed_verdicts(speed)

    assert lines(1)[0].endswith("on the median of 3 clips, 4.00x (95 %: 3.00 to 5.00) of 1 clip under 5 s")
    assert lines(3)[0].endswith("on the median of 3 clips")
