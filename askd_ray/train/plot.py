"""A picture that compares trainings, drawn from their logged metrics."""

from collections.abc import Sequence
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path
from askd_ray.objective.plot import figure_of
from askd_ray.train.track import StepMetrics, read_metrics

_SMOOTHING = 0.1  # the share of each new step in the running mean of the cross-entropy


def plot_runs(runs: Sequence[Path], path: Path) -> Path:
    """Draw teacher weight, training cross-entropy (nats a token) and dev WER over the progress of each run, as PNG.

    ``runs`` are folders of finished or running trainings. Returns the picture's path. Raises :class:`AskdError` for a
    folder without a training, and when matplotlib is not installed.
    """
    path = local_path(path)
    metrics = {run.resolve().name: _metrics(run) for run in map(local_path, runs)}
    figure, (weight, loss, wer) = figure_of(3)
    for name, lines in metrics.items():
        progress = [line["progress"] for line in lines]
        scored = [line for line in lines if "dev_wer" in line]
        (drawn,) = weight.plot(progress, [line["a"] for line in lines], label=name)
        colour = drawn.get_color()
        loss.plot(progress, smooth([line["ce"] for line in lines]), color=colour)
        wer.plot([s["progress"] for s in scored], [s["dev_wer"] for s in scored], "o-", ms=3, color=colour)
    for axis, label in ((weight, "teacher weight"), (loss, "cross-entropy"), (wer, "dev WER")):
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    wer.set_xlabel("progress of the run")
    figure.legend(loc="center left", bbox_to_anchor=(0.92, 0.5), frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return path


def _metrics(run: Path) -> list[StepMetrics]:
    lines = read_metrics(run / "distill")
    if not lines:
        raise AskdError(f"{run} holds no training: give the folder of a run of `askd distill` (runs/NAME)")
    return lines


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential running mean, in which each value has ``1 - _SMOOTHING`` of the next value's weight."""
    means, total, weight = list[float](), 0.0, 0.0
    for value in values:
        total += _SMOOTHING * (value - total)
        weight += _SMOOTHING * (1.0 - weight)
        means.append(total / weight)
    return means
