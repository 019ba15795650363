"""The picture of the decoding windows that `askd export` has compared, for the report."""

from pathlib import Path
from typing import Any

from askd_ray.files import atomic_path
from askd_ray.objective.plot import figure_class
from askd_ray.results.windows import WindowSweep


def draw_windows(sweep: WindowSweep, folder: Path) -> Path:
    """Draw the WER against the mean time of a clip, one line for each minimal window, as windows.png into ``folder``.

    A circle marks the window of the bundle. Raises :class:`~askd_ray.errors.AskdError` without matplotlib.
    """
    figure: Any = figure_class()(figsize=(7, 3))
    axis: Any = figure.subplots()
    for min_s in sorted({score["min_s"] for score in sweep["scores"]}):
        line = sorted((s for s in sweep["scores"] if s["min_s"] == min_s), key=lambda s: s["silence_s"])
        times, wers = [s["decoding_ms"] for s in line], [100 * s["wer"] for s in line]
        axis.plot(times, wers, "o-", ms=4, label=f"at least {min_s:g} s")
        for time_ms, wer, score in zip(times, wers, line, strict=True):
            axis.annotate(
                f"+{score['silence_s']:g} s", (time_ms, wer), xytext=(3, 4), textcoords="offset points", size=7
            )
    chosen = sweep["scores"][sweep["chosen"]]
    axis.plot(chosen["decoding_ms"], 100 * chosen["wer"], "o", ms=12, fillstyle="none", color="black", label="chosen")
    axis.set_xlabel("mean time of a clip, ms")
    axis.set_ylabel("dev WER, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path = folder / "windows.png"
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", bbox_inches="tight")
    return path
