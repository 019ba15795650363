"""The trials of a search as a table, during the search and after it."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from rich.live import Live

from askd_ray.config.candidate import FieldValues
from askd_ray.config.tune import Value
from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.progress import Table, console
from askd_ray.runs import Run

TRIALS = "trials.json"


class TrialRow(TypedDict):
    """A trial, with its values by path; the score is None before the first evaluation."""

    state: str
    score: float | None
    evaluations: int
    values: FieldValues


class ScoredTrial(TypedDict):
    """A trial at its best evaluation, whose dev WERs the record holds too (``dev_wer``, ``dev_wer/ood``).

    ``asked`` are the values that the searcher proposed: ``values`` may have smaller weights.
    """

    state: str
    score: float
    evaluations: int
    asked: FieldValues
    values: FieldValues


def table(rows: Sequence[TrialRow | ScoredTrial], title: str) -> Table:
    """Return a table of the trials, the best first."""
    paths = list(dict.fromkeys(path for row in rows for path in row["values"]))
    shown = Table(title=title, title_justify="left")
    for name in ("trial", "score", "evaluations", *column_names(paths)):
        shown.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: math.inf if row["score"] is None else row["score"]):
        wer = "" if row["score"] is None else f"{row['score']:.4f}"
        values = (as_text(row["values"][path]) if path in row["values"] else "" for path in paths)
        shown.add_row(row["state"], wer, str(row["evaluations"]), *values)
    return shown


def column_names(paths: Sequence[str]) -> list[str]:
    """Return the shortest unique end of each path, one part per line, because columns are narrow."""

    def last(path: str, n: int) -> str:
        return "\n".join(path.split(".")[-n:])

    def n_parts(path: str) -> int:
        lengths = range(1, path.count(".") + 2)
        return next(n for n in lengths if n == len(lengths) or [last(p, n) for p in paths].count(last(path, n)) == 1)

    return [last(path, n_parts(path)) for path in paths]


def short_name(path: str) -> str:
    """Return a path without ``objective.``, the section of most paths."""
    return path.removeprefix("objective.")


def as_text(value: Value) -> str:
    """Return a value as text for a table or a plot."""
    return f"{value:.3g}" if isinstance(value, float) else "null" if value is None else str(value)


class LiveTable:
    """Shows the trials in ``folder/trials.json`` while the block runs."""

    def __init__(self, folder: Path, n_trials: int):
        self._path, self._n_trials, self._stop = folder / TRIALS, n_trials, threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _show(self) -> None:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while not self._stop.wait(0.5):
                rows = read_json(self._path) if self._path.is_file() else []
                done = sum(row["state"] in ("done", "failed") for row in rows)
                live.update(table(rows, f"tune: {done} of {self._n_trials} trials have ended"), refresh=True)


def check_place_of_search(run: Run) -> None:
    """Raise :class:`AskdError` for a run on a store: trials share files while they run."""
    if run.mirror is not None:
        raise AskdError(
            f"askd tune: the run is on a store ({run.place}), but trials share files: set runs_root to a folder that "
            f"all nodes see; with data_root={run.data_path.parent} shards and labels stay on the store"
        )
