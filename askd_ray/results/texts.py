"""Results in texts, for terminals, reports and model cards: each kind of number is written in one way."""

from collections.abc import Iterable, Sequence
from typing import Any

from askd_ray.results.timing import Speed, Speedup
from askd_ray.results.wer import Rate, RateDifference


def percent(share: float | None) -> str:
    """Return a share in percent, without the sign: ``12.34``; a dash for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def wer(of: Rate) -> str:
    """Return a WER in percent with its 95 % interval: ``12.34 (11.05 to 13.62)``."""
    low, high = of["wer_ci95"]
    return f"{percent(of['wer'])} ({percent(low)} to {percent(high)})"


def points(value: float, interval: Sequence[float] | None) -> str:
    """Return a difference in percentage points with its 95 % interval, for a table: ``-0.52 (-1.10 to +0.06)``."""
    return f"{100 * value:+.2f}" if interval is None else f"{100 * value:+.2f} ({_signed(interval)})"


def points_in_words(value: float, interval: Sequence[float] | None) -> str:
    """Return a difference with its 95 % interval, for a sentence: ``-0.52 points (95 %: -1.10 to +0.06)``."""
    return f"{100 * value:+.2f} points" + ("" if interval is None else f" (95 %: {_signed(interval)})")


def _signed(interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def difference_cell(of: RateDifference) -> str:
    """Return a difference to the baseline as :func:`points` does."""
    return points(of["value"], (of["low"], of["high"]))


def difference(of: RateDifference) -> str:
    """Return a difference to the baseline, and the probability that it is an improvement."""
    interval = of["low"], of["high"]
    return f"{points_in_words(of['value'], interval)}, better with probability {of['p_improvement']:.2f}"


def speedup(of: Speedup) -> str:
    """Return a speed-up with its 95 % interval: ``9.83x (95 %: 9.10 to 10.40)``."""
    return f"{of['value']:.2f}x (95 %: {of['low']:.2f} to {of['high']:.2f})"


def speed_verdicts(speed: Speed) -> list[str]:
    """Return for each model how many times as fast as the reference it is, on the median of all and of short clips."""
    lines = list[str]()
    for name, faster in speed["speedup"].items():
        line = f"{name}: {speedup(faster['all'])} as fast as {speed['speedup_against']} on the median of "
        line += count(speed["clips"], "clip")
        short = faster.get("short")
        if short is not None and short["clips"] < speed["clips"]:
            line += f", {speedup(short)} of {count(short['clips'], 'clip')} under {speed['short_s']:g} s"
        lines.append(line)
    return lines


def latency(ms: float) -> str:
    """Return a latency: ``23 ms``."""
    return f"{ms:.0f} ms"


def count(n: int, noun: str) -> str:
    """Return ``1 clip`` or ``2 clips``."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
