"""The chart of benchmarks/engines.py: latency of short clips against WER."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from askd_ray.objective.plot import figure_class

_COLOURS = {True: "#0072b2", False: "#d55e00"}
_MAX_WER = 0.3  # above it, a model repeats itself: it stands at the edge


def draw(systems: Mapping[str, Mapping[str, Any]], file: Path) -> Path:
    """Write the chart as PNG; ``systems`` is that of the line of JSON. Systems without short clips are left out.

    Raises :class:`AskdError` when matplotlib is not installed.
    """
    figure = figure_class()(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = {name: system for name, system in systems.items() if system["buckets"][0]["p50_ms"] is not None}
    by_time = sorted(shown, key=lambda name: shown[name]["buckets"][0]["p50_ms"])
    lines = list[str]()
    for number, name in enumerate(by_time, 1):
        p50_ms, rate = shown[name]["buckets"][0]["p50_ms"], shown[name]["wer"]
        height = 100 * min(rate["wer"], _MAX_WER)
        low, high = (100 * min(bound, _MAX_WER) for bound in rate["wer_ci95"])
        is_student = name.startswith("student,")
        colour, marker = _COLOURS[is_student], "o" if is_student else "s"
        axes.errorbar(p50_ms, height, [[height - low], [high - height]], fmt=marker, color=colour, elinewidth=0.7)
        axes.annotate(
            str(number), (p50_ms, height), xytext=(5, 3 + 9 * (number % 2)), textcoords="offset points", fontsize=8
        )
        lines.append(f"{number:2d}  {name}: {p50_ms:.0f} ms, {rate['wer']:.1%}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=7)
    axes.set_ylim(0, 100 * _MAX_WER + 1.5)
    axes.set_xlabel("median time of a clip below 2 s, ms")
    axes.set_ylabel(f"WER with its 95 % interval, %; above {_MAX_WER:.0%} at the edge")
    axes.set_title("Circles: the student in its formats; squares: other programs and models", fontsize=9, loc="left")
    axes.grid(alpha=0.25)
    axes.text(1.02, 0.5, "\n".join(lines), transform=axes.transAxes, fontsize=7.5, va="center")
    figure.savefig(file, dpi=130)
    return file
