"""Runs the rows of benchmarks/engines.py in turns, and says how fast and how good they are."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from engine_rows import FASTER_WHISPER, OURS, UNROUNDED, Row
from numpy.typing import NDArray
from rich.table import Table
from student_formats import MAX_DIFFERENCE

from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluation.isolated import Isolated
from askd_ray.evaluation.latency import TimedTranscripts, percentile_ms, speedup, time_systems
from askd_ray.evaluation.significance import compare, draw
from askd_ray.models.description import BundleReader
from askd_ray.results.texts import wer
from askd_ray.text.error_rate import count_each
from askd_ray.text.normalize import normalizer

BUCKETS_S = ((0.0, 2.0), (2.0, 5.0), (5.0, 10.0), (10.0, 30.0))
_STARTS = 2  # processes that start at the same time


@dataclass(frozen=True)
class Measured:
    """Latencies, texts and memory of the rows that ran, by name, on the same clips."""

    clips: Sequence[Utterance]
    rows: Sequence[Row]
    timed: dict[str, TimedTranscripts]
    memory_mb: dict[str, float]

    def bucket(self, number: int) -> list[int]:
        """Return the numbers of the clips of a bucket: at least its lower bound, and below its upper one, or 30 s."""
        low, high = BUCKETS_S[number]
        last = number == len(BUCKETS_S) - 1
        return [i for i, u in enumerate(self.clips) if low <= u.duration_s and (last or u.duration_s < high)]


def spread(utterances: Sequence[Utterance], n_clips: int) -> list[Utterance]:
    """Return up to ``n_clips`` clips, a quarter from each bucket, spread evenly over its durations."""
    chosen = list[Utterance]()
    for low, high in BUCKETS_S:
        inside = [u for u in utterances if low <= u.duration_s < high or u.duration_s == high == BUCKETS_S[-1][1]]
        inside.sort(key=lambda u: (u.duration_s, u.id))
        n = min(max(n_clips // len(BUCKETS_S), 1), len(inside))
        chosen += [inside[i] for i in np.linspace(0, len(inside) - 1, n).round().astype(int)]
    return chosen


def measure(rows: Sequence[Row], clips: Sequence[Utterance]) -> Measured:
    """Run every row that can run, each in a process, in turns. A peer that does not open has a line that says so."""
    with ExitStack() as stack, ThreadPoolExecutor(_STARTS) as starters:
        opened = {row.name: starters.submit(Isolated, row.make, *row.args) for row in rows if row.make is not None}
        systems, failed = dict[str, Isolated](), dict[str, str]()
        for row in rows:
            if row.make is None:
                continue
            try:
                systems[row.name] = stack.enter_context(opened[row.name].result())
            except AskdError as error:
                if row.is_needed:
                    raise
                failed[row.name] = f"it does not open, or transcribes nothing: {error}"
        timed = time_systems(systems, clips)
        memory = {name: system.peak_mb() for name, system in systems.items()}
    rows = [replace(row, make=None, problem=failed[row.name]) if row.name in failed else row for row in rows]
    return Measured(clips, rows, timed, memory)


def scores(measured: Measured) -> dict[str, dict[str, Any]]:
    """Return latency, RTFx, WER, memory and size of each row that ran, by name."""
    clips, names = measured.clips, list(measured.timed)
    rates, audio_s = word_error_rates(measured), sum(u.duration_s for u in clips)
    compared = compare(rates, names, FASTER_WHISPER)
    sizes = {row.name: sum(file.stat().st_size for file in row.weights) / 1e6 for row in measured.rows}
    return {
        name: {
            "wer": compared["models"][name],
            "rtfx": round(audio_s / float(timed.latency_s.sum()), 2),
            "buckets": [
                {
                    "clips": len(inside),
                    "p50_ms": percentile_ms(timed.only(inside).latency_s, 50),
                    "p95_ms": percentile_ms(timed.only(inside).latency_s, 95),
                }
                if (inside := measured.bucket(number))
                else None
                for number in range(len(BUCKETS_S))
            ],
            "memory_mb": round(measured.memory_mb[name]),
            "weights_mb": round(sizes[name], 1),
        }
        for name, timed in measured.timed.items()
    }


def word_error_rates(measured: Measured) -> NDArray[np.float64]:
    """Return the bootstrap samples of the WERs, ``(1 + n_draws, n_rows)``; all rows have the same samples."""
    normalizers = [normalizer(u.language) for u in measured.clips]
    references = [normalize(u.text) for normalize, u in zip(normalizers, measured.clips, strict=True)]
    counts = [
        count_each(references, [normalize(text) for normalize, text in zip(normalizers, timed.texts, strict=True)])
        for timed in measured.timed.values()
    ]
    errors = np.array([[count.errors for count in of] for of in counts]).T
    return draw(errors, np.array([count.n_reference for count in counts[0]]), 0).rates


def summary(measured: Measured, reader: BundleReader) -> dict[str, Any]:
    """Return the line of JSON, without what is known before the measurement."""
    rates, names, ours = word_error_rates(measured), list(measured.timed), OURS[reader]
    students = [row.name for row in measured.rows if row.is_student and row.name in measured.timed]
    short = measured.bucket(0)
    p50_s = {name: float(np.median(measured.timed[name].latency_s[short])) for name in names} if short else {}
    peers = [name for name in p50_s if name not in students]
    best = min(peers, key=p50_s.__getitem__) if peers else None
    against = {"faster_whisper": FASTER_WHISPER if short else None, "best_peer": best}
    ratios = {
        key: None if peer is None else speedup(*(measured.timed[name].latency_s[short] for name in (peer, ours)))
        for key, peer in against.items()
    }
    off = compare(rates, names, UNROUNDED[reader])["against_baseline"]
    of_formats = {name: round(100 * off[name]["value"], 3) for name in students if name in off}
    return {
        **{f"p50_short_ratio_vs_{key}": ratio and ratio["value"] for key, ratio in ratios.items()},
        "p50_short_ratio_ci95": {key: ratio and [ratio["low"], ratio["high"]] for key, ratio in ratios.items()},
        "best_peer": best,
        "wer_minus_teacher": minus(rates, names, ours, FASTER_WHISPER),
        "wer_minus_best_peer": None if best is None else minus(rates, names, ours, best),
        "formats_ok": all(abs(value) <= MAX_DIFFERENCE for value in of_formats.values()),
        "formats": len(students),
        "wer_minus_unrounded": of_formats,
        "systems": scores(measured),
        "not_measured": {row.name: row.problem for row in measured.rows if row.problem},
    }


def minus(rates: NDArray[np.float64], names: Sequence[str], name: str, other: str) -> dict[str, float]:
    """Return the difference of two WERs in points, with its 95 % interval."""
    difference = compare(rates, names, other)["against_baseline"][name]
    return {key: round(100 * difference[key], 3) for key in ("value", "low", "high")}


def results_table(title: str, measured: Measured) -> Table:
    """Return the table of results, with the rows that were not measured below it."""
    missing = [f"{row.name}: not measured: {row.problem}" for row in measured.rows if row.problem]
    table = Table(title=title, caption="\n".join(missing), caption_justify="left")
    buckets = [f"{low:g} to {high:g} s ({len(measured.bucket(i))})" for i, (low, high) in enumerate(BUCKETS_S)]
    for column in ("p50 / p95, ms", *buckets, "RTFx", "WER, % (95 %)", "memory, MB", "weights, MB"):
        table.add_column(column, justify="left" if column == "p50 / p95, ms" else "right")
    found = scores(measured)
    for row in measured.rows:
        if row.problem:
            continue
        one = found[row.name]
        times = [f"{of['p50_ms']:.0f} / {of['p95_ms']:.0f}" if of else "-" for of in one["buckets"]]
        cost = f"{one['memory_mb']}", f"{one['weights_mb']}"
        table.add_row(row.name, *times, f"{one['rtfx']:.1f}", wer(one["wer"]), *cost)
    return table
