import re

import pytest

from askd_ray.evaluation.report.plots import Interval, draw_bars, draw_dots

KINDS = {"teacher": "teacher", "student": "student"}


def groups(runaway: float) -> dict[str, dict[str, Interval]]:
    return {
        "read": {"teacher": Interval(4.0, 3.0, 5.0), "student": Interval(5.0, -1.0, 6.0)},
        "words": {"teacher": Interval(20.0, 15.0, 25.0), "student": Interval(runaway, runaway - 5.0, runaway + 5.0)},
    }


def places(name: str, runaway: float) -> list[float]:
    """Return where the two models' dots of each row lie, from top to bottom, as shares of the plot's width."""
    (figure,) = draw_dots(name, "WER", groups(runaway), KINDS, "WER, %")
    found = re.findall(r'<use[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*style="fill: var', figure.svg)
    dots = sorted({(float(y), float(x)) for x, y in found})
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', figure.svg)[0])
    return [x / width for _, x in dots[2:]]  # the first two are the legend's


def test_a_model_that_runs_away_leaves_room_to_tell_the_others_apart():
    for runaway in (30.0, 600.0):
        teacher, student, _, farthest = places(f"to-{runaway:g}", runaway)
        assert 0.02 < student - teacher < farthest - teacher  # 4 and 5 %


@pytest.mark.parametrize("draw", [draw_dots, draw_bars])
def test_a_value_of_nothing_is_drawn_too(draw):
    nothing = {"read": {"teacher": Interval(0.0, 0.0, 0.0), "student": Interval(500.0, 400.0, 600.0)}}
    (figure,) = draw("nothing", "WER", nothing, KINDS, "WER, %")
    assert figure.png.startswith(b"\x89PNG") and "<svg" in figure.svg
