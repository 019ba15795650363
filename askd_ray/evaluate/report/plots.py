"""The plots of a report: drawn once, kept as SVG that takes on the page's colours, and as PNG."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from askd_ray.evaluate.report.document import Figure
from askd_ray.evaluate.significance import Rate

COLOURS = ("#5f6b7a", "#0072b2", "#d55e00", "#009e73", "#b0508a", "#8a6d00", "#3ba7d6", "#8c2d04")
"""Of the kinds of models in their order, the baseline first: after Okabe and Ito, told apart by all colour vision."""
INK = "#111213"
_FEW = 6  # models: beyond it, bands would hide one another
_WIDE = 10.0  # from this factor on between the least and the largest value, an axis shows factors
_MARKERS, _HATCHES = "soD^vPX*", ("", "///", "...", "\\\\\\", "xxx", "++", "oo", "--")
_WIDTH_IN = 4.6  # as wide as a phone shows it, so that its type is not made smaller there
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # names of sets are no formulas
    "svg.hashsalt": "askd",  # the same plot is the same file
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


Kinds = Mapping[str, str]
"""All models in their order, and what each is one of: those of a kind, as a study's seeds, share colour and name."""


@dataclass(frozen=True)
class Interval:
    """A value and its interval."""

    value: float
    low: float
    high: float


def interval(wer: Rate) -> Interval:
    """Return a WER in percent."""
    return Interval(*(100 * x for x in (wer["wer"], *wer["wer_ci95"])))


@dataclass(frozen=True)
class Curve:
    """Points of one model, the first of them with a band of intervals. ``dashed`` is what a dashed line stands for."""

    model: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] = ()
    dashed: str = ""


@dataclass(frozen=True)
class Panel:
    """Axes with curves. ``ticks`` name places on the x-axis; ``diagonal`` is the line on which x equals y."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    ticks: Mapping[float, str] | None = None
    diagonal: bool = False


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw_dots(
    name: str, caption: str, groups: Mapping[str, Mapping[str, Interval]], kinds: Kinds, x_label: str
) -> tuple[Figure, ...]:
    """Draw a row a group, in it a dot with its interval a model. No figure where matplotlib is not installed."""

    def mark(axes: Any, kind: str, at: Interval, place: float, errors: Any) -> None:
        i = _number(kinds, kind)
        look = {"color": COLOURS[i], "marker": _MARKERS[i], "markersize": 4.5, "linewidth": 1.4, "linestyle": "none"}
        axes.errorbar([at.value], [place], xerr=errors, label=kind, **look)

    return _draw_groups(name, caption, groups, kinds, x_label, mark, from_zero=False)


def draw_bars(
    name: str, caption: str, groups: Mapping[str, Mapping[str, Interval]], kinds: Kinds, x_label: str
) -> tuple[Figure, ...]:
    """Draw a row a group, in it a bar from 0 and its interval a model. No figure where matplotlib is not installed."""

    def mark(axes: Any, kind: str, at: Interval, place: float, errors: Any) -> None:
        i = _number(kinds, kind)
        look = {"color": COLOURS[i], "hatch": _HATCHES[i], "edgecolor": "white", "linewidth": 0}
        axes.barh(place, at.value, height=0.72 / len(kinds), xerr=errors, label=kind, ecolor=INK, **look)

    return _draw_groups(name, caption, groups, kinds, x_label, mark, from_zero=True)


def draw_panels(name: str, caption: str, panels: Sequence[Panel], kinds: Kinds) -> tuple[Figure, ...]:
    """Draw panels below one another, a colour and a marker a model. No figure where matplotlib is not installed."""

    def draw(figure: Any) -> None:
        for panel, axes in zip(panels, figure.subplots(len(panels), squeeze=False)[:, 0], strict=True):
            if panel.diagonal:
                axes.plot([0, 100], [0, 100], ":", color=INK, linewidth=0.8)
            for curve in panel.curves:
                kind = kinds[curve.model]
                i = _number(kinds, kind)
                label, style = (f"{kind}, {curve.dashed}", "--") if curve.dashed else (kind, "-")
                look = {"color": COLOURS[i], "marker": _MARKERS[i], "markersize": 4, "linewidth": 1.5}
                axes.plot(curve.x, curve.y, style, label=label, **look)
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
                at, place = group[model], row + 0.8 * ((i + 0.5) / len(kinds) - 0.5)
                mark(axes, kind, at, place, [[at.value - at.low], [at.high - at.value]])
        axes.set_yticks(range(len(groups)), [_short(group) for group in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)  # from top to bottom
        values = [at.value for group in groups.values() for at in group.values()]
        if from_zero:
            axes.set_xlim(left=0)
        elif 0.0 < _WIDE * min(values) < max(values):
            _scale_by_factors(axes, min(values))
        axes.set_xlabel(x_label)
        axes.grid(axis="x", alpha=0.25)
        _legend(figure)

    row_in = 0.17 if len(kinds) <= _FEW else 0.11 if len(kinds) <= 2 * _FEW else 0.075
    return _draw(name, caption, 0.9 + len(groups) * row_in * (len(kinds) + 1), draw)


def _scale_by_factors(axes: Any, least: float) -> None:
    """Make the x-axis logarithmic: a model that runs away would leave no room to tell the others apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", nonpositive="clip")
    axes.set_xlim(left=least / 2.0)  # an interval may reach below 0
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _legend(figure: Any) -> None:
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), map(_short, found), loc="outside upper left", ncols=3, frameon=False)


def _short(name: str) -> str:
    """Return a name that leaves room for the plot."""
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
        figure: Any = Canvas(figsize=(_WIDTH_IN, height_in), layout="constrained")  # no pyplot: nothing global
        draw(figure)
        figure.savefig(png, format="png", dpi=200)
        figure.set_layout_engine("none")  # it stays as it was laid out
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
    return (Figure(name, caption, _inline(name, svg.getvalue()), png.getvalue()),)


def _inline(name: str, svg: str) -> str:
    """Return an SVG file as part of a page: names of its own, no comments, the page's colours (page.css)."""
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<svg\b", '<svg role="img" aria-hidden="true"', svg, count=1)
    for i, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--model-{i})")
    return svg.replace(INK, "currentColor")
