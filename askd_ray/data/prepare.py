"""The first stage: sources become shards, and what cannot be used is set aside with a reason."""

import json
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from rich.table import Table

from askd_ray.audio.decode import AudioError, decode, duration_s
from askd_ray.config.load import without_secrets
from askd_ray.config.schema import Data, Recipe
from askd_ray.data.schema import SPLITS, Split, Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.data.sources import SourceRow, read_rows, survey
from askd_ray.errors import AskdError
from askd_ray.files import place_of
from askd_ray.location import Location, at_once
from askd_ray.progress import bar, console
from askd_ray.runs import Run, stage_key

QUARANTINE = "quarantine.jsonl"
"""Beside the shards: a line for every row that is not in them (id, source, reason, detail)."""

NO_TEXT = "empty text"
"""The reason of a row without text, where targets are references."""

SILENCE_PEAK = 1e-3
"""A clip whose loudest sample stays below this (-60 dBFS) holds no speech."""

_PUNCTUATION = re.compile(r"[^\w']+")  # "Goodbye." and "goodbye" are the same prompt: one split

_NO_REFERENCE: dict[Split, str] = {split: f"no reference for the {split} split" for split in SPLITS}

_AHEAD = 8  # rows that may wait decoded for their turn, a thread

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why: ``reason`` is one of a few, ``detail`` says more."""

    id: str
    source: str
    reason: str
    detail: str


@dataclass
class _Tally:
    """What was read, and where it went."""

    read: int = 0
    utterances: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    seconds: dict[Split, float] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0.0))
    speakers: dict[Split, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})
    shards: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    quarantined: Counter[str] = field(default_factory=Counter)
    without_text: int = 0


def prepare(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Write the recipe's sources as shards of its run; unless ``force``, finished work is not done again.

    Rows without text are set aside, unless the recipe's targets are ``pseudo``: then they are train data.

    Returns ``{"read", "utterances": {split: n}, "minutes": {split: min}, "quarantined": {reason: n}, "without_text"}``,
    the last being how many of the train utterances have no text.
    Raises :class:`AskdError`: no or unusable sources, no usable row, or too many quarantined ones; the shards are then
    gone, and only the quarantine file stays for reading. Raises :class:`OSError` where the folder cannot be written.
    """
    data, run = recipe.data, Run(recipe)
    if not data.sources:
        raise AskdError(f"recipe {recipe.name}: data.sources is empty: --set data.sources=[{{path: FOLDER}}] names one")
    pseudo = recipe.targets.kind == "pseudo"
    surveyed = survey(data.sources, needs_text=not pseudo)
    inputs = (without_secrets(recipe).data, surveyed.fingerprint)
    key, pseudo_key = stage_key(*inputs), stage_key(*inputs, "without text")
    done = _finished(run, key, pseudo_key if pseudo else None)
    if done is not None and not force and _complete(run.shards, data, done):
        console.print(f"prepare: finished already, {sum(done['utterances'].values())} utterances in {run.shards}")
        return done
    begun = run.begin("prepare", force)
    run.forget("prepare")
    with run.shards.replaced() as folder:
        tally = _fill(folder, data, surveyed.n_rows, pseudo)
        trouble = _trouble(tally, data)
        if trouble:
            at_once(Location.delete, folder.files("*.parquet"))
    _print(tally)
    if trouble:
        raise AskdError(f"prepare: {trouble}; {run.shards / QUARANTINE} lists them")
    result = {
        "read": tally.read,
        "utterances": dict(tally.utterances),
        "minutes": {split: round(seconds / 60, 2) for split, seconds in tally.seconds.items()},
        "quarantined": dict(tally.quarantined.most_common()),
        "without_text": tally.without_text,
    }
    seen = tally.without_text + sum(tally.quarantined[reason] for reason in _NO_REFERENCE.values())
    return run.finish("prepare", pseudo_key if seen else key, result, begun)


def _finished(run: Run, key: str, pseudo_key: str | None) -> dict[str, Any] | None:
    """Return the result of finished work that is what this would be: without rows that lack text both kinds agree."""
    done = run.finished("prepare", key)
    if pseudo_key is None or (done is not None and NO_TEXT not in done["quarantined"]):
        return done
    return run.finished("prepare", pseudo_key)


def split_of(speaker: str, text: str, data: Data) -> Split:
    """Return the split of an utterance: a hash of its speaker, or of its text where no speaker is named.

    Stable across runs, machines and sources: a speaker is in one split only, and so are the same words.
    """
    # The first byte keeps a speaker apart from the text of the same letters.
    name = f"s{speaker}" if speaker else f"t{' '.join(_PUNCTUATION.sub(' ', text.casefold()).split())}"
    place = place_of(name)
    if place < data.test_share:
        return "test"
    return "dev" if place < data.test_share + data.dev_share else "train"


def check_row(row: SourceRow, data: Data, pseudo: bool = False) -> Utterance | Rejected:
    """Return a row as an utterance whose audio decodes to speech-like samples, or the reason why it is none.

    With ``pseudo`` targets it needs no text to be train data; to be scored against it does.
    """
    without_name = not row.text and not row.speaker  # nothing that a hash could decide on
    split = "train" if without_name else split_of(row.speaker, row.text, data)
    if not row.text and not pseudo:
        return Rejected(row.id, row.where, NO_TEXT, "")
    if not row.text and split != "train":
        return Rejected(row.id, row.where, _NO_REFERENCE[split], "")
    try:
        audio = row.read_audio(data.max_duration_s)
        waveform = decode(audio, data.max_duration_s)
        peak = float(np.abs(waveform).max())
        if peak < SILENCE_PEAK:
            raise AudioError(f"silence: the peak is {peak:.1g} of full scale")
    except AudioError as error:
        reason, _, detail = str(error).partition(": ")
        return Rejected(row.id, row.where, reason, detail)
    return Utterance(
        id=row.id,
        audio=audio,
        path=row.path,
        text=row.text,
        duration_s=duration_s(waveform),
        speaker=row.speaker,
        language=row.language,
        domain=row.domain,
        split=split,
        licence=row.licence,
    )


def _complete(folder: Location, data: Data, done: dict[str, Any]) -> bool:
    """Whether all shards of a finished run are still there."""
    wanted = {split: -(-n // data.utterances_per_shard) for split, n in done["utterances"].items()}
    names = [file.name for file in folder.files("*.parquet")]
    return Counter(name.partition("-")[0] for name in names) == Counter(wanted)


def _fill(folder: Location, data: Data, n_rows: int | None, pseudo: bool) -> _Tally:
    """Write shards and quarantine file into ``folder``."""
    tally = _Tally()
    waiting: dict[Split, list[Utterance]] = {split: [] for split in SPLITS}
    rows = _without_duplicates(row for source in data.sources for row in read_rows(source, needs_text=not pseudo))
    threads = min(4, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        (folder / QUARANTINE).output() as quarantine,
        bar("Preparing", n_rows, "utterances") as progress,
    ):
        for outcome in _in_order(pool, lambda row: _outcome(row, data, pseudo), rows, threads * _AHEAD):
            tally.read += 1
            progress.advance()
            if isinstance(outcome, Rejected):
                tally.quarantined[outcome.reason] += 1
                quarantine.write(f"{json.dumps(vars(outcome), ensure_ascii=False)}\n".encode())
                continue
            waiting[outcome.split].append(outcome)
            if len(waiting[outcome.split]) == data.utterances_per_shard:
                _write_shard(folder, outcome.split, waiting, tally)
    for split in SPLITS:
        if waiting[split]:
            _write_shard(folder, split, waiting, tally)
    assert tally.read == sum(tally.utterances.values()) + tally.quarantined.total()
    return tally


def _without_duplicates(rows: Iterable[SourceRow]) -> Iterator[SourceRow | Rejected]:
    seen: set[str] = set()
    for row in rows:
        yield Rejected(row.id, row.where, "duplicate id", "") if row.id in seen else row
        seen.add(row.id)


def _outcome(row: SourceRow | Rejected, data: Data, pseudo: bool) -> Utterance | Rejected:
    return row if isinstance(row, Rejected) else check_row(row, data, pseudo)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[In], Out], items: Iterable[In], ahead: int
) -> Iterator[Out]:
    """Yield ``function`` of each item in the items' order, with at most ``ahead`` of them under way."""
    under_way: deque[Future[Out]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _write_shard(folder: Location, split: Split, waiting: dict[Split, list[Utterance]], tally: _Tally) -> None:
    """Write the waiting utterances of a split as its next shard, and count them."""
    utterances, waiting[split] = waiting[split], []
    write_table(folder / f"{split}-{tally.shards[split]:05d}.parquet", to_table(utterances))
    tally.shards[split] += 1
    tally.utterances[split] += len(utterances)
    tally.without_text += sum(not u.text for u in utterances)
    tally.seconds[split] += sum(u.duration_s for u in utterances)
    tally.speakers[split].update(u.speaker for u in utterances if u.speaker)


def _trouble(tally: _Tally, data: Data) -> str | None:
    """Return why the shards must not be used, or None."""
    quarantined = tally.quarantined.total()
    if tally.read == 0:
        return "the sources hold no rows"
    top = ", ".join(f"{n} {reason}" for reason, n in tally.quarantined.most_common(3))
    if quarantined == tally.read:
        return f"none of {tally.read} rows can be used ({top})"
    # Nothing is wrong with rows that only the split they fall into cannot use.
    bad = quarantined - sum(tally.quarantined[reason] for reason in _NO_REFERENCE.values())
    if bad > data.max_quarantine_share * tally.read:
        allowed = f"data.max_quarantine_share = {data.max_quarantine_share:g}"
        return f"{bad} of {tally.read} rows can't be used ({top}), and {allowed} allows fewer"
    return None


def _print(tally: _Tally) -> None:
    table = Table("split", title="Prepared", title_justify="left")
    for column in ("utterances", "minutes", "speakers", "shards"):
        table.add_column(column, justify="right")
    for split in SPLITS:
        cells = (tally.utterances[split], f"{tally.seconds[split] / 60:.1f}", len(tally.speakers[split]) or "-")
        table.add_row(split, *map(str, cells), str(tally.shards[split]))
    console.print(table)
    if tally.without_text:
        console.print(f"{tally.without_text} train utterances have no text: the teacher writes it")
    if tally.quarantined:
        console.print(f"Set aside: {', '.join(f'{n} {reason}' for reason, n in tally.quarantined.most_common())}")
