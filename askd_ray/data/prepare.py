"""The first stage: write sources as shards, and put unusable rows into a quarantine file with a reason."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from askd_ray.config.data import Data
from askd_ray.config.load import without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.data.model_languages import languages_of_models, refuse_languages
from askd_ray.data.prepared import PrepareCounts, notes, rows_problem, splits_problem, table
from askd_ray.data.row_check import NO_REFERENCE, NO_TEXT, Rejected, RowLimits, check_row, clean_row
from askd_ray.data.schema import SPLITS, Utterance
from askd_ray.data.shard_writer import ShardWriter
from askd_ray.data.shards import derived_paths, rows_hash
from askd_ray.data.sources import SourceRow, read_rows, survey
from askd_ray.data.split import SplitAssignment, assign_split
from askd_ray.errors import AskdError
from askd_ray.files import digest
from askd_ray.location import Location, map_concurrently
from askd_ray.progress import bar, console
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.text.languages import language_code

QUARANTINE = "quarantine.jsonl"
"""The file beside the shards with one line for every row that was set aside (id, source, reason, detail)."""

_AHEAD = 8  # decoded rows that may wait in the queue, per thread

_In = TypeVar("_In")
_Out = TypeVar("_Out")
Outcome = tuple[Utterance, SplitAssignment] | Rejected
"""The result for one row."""


def prepare(recipe: Recipe, force: bool = False) -> Result:
    """Write the recipe's sources as shards of its run; finished work is repeated only with ``force``.

    Rows without text are set aside. With ``pseudo`` targets they become train data instead.

    Returns ``{"read", "utterances": {split: n}, "minutes": {split: min}, "quarantined": {reason: n}}``, and for the
    utterances: ``speakers`` and ``marked`` (the source names the split), by split; ``languages``, by code;
    ``speakers_in_several_splits``; and ``without_text``, the number of train utterances without a text. ``derived``:
    the clips that are made of them, ``{split: {kind: n}}``, which no other count includes; {} if none are made.
    ``content``: a hash of the rows, on which the later stages build: it stays when files are copied or touched.
    Raises :class:`AskdError`: no or unusable sources, no usable row, too many quarantined rows, a language that the
    teacher is known not to have, or no rows for a split that has a share and that a later stage needs. The shards are
    then deleted, and only the quarantine file may remain. Raises :class:`OSError` if the folder cannot be written.
    """
    data, run = recipe.data, Run(recipe)
    if not data.sources:
        raise AskdError(f"recipe {recipe.name}: data.sources is empty: --set data.sources=[{{path: FOLDER}}] names one")
    _check_languages_of_sources(data)
    _check_sounds(data)
    pseudo = recipe.targets.kind == "pseudo"
    surveyed = survey(data.sources, needs_text=not pseudo)
    inputs = (without_secrets(recipe).data, surveyed.fingerprint)
    key, pseudo_key = stage_key(*inputs), stage_key(*inputs, "without text")
    done = _finished(run, key, pseudo_key if pseudo else None)
    if done is not None and not _complete(run.shards, data, done):
        done = None
    if done is not None and not force:
        _refuse_languages(done["languages"], recipe)
        _raise_problem(splits_problem(done, recipe))

    def key_of(result: Result) -> str:
        excluded = sum(result["quarantined"].get(reason, 0) for reason in NO_REFERENCE.values())
        return pseudo_key if result["without_text"] + excluded else key

    def summary(result: Result) -> str:
        return f"{sum(result['utterances'].values())} utterances in {run.shards}"

    work = partial(_prepare, run, surveyed.n_rows)
    return run_stage(StageWork(run, "prepare", key_of, done, work, summary), force)


def _prepare(run: Run, n_rows: int | None) -> Result:
    recipe = run.recipe
    with run.shards.replaced() as folder:
        result = _fill(folder, recipe, n_rows)
        problem = rows_problem(result, recipe.data) or splits_problem(result, recipe)
        if problem:
            map_concurrently(Location.delete, folder.files("*.parquet"))
        elif recipe.data.derive is not None:
            from askd_ray.data.derive import derive  # loads torch, which a refusal does not need

            result["derived"] = derive(folder, recipe.data.derive)
        if not problem:
            result["content"] = _content(folder)
    console.print(table(result), *notes(result, recipe), sep="\n", markup=False)
    _raise_problem(problem, f"; {run.shards / QUARANTINE} lists what was set aside" if result["quarantined"] else "")
    return result


def _content(folder: Location) -> str:
    """Return a hash of the rows of all shards of a folder."""
    shards = [path for split in SPLITS for path in (*folder.files(f"{split}-*.parquet"), *derived_paths(folder, split))]
    return digest(list(zip([path.name for path in shards], map_concurrently(rows_hash, shards), strict=True)))


def _raise_problem(problem: str | None, more: str = "") -> None:
    if problem:
        raise AskdError(f"prepare: {problem}{more}")


def _check_languages_of_sources(data: Data) -> None:
    for number, source in enumerate(data.sources):
        try:
            language_code(source.language)
        except AskdError as error:
            raise AskdError(f"data.sources[{number}] {source.path}: {error}") from None


def _check_sounds(data: Data) -> None:
    """Check that the recordings without speech are there, before any row is read."""
    if data.derive is not None and data.derive.non_speech.files is not None:
        from askd_ray.audio.sounds import check_sound_files  # loads torch, which other refusals do not need

        check_sound_files("data.derive.non_speech.files", data.derive.non_speech.files)


def _refuse_languages(spoken: dict[str, int], recipe: Recipe, where: str = "prepare: the data have") -> None:
    for model, languages in languages_of_models(recipe).items():
        refuse_languages(spoken, model, languages, where)


def _finished(run: Run, key: str, pseudo_key: str | None) -> dict[str, Any] | None:
    """Return the recorded result that is valid for this recipe.

    If every row has a text, the results for ``reference`` and for ``pseudo`` targets are the same.
    """
    done = run.finished("prepare", key)
    if pseudo_key is None or (done is not None and NO_TEXT not in done["quarantined"]):
        return done
    return run.finished("prepare", pseudo_key)


def _complete(folder: Location, data: Data, done: dict[str, Any]) -> bool:
    """Whether all shards of a finished run still exist."""
    n_files = {split: -(-n // data.utterances_per_shard) for split, n in done["utterances"].items()}
    names = [file.name.partition("-")[0] for file in folder.files("*.parquet")]
    has_derived = "derived" in names or not any(done["derived"].values())
    return has_derived and {split: names.count(split) for split in SPLITS} == n_files


def _fill(folder: Location, recipe: Recipe, n_rows: int | None) -> dict[str, Any]:
    """Write shards and the quarantine file into ``folder``, and return the counts."""
    data, pseudo = recipe.data, recipe.targets.kind == "pseudo"
    writer = ShardWriter(folder, data.utterances_per_shard, data.max_dev_hours)
    counts = PrepareCounts(by_split=writer.counts, languages=writer.languages)
    threads = min(4, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        (folder / QUARANTINE).output() as quarantine,
        bar("Preparing", n_rows, "utterances") as progress,
    ):
        rows = _without_repeated_ids(_rows(data, pseudo))
        outcomes = _in_order(pool, lambda row: _outcome(row, data, pseudo), rows, threads * _AHEAD)
        for outcome in _without_repeated_audio(outcomes):
            counts.read += 1
            progress.advance()
            if isinstance(outcome, Rejected):
                _set_aside(quarantine, outcome, counts)
                continue
            utterance, assignment = outcome
            if utterance.language not in writer.languages:
                _refuse_languages({utterance.language: 1}, recipe, f"prepare: row {utterance.id}:")
            writer.add(utterance, assignment)
        for rejected in writer.finish():
            _set_aside(quarantine, rejected, counts)
    result = counts.result()
    assert counts.read == sum(result["utterances"].values()) + counts.quarantined.total()
    return result


def _set_aside(quarantine: pa.NativeFile, rejected: Rejected, counts: PrepareCounts) -> None:
    counts.quarantined[rejected.reason] += 1
    line = json.dumps(vars(rejected), ensure_ascii=False)
    quarantine.write(f"{line}\n".encode(errors="backslashreplace"))


def _rows(data: Data, pseudo: bool) -> Iterator[SourceRow]:
    for source in data.sources:
        yield from read_rows(source, needs_text=not pseudo)


def _without_repeated_ids(rows: Iterable[SourceRow]) -> Iterator[SourceRow | Rejected]:
    seen: set[str] = set()
    for row in rows:
        yield Rejected(row.id, row.where, "duplicate id", "") if row.id in seen else row
        seen.add(row.id)


def _without_repeated_audio(outcomes: Iterable[tuple[str, Outcome]]) -> Iterator[Outcome]:
    """Set aside rows that repeat the audio of an earlier row: with another id, it could go to another split."""
    first_ids: dict[bytes, str] = {}
    for where, outcome in outcomes:
        if isinstance(outcome, Rejected):
            yield outcome
            continue
        utterance = outcome[0]
        audio = hashlib.blake2b(utterance.audio, digest_size=16).digest()
        first = first_ids.setdefault(audio, utterance.id)
        repeated = first != utterance.id
        yield Rejected(utterance.id, where, "duplicate audio", f"the same as {first}") if repeated else outcome


def _outcome(row: SourceRow | Rejected, data: Data, pseudo: bool) -> tuple[str, Outcome]:
    """Return a row's position in its source and its result; repeated ids and audio are checked elsewhere.

    With ``pseudo`` targets train rows need no text; dev and test rows always need one.
    """
    cleaned = row if isinstance(row, Rejected) else clean_row(row)
    if isinstance(cleaned, Rejected):
        return cleaned.source, cleaned
    where = cleaned.where
    assignment = assign_split(cleaned.split, cleaned.speaker, cleaned.text, data)
    if not cleaned.text and not pseudo:
        return where, Rejected(cleaned.id, where, NO_TEXT, "")
    if not cleaned.text and assignment.split != "train" and not assignment.spare:
        return where, Rejected(cleaned.id, where, NO_REFERENCE[assignment.split], "")
    checked = check_row(cleaned, RowLimits.of(data), assignment.split)
    return where, checked if isinstance(checked, Rejected) else (checked, assignment)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """Yield ``function`` of each item in the items' order, with at most ``ahead`` calls in progress."""
    futures: deque[Future[_Out]] = deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) >= ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()
