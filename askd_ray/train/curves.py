"""Training curves for the report: one PNG per picture, over the steps."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from askd_ray.config.schema import Recipe
from askd_ray.files import atomic_path
from askd_ray.objective.plot import figure_of
from askd_ray.results.texts import percent
from askd_ray.train.plot import smooth
from askd_ray.train.track import StepMetrics

_MAX_POINTS = 600  # about one point per pixel of the picture's width
_FEW_POINTS = 60  # up to this number, each point gets a marker
_LOSSES = {
    "loss": "whole loss",
    "ce": "cross-entropy",
    "kd": "divergence from teacher",
    "self_kd": "divergence from itself",
    "teacher_ce": "teacher's cross-entropy",
    "hidden": "encoder states",
    "states": "decoder states, from teacher",
    "self_states": "decoder states, from itself",
}
_SCHEDULE = {"a": "a, teacher", "b": "b, self", "s": "s, teacher's decoder states"}
_WIDE_RANGE = 30.0  # an axis is logarithmic if the largest value exceeds the smallest by this factor

Points = tuple[list[float], list[float]]


def draw_curves(metrics: Sequence[StepMetrics], recipe: Recipe, folder: Path) -> list[Path]:
    """Draw losses, dev WER, schedule, learning rates, gradient norm and speed into ``folder``; return the PNGs.

    A metric that the training did not log gets no picture. Raises :class:`AskdError` when matplotlib is not installed.
    """
    drawn: list[Path] = []
    pictures: dict[str, Callable[[], Any]] = {
        "losses": lambda: _losses(metrics),
        "dev_wer": lambda: _dev_wer(metrics),
        "schedule": lambda: _schedule(metrics),
        "learning_rates": lambda: _learning_rates(metrics),
        "grad_norm": lambda: _grad_norm(metrics, recipe.train.optimizer.clip_norm),
        "utterances_per_s": lambda: _speed(metrics),
    }
    for name, draw in pictures.items():
        figure = draw()
        if figure is None:
            continue
        last = figure.axes[-1]
        last.set_xlim(0, metrics[-1]["step"])
        last.set_xlabel("step")
        path = folder / f"{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight")
        drawn.append(path)
    return drawn


def points(metrics: Iterable[StepMetrics], name: str) -> Points:
    """Return steps and values of a metric at the steps that logged it; for a long run, means over intervals."""
    steps, values = list[float](), list[float]()
    for line in metrics:
        value = line.get(name)
        if value is not None and math.isfinite(value):
            steps.append(line["step"])
            values.append(value)
    size = math.ceil(len(steps) / _MAX_POINTS) or 1
    starts = range(0, len(steps), size)
    return [_mean(steps[i : i + size]) for i in starts], [_mean(values[i : i + size]) for i in starts]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _losses(metrics: Sequence[StepMetrics]) -> Any:
    figure, (axis,) = figure_of(1)
    for name, label in _LOSSES.items():
        # A part with weight 0 is not computed and logs 0, which is no measured loss.
        steps, values = points((line for line in metrics if line.get(name) != 0.0), name)
        if values:
            (faint,) = axis.plot(steps, values, alpha=0.25, linewidth=1)
            axis.plot(steps, smooth(values), color=faint.get_color(), label=label, zorder=3 if name == "loss" else 2)
    axis.set_ylabel("loss, nats a token")
    axis.set_ylim(bottom=0)
    _legend(axis)
    return figure


def _dev_wer(metrics: Sequence[StepMetrics]) -> Any:
    steps, values = points(metrics, "dev_wer")
    if not values:
        return None
    figure, (axis,) = figure_of(1)
    axis.plot(steps, [100 * value for value in values], "o-", ms=4, clip_on=False)
    best = min(range(len(values)), key=values.__getitem__)
    axis.plot(steps[best], 100 * values[best], "o", ms=10, fillstyle="none", color="tab:green", clip_on=False)
    axis.set_title(f"best: {percent(values[best])} % at step {steps[best]:.0f}", loc="left", fontsize="medium")
    axis.set_ylabel("dev WER, %")
    axis.set_ylim(bottom=0)
    return figure


def _schedule(metrics: Sequence[StepMetrics]) -> Any:
    rows = [name for name in ("T", "k") if len({line.get(name) for line in metrics}) > 1]
    figure, axes = figure_of(1 + len(rows))
    for name, label in _SCHEDULE.items():
        steps, values = points(metrics, name)
        if name != "s" or any(values):
            axes[0].plot(steps, values, label=label, linewidth=2)
    axes[0].set_ylabel("weight in the loss")
    axes[0].set_ylim(-0.03, 1.05)
    _legend(axes[0])
    for axis, name in zip(axes[1:], rows, strict=True):
        axis.plot(*points(metrics, name), color="tab:green", linewidth=2)
        axis.set_ylabel({"T": "temperature", "k": "AdaKD's k"}[name])
    return figure


def _learning_rates(metrics: Sequence[StepMetrics]) -> Any:
    names = sorted({name for line in metrics for name in line if name.startswith("lr/")})
    if not names:
        return None
    figure, (axis,) = figure_of(1)
    for name in names:
        axis.plot(*points(metrics, name), label=name.removeprefix("lr/"), linewidth=2)
    axis.set_ylabel("learning rate")
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    axis.set_ylim(bottom=0)
    _legend(axis)
    return figure


def _grad_norm(metrics: Sequence[StepMetrics], clip_norm: float) -> Any:
    steps, values = points(metrics, "grad_norm")
    if not values:
        return None
    figure, (axis,) = figure_of(1)
    (faint,) = axis.plot(steps, values, alpha=0.3, linewidth=1)
    axis.plot(steps, smooth(values), color=faint.get_color(), label="before clipping")
    axis.axhline(clip_norm, color="grey", linestyle="--", linewidth=1, label=f"clipped to {clip_norm:g}")
    shown = [value for value in (*values, clip_norm) if value > 0]
    if max(shown) > _WIDE_RANGE * min(shown):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_ylabel("norm of the gradient")
    _legend(axis)
    return figure


def _speed(metrics: Sequence[StepMetrics]) -> Any:
    steps, values = points(metrics, "utterances_per_s")
    if not values:
        return None
    figure, (axis,) = figure_of(1)
    axis.plot(steps, values, "o-" if len(values) <= _FEW_POINTS else "-", ms=4, clip_on=False)
    axis.set_ylabel("utterances/s, all workers")
    axis.set_ylim(bottom=0)
    return figure


def _legend(axis: Any) -> None:
    """Put the legend beside the axes, where it covers no curve."""
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
