"""Pictures and tables of a search with a known result."""

import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from askd_ray.config.tune import Between, Space
from askd_ray.errors import AskdError
from askd_ray.search.plot import importance, plot_importance, plot_parallel
from askd_ray.search.trials import LiveTable, table

KIND, DECAY, LR = "objective.self_teacher.kind", "objective.self_teacher.decay", "train.optimizer.lr"
SPACE: Space = {LR: Between(low=1e-5, high=1e-3, log=True), KIND: ("snapshot", "ema"), DECAY: Between(low=0.9, high=1)}


@pytest.fixture
def trials() -> list[dict[str, Any]]:
    """Sixty trials whose score depends almost only on their learning rate."""
    rng, made = random.Random(0), list[dict[str, Any]]()
    for _ in range(60):
        values: dict[str, Any] = {LR: 10 ** rng.uniform(-5, -3), KIND: rng.choice(SPACE[KIND])}
        if values[KIND] == "ema":
            values[DECAY] = rng.uniform(0.9, 1)
        score = 0.1 + 0.1 * abs(math.log10(values[LR]) + 4) + 0.001 * rng.random()
        made.append({"state": "done", "score": score, "evaluations": 2, "asked": values})
    return made


def test_parameters_are_ordered_by_importance(trials):
    shares = importance(trials, SPACE)
    assert next(iter(shares)) == LR and shares[LR] > 0.8
    assert shares.keys() == SPACE.keys()
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("draw", [plot_importance, plot_parallel])
def test_plot_without_matplotlib(draw, trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(AskdError, match="plots need matplotlib"):
        draw(trials, SPACE, tmp_path / "picture.png")


def test_plots_are_written(trials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = list[Figure]()
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure) or save(figure, *a, **k))
    for draw in (plot_importance, plot_parallel):
        path = draw(trials, SPACE, tmp_path / f"{draw.__name__}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    bars, lines = (figure.axes[0] for figure in drawn)
    assert [label.get_text() for label in bars.get_yticklabels()][-1] == LR
    axes = [line for line in lines.lines if len(line.get_xdata()) == len(SPACE) + 1]
    assert len(axes) == len(trials)
    best = min(trials, key=lambda trial: trial["score"])
    heights = axes[-1].get_ydata()  # drawn last, on top
    assert axes[-1].get_color() == "crimson"
    assert heights[0] == pytest.approx((math.log10(best["asked"][LR]) + 5) / 2)
    assert heights[1] == (0.0 if best["asked"][KIND] == "snapshot" else 1.0)
    assert heights[-1] == 0.0
    for axis, trial in zip(axes, sorted(trials, key=lambda trial: -trial["score"]), strict=True):
        assert (axis.get_ydata()[2] < 0) == (DECAY not in trial["asked"])


def test_identical_trials(tmp_path: Path):
    rows = [{"state": "done", "score": 0.5, "evaluations": 1, "asked": {KIND: "ema", DECAY: 0.95, LR: 1e-4}}] * 8
    assert plot_importance(rows, SPACE, tmp_path / "a.png").is_file()
    assert plot_parallel(rows, SPACE, tmp_path / "b.png").is_file()


def test_table_has_the_best_first_and_unscored_last():
    rows = [
        {"state": "waiting", "score": None, "evaluations": 0, "values": {LR: 1e-4}},
        {"state": "done", "score": 0.25, "evaluations": 2, "values": {LR: 2e-4, KIND: "ema", DECAY: 0.95}},
        {"state": "running", "score": 0.125, "evaluations": 1, "values": {LR: 3e-4, KIND: "snapshot"}},
    ]
    console = Console(width=100)
    with console.capture() as output:
        console.print(table(rows, "trials"))
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.get().splitlines() if "│" in line]
    assert cells == [
        ["running", "0.1250", "1", "0.0003", "snapshot", ""],
        ["done", "0.2500", "2", "0.0002", "ema", "0.95"],
        ["waiting", "", "0", "0.0001", "", ""],
    ]


def test_live_table_follows_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = list[str]()
    monkeypatch.setattr("askd_ray.search.trials.table", lambda rows, title: shown.append(title) or title)
    with LiveTable(tmp_path, 2):
        while not shown:
            pass
        (tmp_path / "trials.json").write_text('[{"state": "done"}, {"state": "running"}]')
        while "1 of 2" not in shown[-1]:
            pass
    assert shown[0] == "tune: 0 of 2 trials have ended"
    assert shown[-1] == "tune: 1 of 2 trials have ended"
