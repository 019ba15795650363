"""The plots of a report: as SVG in the page's colours, and as PNG."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from askd_ray.evaluation.report.document import Figure
from askd_ray.results.wer import Rate

COLOURS = ("#5f6b7a", "#0072b2", "#d55e00", "#009e73", "#b0508a", "#8a6d00", "#3ba7d6", "#8c2d04")
"""The colours of the kinds of models, the baseline first: after Okabe and Ito, safe for colour-blind readers."""
INK = "#111213"
_FEW = 6  # with more models, the bands would hide each other
_WIDE = 10.0  # above this ratio of the largest to the smallest value, the axis is logarithmic
_MARKERS, _HATCHES = "soD^vPX*", ("", "///", "...", "\\\\\\", "xxx", "++", "oo", "--")
_WIDTH_IN = 4.6  # the width of a phone's screen, so that a phone does not shrink the text
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names of sets are not formulas
    "svg.hashsalt": "askd",  # equal plots give equal files
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


Kinds = Mapping[str, str]
"""All models in order, with their kind: models of one kind, such as the seeds of an arm, share colour and name."""


@dataclass(frozen=True)
class Interval:
    """A value and its interval."""

    value: float
    low: float
    high: float


def interval(wer: Rate) -> Interval:
    """Return a WER in percent, with its interval."""
    return Interval(*(100 * x for x in (wer["wer"], *wer["wer_ci95"])))


@dataclass(frozen=True)
class Curve:
    """Points of one model; ``band`` holds the intervals of the first points. ``dashed`` labels a dashed line."""

    model: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()
    dashed: str = ""


@dataclass(frozen=True)
class Panel:
    """Axes with curves. ``ticks`` names positions on the x-axis; ``diagonal`` draws the line x = y."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    ticks: Mapping[float, str] | None = None
    diagonal: bool = False


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_dots(
    name: str, caption: str, groups: Mapping[str, Mapping[str, Interval]], kinds: Kinds, x_label: str
) -> tuple[Figure, ...]:
    """Draw one row per group, with a dot and its interval for each model. Returns no figure without matplotlib."""

    def mark(axes: Any, kind: str, interval: Interval, y: float, errors: Any) -> None:
        i = _number(kinds, kind)
        style = {"color": COLOURS[i], "marker": _MARKERS[i], "markersize": 4.5, "linewidth": 1.4, "linestyle": "none"}
        axes.errorbar([interval.value], [y], xerr=errors, label=kind, **style)

    return _draw_groups(name, caption, groups, kinds, x_label, mark, from_zero=False)


def draw_bars(
    name: str, caption: str, groups: Mapping[str, Mapping[str, Interval]], kinds: Kinds, x_label: str
) -> tuple[Figure, ...]:
    """Draw one row per group, with a bar and its interval for each model. Returns no figure without matplotlib."""

    def mark(axes: Any, kind: str, interval: Interval, y: float, errors: Any) -> None:
        i = _number(kinds, kind)
        style = {"color": COLOURS[i], "hatch": _HATCHES[i], "edgecolor": "white", "linewidth": 0}
        axes.barh(y, interval.value, height=0.72 / len(kinds), xerr=errors, label=kind, ecolor=INK, **style)

    return _draw_groups(name, caption, groups, kinds, x_label, mark, from_zero=True)


def draw_panels(name: str, caption: str, panels: Sequence[Panel], kinds: Kinds) -> tuple[Figure, ...]:
    """Draw panels in a column, with a colour and a marker for each model. Returns no figure without matplotlib."""

    def draw(figure: Any) -> None:
        for panel, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
            if panel.diagonal:
                axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8)
            for curve in panel.curves:
                kind = kinds[curve.model]
                i = _number(kinds, kind)
                label, line = (f"{kind}, {curve.dashed}", "--") if curve.dashed else (kind, "-")
                style = {"color": COLOURS[i], "marker": _MARKERS[i], "markersize": 4, "linewidth": 1.5}
                axes.plot(curve.x, curve.y, line, label=label, **style)
                if curve.band and len(kinds) <= _FEW:
                    low, high = zip(*curve.band, strict=True)
                    axes.fill_between(curve.x[: len(low)], low, high, color=COLOURS[i], alpha=0.15, linewidth=0)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.25)
            if panel.ticks is not None:
                axes.set_xticks(list(panel.ticks), list(panel.ticks.values()))
        _legend(figure)

    return _draw(name, caption, 0.5 + 2.3 * len(panels), draw)


def draw_points(
    name: str,
    caption: str,
    points: Mapping[str, tuple[float, Interval]],
    kinds: Kinds,
    labels: tuple[str, str],
    lines: Mapping[str, float],
) -> tuple[Figure, ...]:
    """Draw a point for each model: x on a logarithmic axis, y with its interval; ``labels`` are those of both axes.

    ``lines`` are vertical lines with their names. Returns no figure without matplotlib.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for model, (x, y) in points.items():
            i = _number(kinds, kinds[model])
            style = {"color": COLOURS[i], "marker": _MARKERS[i], "markersize": 6, "linestyle": "none", "capsize": 3}
            axes.errorbar([x], [y.value], yerr=[[y.value - y.low], [y.high - y.value]], label=kinds[model], **style)
        for label, x in lines.items():
            axes.axvline(x, color=INK, linestyle=":", linewidth=1, label=label)
        values = [x for x, _ in points.values()] + [*lines.values()]
        _use_log_scale(axes, min(values))
        axes.set_xlim(right=2.0 * max(values))
        axes.set_ylim(bottom=0)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.grid(alpha=0.25)
        _legend(figure)

    return _draw(name, caption, 2.8, draw)


def _draw_groups(
    name: str,
    caption: str,
    groups: Mapping[str, Mapping[str, Interval]],
    kinds: Kinds,
    x_label: str,
    mark: Callable[[Any, str, Interval, float, Any], None],
    from_zero: bool,
) -> tuple[Figure, ...]:
    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, group in enumerate(groups.values()):
            for i, (model, kind) in enumerate(kinds.items()):
                wer, y = group[model], row + 0.8 * ((i + 0.5) / len(kinds) - 0.5)
                mark(axes, kind, wer, y, [[wer.value - wer.low], [wer.high - wer.value]])
        axes.set_yticks(range(len(groups)), [_short(group) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)  # from top to bottom
        values = [wer.value for group in groups.values() for wer in group.values()]
        if from_zero:
            axes.set_xlim(left=0)
        elif 0.0 < _WIDE * min(values) < max(values):
            _use_log_scale(axes, min(values))
        axes.set_xlabel(x_label)
        axes.grid(axis="x", alpha=0.25)
        _legend(figure)

    row_in = 0.17 if len(kinds) <= _FEW else 0.11 if len(kinds) <= 2 * _FEW else 0.075
    return _draw(name, caption, 0.9 + len(groups) * row_in * (len(kinds) + 1), draw)


def _use_log_scale(axes: Any, min_value: float) -> None:
    """Make the x-axis logarithmic: one very high WER would leave no room for the differences between the others."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", nonpositive="clip")
    axes.set_xlim(left=min_value / 2.0)  # an interval may reach below 0
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _legend(figure: Any) -> None:
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), map(_short, handles), loc="outside upper left", ncols=3, frameon=False)


def _short(name: str) -> str:
    """Return a name, shortened to leave room for the plot."""
    return textwrap.fill(name, 24, max_lines=2, placeholder=" ...")


def _number(kinds: Kinds, kind: str) -> int:
    return list(dict.fromkeys(kinds.values())).index(kind) % len(COLOURS)


def _draw(name: str, caption: str, height_in: float, draw: Callable[[Any], None]) -> tuple[Figure, ...]:
    if not can_draw():
        return ()
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    svg, png = io.StringIO(), io.BytesIO()
    with rc_context(_STYLE):
        figure: Any = Canvas(figsize=(_WIDTH_IN, height_in), layout="constrained")  # not pyplot, which has global state
        draw(figure)
        figure.savefig(png, format="png", dpi=200)
        figure.set_layout_engine("none")  # keep the layout of the PNG
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return (Figure(name, caption, _inline(name, svg.getvalue()), png.getvalue()),)


def _inline(name: str, svg: str) -> str:
    """Return an SVG file for use inside a page: unique ids, no comments, the page's colours (report.css)."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<svg\b", '<svg role="img" aria-hidden="true"', svg, count=1)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--model-{i})")
    return svg.replace(INK, "currentColor")
