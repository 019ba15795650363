"""The first stage: write sources as shards, and put unusable rows into a quarantine file with a reason."""

import os
from collections.abc import Callable
from typing import Any

from askd_ray.config.data import Data
from askd_ray.config.load import without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.data.build_shards import QUARANTINE, ShardBuild, refuse_languages_of
from askd_ray.data.checked_parts import CheckedParts
from askd_ray.data.prepared import notes, rows_problem, splits_problem, table
from askd_ray.data.row_check import NO_REFERENCE, NO_TEXT
from askd_ray.data.schema import SPLITS
from askd_ray.data.shards import derived_paths, rows_hash
from askd_ray.data.sources import Survey, survey
from askd_ray.data.task_runner import LocalRunner, TaskRunner
from askd_ray.errors import AskdError
from askd_ray.files import digest
from askd_ray.location import Location, map_concurrently
from askd_ray.progress import console
from askd_ray.runs import Result, Run, StageWork, run_stage, stage_key
from askd_ray.text.languages import language_code

LARGE_BYTES = 8 << 30
"""Sources with more bytes (about two days of speech as FLAC) are prepared by Ray on all cores of the machine."""

_PARTS = "parts"
_THREADS = 4
_REQUESTS = 16


def prepare(recipe: Recipe, force: bool = False, cluster: Callable[[], TaskRunner] | None = None) -> Result:
    """Write the recipe's sources as shards of its run; finished work is repeated only with ``force``.

    Rows without text are set aside. With ``pseudo`` targets they become train data instead. ``cluster`` returns a
    runner on a Ray cluster, which does the work if ``RAY_ADDRESS`` names a cluster, or if the sources are larger than
    :data:`LARGE_BYTES`; otherwise this process does it. The shards are the same. What an interrupted call has checked
    is not checked again, unless with ``force``.

    Returns ``{"read", "utterances": {split: n}, "minutes": {split: min}, "quarantined": {reason: n}}``, and for the
    utterances: ``speakers`` and ``marked`` (the source names the split), by split; ``languages``, by code;
    ``speakers_in_several_splits``; and ``without_text``, the number of train utterances without a text. ``derived``:
    the clips that are made of them, ``{split: {kind: n}}``, which no other count includes; {} if none are made.
    ``shards``: the number of files by split. ``content``: a hash of the rows, on which the later stages build: it stays
    when files are copied or touched.
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
    if done is not None and not _complete(run.shards, done):
        done = None
    if done is not None and not force:
        refuse_languages_of(recipe, done["languages"], "prepare: the data have")
        _raise_problem(splits_problem(done, recipe))

    def key_of(result: Result) -> str:
        excluded = sum(result["quarantined"].get(reason, 0) for reason in NO_REFERENCE.values())
        return pseudo_key if result["without_text"] + excluded else key

    def summary(result: Result) -> str:
        return f"{sum(result['utterances'].values())} utterances in {run.shards}"

    def work() -> Result:
        return _prepare(run, surveyed, _runner(surveyed, cluster), force)

    result = run_stage(StageWork(run, "prepare", key_of, done, work, summary), force)
    (run.data_path / _PARTS).delete_folder()  # after the record: until then they are the only result
    return result


def _runner(surveyed: Survey, cluster: Callable[[], TaskRunner] | None) -> TaskRunner:
    if cluster is not None and (os.environ.get("RAY_ADDRESS") or surveyed.n_bytes > LARGE_BYTES):
        return cluster()
    return LocalRunner(min(_THREADS, os.cpu_count() or 1))


def _prepare(run: Run, surveyed: Survey, runner: TaskRunner, force: bool) -> Result:
    recipe, parts = run.recipe, run.data_path / _PARTS
    if force:
        parts.delete_folder()
    with run.shards.replaced() as folder:
        result = ShardBuild(recipe, surveyed, CheckedParts(parts), runner).write(folder)
        problem = rows_problem(result, recipe.data) or splits_problem(result, recipe)
        if problem:
            map_concurrently(Location.delete, folder.files("*.parquet"))
        elif recipe.data.derive is not None:
            from askd_ray.data.derive import derive  # loads torch, which a refusal does not need

            result["derived"] = derive(folder, recipe.data.derive, runner)
        if not problem:
            result["content"] = _content(folder, runner)
    console.print(table(result), *notes(result, recipe), sep="\n", markup=False)
    _raise_problem(problem, f"; {run.shards / QUARANTINE} lists what was set aside" if result["quarantined"] else "")
    return result


def _content(folder: Location, runner: TaskRunner) -> str:
    """Return a hash of the rows of all shards of a folder."""
    shards = [path for split in SPLITS for path in (*folder.files(f"{split}-*.parquet"), *derived_paths(folder, split))]
    return digest(
        list(zip([path.name for path in shards], runner.map(rows_hash, shards, local_threads=_REQUESTS), strict=True))
    )


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


def _finished(run: Run, key: str, pseudo_key: str | None) -> dict[str, Any] | None:
    """Return the recorded result that is valid for this recipe.

    If every row has a text, the results for ``reference`` and for ``pseudo`` targets are the same.
    """
    done = run.finished("prepare", key)
    if pseudo_key is None or (done is not None and NO_TEXT not in done["quarantined"]):
        return done
    return run.finished("prepare", pseudo_key)


def _complete(folder: Location, done: dict[str, Any]) -> bool:
    """Whether all shards of a finished run still exist."""
    names = [file.name.partition("-")[0] for file in folder.files("*.parquet")]
    has_derived = "derived" in names or not any(done["derived"].values())
    return has_derived and {split: names.count(split) for split in SPLITS} == done["shards"]
