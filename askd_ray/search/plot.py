"""Pictures of a finished search: the importance of each value, and the combinations that were tried."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from askd_ray.config.tune import Between, Domain, Space, Value, is_integer
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path
from askd_ray.objective.plot import figure_class
from askd_ray.progress import console
from askd_ray.search.trials import ScoredTrial, as_text, short_name

MIN_TRIALS = 8
"""With fewer trials, the best quarter is one trial, which is too few to measure importance."""

_BEST_SHARE, _NOT_READ_HEIGHT = 0.25, -0.12


def draw(trials: Sequence[ScoredTrial], space: Space, folder: Path) -> None:
    """Draw the pictures; without matplotlib, print one line."""
    for name, draw_picture in (("importance", plot_importance), ("parallel", plot_parallel)):
        if name == "importance" and len(trials) < MIN_TRIALS:
            console.print(f"no picture of importance: {len(trials)} trials are too few, {MIN_TRIALS} are needed")
            continue
        try:
            console.print(f"{name}: {draw_picture(trials, space, folder / f'{name}.png')}")
        except AskdError as error:
            console.print(str(error))
            return


def importance(trials: Sequence[ScoredTrial], space: Space) -> dict[str, float]:
    """Return the importance of each path for being among the best quarter of the trials, highest first; sums to 1.

    PED-ANOVA (arXiv 2304.10255) compares the distribution of each value in the best trials with that in all trials.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs every new study
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = {path: _distribution(path, domain) for path, domain in space.items()}
    for trial in trials:
        known = {path: kinds[path] for path in trial["asked"]}
        frozen = optuna.trial.create_trial(params=dict(trial["asked"]), distributions=known, value=trial["score"])
        study.add_trial(frozen)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _distribution(path: str, domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(domain, Between):
        return CategoricalDistribution(domain)
    if is_integer(path):
        return IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def plot_importance(trials: Sequence[ScoredTrial], space: Space, path: Path) -> Path:
    """Draw :func:`importance` as bars into a PNG; return its path.

    Raises :class:`~askd_ray.errors.AskdError` when matplotlib is not installed.
    """
    shares = importance(trials, space)
    figure: Any = figure_class()(figsize=(7, 1.2 + 0.35 * len(shares)))
    axis = figure.subplots()
    names = [short_name(name) for name in reversed(shares)]
    bars = axis.barh(names, list(reversed(shares.values())), color="tab:blue")
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set_xlim(0, 1)
    axis.set_xlabel("importance (PED-ANOVA)")
    axis.set_title(f"importance for the best quarter of {len(trials)} trials", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def plot_parallel(trials: Sequence[ScoredTrial], space: Space, path: Path) -> Path:
    """Draw each trial as a line through its values to its score into a PNG, the best one thick; return the PNG's path.

    Raises :class:`~askd_ray.errors.AskdError` when matplotlib is not installed.
    """
    figure: Any = figure_class()(figsize=(2.0 + 1.5 * len(space), 4.2))
    from matplotlib import colormaps

    scores = [trial["score"] for trial in trials]
    low, high = min(scores), max(scores)
    axis = figure.subplots()
    for trial in sorted(trials, key=lambda trial: -trial["score"]):  # the best trial is drawn last, on top
        share = (trial["score"] - low) / (high - low) if high > low else 0.0
        heights = [_height(trial["asked"], name, domain) for name, domain in space.items()]
        best = trial["score"] == low
        colour = "crimson" if best else colormaps["viridis"](0.9 * share)
        axis.plot([*heights, share], color=colour, lw=3 if best else 1.2, alpha=1 if best else 0.7, marker="o", ms=3)
    for x, (name, domain) in enumerate(space.items()):
        axis.axvline(x, color="black", lw=0.8)
        for height, text in _ticks(domain):
            _note(axis, x, height, text)
        if any(name not in trial["asked"] for trial in trials):
            _note(axis, x, _NOT_READ_HEIGHT, "not read")
    axis.axvline(len(space), color="black", lw=0.8)
    for share in (0.0, 0.5, 1.0):
        _note(axis, len(space), share, f"{low + share * (high - low):.4f}")
    axis.set_xticks(range(len(space) + 1), [*(short_name(name).replace(".", "\n") for name in space), "score"])
    axis.set_yticks([])
    axis.set_ylim(_NOT_READ_HEIGHT - 0.05, 1.08)
    axis.set_xlim(-0.1, len(space) + 0.5)
    axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axis.set_title(f"{len(trials)} trials, the best in red (lower is better)", loc="left")
    return _saved(figure, path)


def _note(axis: Any, x: int, height: float, text: str) -> None:
    under = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5}
    axis.annotate(text, (x, height), (4, 3), textcoords="offset points", fontsize=8, bbox=under)


def _height(values: Mapping[str, Value], name: str, domain: Domain) -> float:
    """Return the height of a value on its axis, from 0 to 1, or below 0 if the trial does not read the value."""
    if name not in values:
        return _NOT_READ_HEIGHT
    value = values[name]
    if not isinstance(domain, Between):
        return domain.index(value) / max(1, len(domain) - 1)
    assert isinstance(value, int | float)
    return (_scaled(domain, value) - _scaled(domain, domain.low)) / _length(domain)


def _ticks(domain: Domain) -> list[tuple[float, str]]:
    if not isinstance(domain, Between):
        return [(i / max(1, len(domain) - 1), as_text(value)) for i, value in enumerate(domain)]
    middle = (_scaled(domain, domain.low) + _scaled(domain, domain.high)) / 2
    between = math.exp(middle) if domain.log else middle
    return [(share, as_text(value)) for share, value in ((0.0, domain.low), (0.5, between), (1.0, domain.high))]


def _scaled(domain: Between, value: float) -> float:
    return math.log(value) if domain.log else value


def _length(domain: Between) -> float:
    return _scaled(domain, domain.high) - _scaled(domain, domain.low)


def _saved(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return path
