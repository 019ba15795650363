"""A picture of a recipe's schedules, drawn without training: a, b, s, T and k over progress."""

from pathlib import Path
from typing import Any

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path
from askd_ray.objective.schedules import Progress, Weights, weights_at

_POINTS = 501


def schedule_arrays(recipe: Recipe) -> dict[str, list[float]]:
    """Return ``u`` and the weights at points of a run, as its steps will get them.

    The schedule ``gap`` depends on the losses of the training, so it is drawn as if the gap closed linearly.
    """
    points = [i / (_POINTS - 1) for i in range(_POINTS)]
    objective, epochs = recipe.objective, recipe.train.epochs
    weights: list[Weights] = [weights_at(objective, Progress.at(u, epochs), gap=1.0 - u) for u in points]
    return {
        "u": points,
        "a": [w.teacher_weight for w in weights],
        "b": [w.self_weight for w in weights],
        "T": [w.temperature for w in weights],
        "k": [w.k for w in weights],
        "s": [w.states_weight for w in weights],
    }


def plot_schedule(recipe: Recipe, path: Path) -> Path:
    """Draw the schedules into a PNG and return its path.

    Raises :class:`AskdError` when matplotlib is not installed.
    """
    path, arrays = local_path(path), schedule_arrays(recipe)
    figure, axes = figure_of(1 + _varies(arrays["T"]) + _varies(arrays["k"]))
    weight_axis = axes[0]
    for name, label in (("a", "a, teacher"), ("b", "b, self"), ("s", "s, teacher's decoder states")):
        if name != "s" or any(arrays[name]):
            weight_axis.plot(arrays["u"], arrays[name], label=label, linewidth=2)
    if recipe.objective.ce_weight == "complement":
        ce = [1.0 - a - b for a, b in zip(arrays["a"], arrays["b"], strict=True)]
        weight_axis.plot(arrays["u"], ce, ":", label="cross-entropy", color="grey")
    weight_axis.set_ylim(-0.03, 1.05)
    weight_axis.set_ylabel("weight")
    weight_axis.legend(frameon=False)
    for axis, name in zip(axes[1:], [n for n in ("T", "k") if _varies(arrays[n])], strict=True):
        axis.plot(arrays["u"], arrays[name], color="tab:green", linewidth=2)
        axis.set_ylabel(name)
    drawn = " (gap: as if it closed linearly)" if recipe.objective.teacher_weight.schedule == "gap" else ""
    constant = "" if _varies(arrays["T"]) else f", T = {arrays['T'][0]:g}"
    weight_axis.set_title(f"{recipe.name}: {recipe.objective.preset}{constant}{drawn}", loc="left")
    axes[-1].set_xlabel("progress of the run")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return path


def _varies(values: list[float]) -> bool:
    return len(set(values)) > 1


def figure_of(n_rows: int) -> tuple[Any, list[Any]]:
    """Return a figure of ``n_rows`` axes over the progress of a run, from 0 to 1.

    Raises :class:`AskdError` when matplotlib is not installed.
    """
    figure: Any = figure_class()(figsize=(7, 2.6 + 1.4 * (n_rows - 1)))
    ratios = [2.0] + [1.0] * (n_rows - 1)
    axes = figure.subplots(n_rows, 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, 1)
    return figure, list(axes)


def figure_class() -> Any:
    """Return matplotlib's Figure class: unlike pyplot it has no global state and needs no display.

    Raises :class:`AskdError` when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise AskdError("plots need matplotlib, which is not installed: pip install 'askd-ray[plot]'") from None
    return Figure
