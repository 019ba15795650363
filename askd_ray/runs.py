"""A run's folder, here or on a store: the paths of each stage, and the records of finished stages."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from askd_ray.config.differences import SettingDifference, copy_decided, differences, plain
from askd_ray.config.load import dump_recipe, without_secrets
from askd_ray.config.schema import Recipe
from askd_ray.config.start import RECIPE_FILE
from askd_ray.errors import AskdError
from askd_ray.files import digest, local_path, remove, scheme_of, to_json
from askd_ray.location import Location
from askd_ray.mirror import MirroredFolder
from askd_ray.progress import console
from askd_ray.provenance import git_sha, versions

BUNDLE = "bundle"
"""The folder of the exported student, in the run's folder."""

_DATA_STAGES = ("prepare", "label")
_BUILT_ON = ("prepare", "label", "distill")  # in order; later stages must agree with the settings of these stages
_NEEDS = {"label": "prepare", "tune": "label", "distill": "label", "export": "distill", "evaluate": "export"}


@dataclass(frozen=True)
class Run(MirroredFolder):
    """The folder ``<runs_root>/<name>`` of a recipe, with its stages; its data may be in another folder.

    A run on a store has a copy on each machine, of which only the fetched folders are up to date. Records and the
    recipe are read from the store, and written there.
    """

    recipe: Recipe

    @property
    def place(self) -> Location:
        """The run's folder, on this machine or on a store; :attr:`path` is the folder or its copy on this machine."""
        if scheme_of(self.recipe.runs_root) is not None:
            return Location.of(self.recipe.runs_root) / self.recipe.name
        return Location.of(local_path(self.recipe.runs_root).resolve() / self.recipe.name)

    def clear(self, stage: str) -> None:
        """Delete a stage's record, then the folder of its name."""
        self.forget(stage)
        remove(self.path / stage)
        self.send(stage)

    @property
    def data_path(self) -> Location:
        """The folder with the shards and labels: that of this run, or of the run ``recipe.data_run``."""
        root = self.place.parent if self.recipe.data_root is None else Location.of(self.recipe.data_root)
        return root / (self.recipe.data_run or self.recipe.name)

    def inside(self, folder: str, **settings: Any) -> Recipe:
        """Return the recipe of a run in a folder of this run's, on the same shards and labels, with other settings."""
        shared = {"data_root": self.data_path.parent.uri, "data_run": self.recipe.data_run or self.recipe.name}
        here = {**self.recipe.model_dump(mode="json"), **shared, "runs_root": (self.place / folder).uri}
        return Recipe.model_validate({**here, **settings})

    @property
    def shards(self) -> Location:
        """Parquet files of utterances, several per split."""
        return self.data_path / "shards"

    @property
    def labels(self) -> Location:
        """The teacher's soft labels: one file per shard, with the same name.

        Labels of a temperature other than 1 are in a separate folder, so that runs with different temperatures can
        share the shards.
        """
        return self.data_path / f"labels{self._of_temperature}"

    @property
    def _of_temperature(self) -> str:
        temperature = 1.0 if self.recipe.teacher.online else self.recipe.objective.temperature.start
        return "" if temperature == 1.0 else f"-t{temperature:g}"

    @property
    def distill(self) -> Path:
        """Checkpoints, TensorBoard events and the best student."""
        return self.path / "distill"

    @property
    def student(self) -> Path:
        """The best student by dev WER, as a transformers folder."""
        return self.distill / "best"

    @property
    def bundle(self) -> Path:
        """The exported student."""
        return self.path / BUNDLE

    def record(self, stage: str) -> dict[str, Any] | None:
        """Return the record of a finished stage, or None if it has not finished."""
        record = self._record(stage)
        return json.loads(record.read_bytes()) if record.is_file() else None

    def _record(self, stage: str) -> Location:
        name = f"{stage}{self._of_temperature}.json" if stage == "label" else f"{stage}.json"
        return (self.data_path if stage in _DATA_STAGES else self.place) / name

    def result(self, stage: str) -> dict[str, Any]:
        """Return the result of a finished stage, for the stages that need it.

        Raises :class:`AskdError` when it has not finished, or when this stage or an earlier one ran with other settings
        than this recipe's.
        """
        record = self.record(stage)
        if record is None:
            raise AskdError(f"run {self.recipe.name}: stage '{stage}' has not finished: run `askd {stage}` first")
        self._check_agrees(stage)
        return record["result"]

    def check_earlier(self, stage: str) -> None:
        """Check that the stage before ``stage`` has finished, with the settings of this recipe.

        Raises :class:`AskdError` as :meth:`result` does.
        """
        has_no_bundle = stage == "evaluate" and self.recipe.student.reader == "llm"
        if stage in _NEEDS:
            self.result("distill" if has_no_bundle else _NEEDS[stage])

    def used(self, stage: str) -> Recipe:
        """Return the recipe with which a finished stage ran; without a record, this run's recipe."""
        return next((recipe for name, recipe in self._recorded() if name == stage), self.recipe)

    def key(self, stage: str) -> str:
        """Return the key of a finished stage, for later stages: that of its content if it has one, else of its inputs.

        Sources that are copied or touched make `prepare` read them again, but the same rows keep later stages valid.

        Raises :class:`AskdError` as :meth:`result` does.
        """
        self.result(stage)
        record = self.record(stage)
        assert record is not None
        return record["result"].get("content", record["key"])

    def finished(self, stage: str, key: str) -> dict[str, Any] | None:
        """Return the stage's result if it has finished with the same inputs, else None."""
        record = self.record(stage)
        return record["result"] if record is not None and record["key"] == key else None

    def forget(self, stage: str) -> None:
        """Delete the stage's record, before its files are replaced: until the new record, they are not trusted."""
        self._record(stage).delete()

    def resend(self, stage: str, name: str) -> None:
        """Send a file or folder of a finished stage that has changed; until all is there, the stage is unfinished."""
        if self.mirror is not None:
            record = self._record(stage).read_bytes()
            self.forget(stage)
            self.send(name)
            self._record(stage).write_bytes(record)

    def begin(self, stage: str, force: bool = False) -> float:
        """Write the run's recipe, print the settings that replace finished work, and return the start time.

        :meth:`finish` needs the start time. The written recipe has the settings of ``stage`` from this recipe, and the
        settings of other finished stages as they ran.

        Raises :class:`AskdError` when rows of other sources would be replaced; ``force`` allows this.
        """
        self._print_replaced(stage, force)
        (self.place / RECIPE_FILE).write_bytes(dump_recipe(self._merged(stage)).encode())
        return time.monotonic()

    def _recorded(self) -> Iterator[tuple[str, Recipe]]:
        """Yield the finished stages of :data:`_BUILT_ON`, with their recipes, except invalid ones of other versions."""
        for stage in _BUILT_ON:
            record = self.record(stage)
            if record is not None:
                try:
                    yield stage, Recipe.model_validate(record["recipe"])
                except ValidationError:
                    continue

    def _check_agrees(self, last: str) -> None:
        """Check the settings of the stages up to ``last``; later stages may run again with new settings."""
        for stage, recipe in self._recorded():
            if last in _BUILT_ON and _BUILT_ON.index(stage) > _BUILT_ON.index(last):
                break
            for difference in differences(recipe, self.recipe, stage):
                raise AskdError(
                    f"run {self.recipe.name}: {difference.key} = {difference.given_text}, but `askd {stage}` ran with "
                    f"{difference.recorded_text}: keep that value (without --recipe, a command uses the run's recipe), "
                    f"run `askd {stage}` again with the new value, or give this run another name (--set name=...)"
                )

    def _print_replaced(self, stage: str, force: bool) -> None:
        record = self.record(stage)
        if record is None:
            return
        try:
            before = Recipe.model_validate(record["recipe"])
        except ValidationError:
            return
        changed = differences(before, self.recipe, stage)
        old_sources = {source["path"] for source in plain(before)["data"]["sources"]}
        removed = sorted(old_sources - {source["path"] for source in plain(self.recipe)["data"]["sources"]})
        if stage == "prepare" and removed and not force:
            n = sum(record["result"].get("utterances", {}).values())
            raise AskdError(
                f"run {self.recipe.name} has {n} utterances of {', '.join(removed)}, which data.sources does not name: "
                "give this run another name (--set name=...), or use --force to replace them"
            )
        if changed:
            console.print(f"{stage}: runs again, because settings have changed: {_listed(changed)}", markup=False)

    def _merged(self, stage: str) -> Recipe:
        values = plain(self.recipe)
        for other, recipe in self._recorded():
            if other == stage:
                continue
            kept = differences(recipe, self.recipe, other)
            if kept and stage != "tune":  # a search does not depend on trained students
                console.print(
                    f"{stage}: the run's recipe keeps the settings of `askd {other}`, not {_listed(kept)}",
                    markup=False,
                )
            copy_decided(plain(recipe), values, other)
        try:
            return Recipe.model_validate(values)
        except ValidationError:  # the settings of other stages do not fit the new settings
            return Recipe.model_validate(plain(self.recipe))

    def finish(self, stage: str, key: str, result: dict[str, Any], begun: float) -> dict[str, Any]:
        """Write the record of a finished stage: result, time, recipe, git SHA and versions. Returns ``result``."""
        record = {
            "stage": stage,
            "key": key,
            "wall_s": round(time.monotonic() - begun, 2),
            "result": result,
            "git_sha": git_sha(),
            "versions": versions(),
            "recipe": without_secrets(self.recipe).model_dump(mode="json"),
        }
        self._record(stage).write_bytes(to_json(record).encode())
        return result


def _listed(changed: list[SettingDifference]) -> str:
    return "; ".join(str(difference) for difference in changed)


Result = dict[str, Any]
"""What a stage returns and its record keeps."""


@dataclass(frozen=True)
class StageWork:
    """A stage of a run: whether it is finished, and how it is carried out. See :func:`run_stage`."""

    run: Run
    stage: str
    key: str | Callable[[Result], str]
    """The key of everything that decides the result (:func:`stage_key`), or a function that finds it in the result."""
    done: Result | None
    """The result, if the stage has finished with the same inputs and its files are still there."""
    work: Callable[[], Result]
    summary: Callable[[Result], str] = str
    """What to say of a finished stage, in a few words."""
    writes: tuple[str, ...] = ()
    """The files and folders of the run that the work writes. For a run on a store they are sent before the record."""
    forgets: bool = True
    """Whether the record of earlier work is removed before this work begins; otherwise the work removes it itself,
    when it begins to replace files."""


def run_stage(stage: StageWork, force: bool = False) -> Result:
    """Return a stage's result: the recorded one if it has finished with the same inputs, else that of its work.

    The recipe is written before the work and the record after it: a stage that was killed counts as not finished.

    Raises :class:`AskdError` as :meth:`Run.begin` does, and what the work raises.
    """
    run, name = stage.run, stage.stage
    if stage.done is not None and not force:
        console.print(f"{name}: finished already ({stage.summary(stage.done)})", markup=False)
        return stage.done
    begun = run.begin(name, force)
    if stage.forgets:
        run.forget(name)
    result = stage.work()
    run.send(*stage.writes)
    return run.finish(name, stage.key if isinstance(stage.key, str) else stage.key(result), result, begun)


def stage_key(*inputs: Any) -> str:
    """Return the key of a stage's inputs: recipe sections and the keys of earlier stages."""
    return digest([i.model_dump(mode="json") if hasattr(i, "model_dump") else i for i in inputs])
