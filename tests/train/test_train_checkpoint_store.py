"""Checkpoints on a real S3 server: killed at any moment, a run resumes on any machine and ends with the same bits."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from killed_run import CPU, DyingContext, KilledError, assert_same_run, killed
from small_run import with_objective
from stalling_proxy import stalling_proxy

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.mirror import Mirror
from askd_ray.runs import Run
from askd_ray.train.build import build_loop
from askd_ray.train.checkpoint_store import read_manifest
from askd_ray.train.context import PlainContext
from askd_ray.train.track import read_metrics

N_STEPS = 5
BEST = {"self_teacher": {"kind": "best", "switch": 0.5, "weight": 0.15}}


def with_steps(labelled: Recipe, objective: dict[str, Any] | None = None) -> Recipe:
    values = labelled.objective.model_dump(mode="json") if objective is None else objective
    return with_objective(labelled, values, train={"epochs": 1, "checkpoint_steps": 2})


@pytest.fixture(scope="module")
def undisturbed(labelled: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on this machine without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    build_loop(with_steps(labelled), PlainContext(CPU), folder, "key").run()
    return folder


@pytest.fixture
def recipe(labelled: Recipe, s3: Callable[[str], str], cache: Path) -> Recipe:
    """The same run on a store; its mirror is in an empty cache."""
    return on_store(with_steps(labelled), s3("runs"))


def on_store(recipe: Recipe, root: str) -> Recipe:
    return recipe.model_copy(update={"runs_root": root, "data_root": recipe.runs_root})


def train(recipe: Recipe) -> dict[str, Any]:
    return build_loop(recipe, PlainContext(CPU), Run(recipe).distill, "key").run()


def on_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on this is another machine, with a cache of its own."""
    monkeypatch.setenv("ASKD_CACHE", str(folder))


def assert_stored_run(recipe: Recipe, undisturbed: Path) -> None:
    """The folder here and the store have the same run, which is the undisturbed one, and nothing else."""
    run = Run(recipe)
    assert run.mirror is not None
    assert_same_run(run.distill, undisturbed)
    here, there = run.mirror.local("distill"), run.mirror.stored("distill")
    assert there.pop("distill/checkpoint.json") and there == here
    manifest = read_manifest(run.place / "distill")
    assert {f"distill/{name}" for name in manifest["files"]} == here.keys() and manifest["step"] == N_STEPS
    assert {name.split("/")[1] for name in here if "best" in name} == {"best"}


def test_run_on_a_store_is_that_of_a_folder(recipe: Recipe, undisturbed: Path, cache: Path, monkeypatch):
    summary = train(recipe)
    assert_stored_run(recipe, undisturbed)
    on_machine(monkeypatch, cache / "other")
    assert train(recipe) == summary, "nothing is left to train, and the ledger is there"
    assert_stored_run(recipe, undisturbed)


class Disk:
    """Counts the changes of the store and, at the given one, fails as a killed process does: for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dies_at: int | None = None):
        self.n, self.dies_at = 0, dies_at
        self._lock = threading.Lock()
        for name in ("output", "delete", "delete_folder"):
            monkeypatch.setattr(Location, name, self._counted(getattr(Location, name)))

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(place: Location) -> Any:
            with self._lock:
                self.n += bool(place.root)
                dead = self.dies_at is not None and self.n > self.dies_at
            if dead:
                raise KilledError
            return original(place)

        return change


@pytest.mark.slow
def test_run_killed_at_any_change_of_the_store(
    recipe: Recipe, s3: Callable[[str], str], undisturbed: Path, cache: Path
):
    """It resumes on the same machine, or on an empty one."""
    with pytest.MonkeyPatch.context() as patched:
        disk = Disk(patched)
        train(recipe)
        n_changes = disk.n
    assert n_changes > 30
    for number, dies_at in enumerate(range(2, n_changes, n_changes // 6)):
        again = recipe.model_copy(update={"runs_root": s3(f"runs-{number}")})
        with pytest.MonkeyPatch.context() as patched:
            on_machine(patched, cache / str(number))
            with patched.context() as dying, pytest.raises(KilledError):
                Disk(dying, dies_at)
                train(again)
            if number % 2:
                on_machine(patched, cache / f"{number}-other")
            train(again)
            assert_stored_run(again, undisturbed)


@pytest.mark.slow
def test_machines_take_turns(recipe: Recipe, undisturbed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """The first machine's folder is older than the store when the run comes back to it."""
    killed(recipe, Run(recipe).distill, 3)
    on_machine(monkeypatch, cache / "second")
    killed(recipe, Run(recipe).distill, 2)
    on_machine(monkeypatch, cache)
    train(recipe)
    assert_stored_run(recipe, undisturbed)


@pytest.mark.slow
def test_lost_store_is_a_one_line_error_and_the_checkpoint_stays(
    recipe: Recipe, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
):
    upload = Mirror._upload

    def lost(self: Mirror, name: str) -> None:
        if name.startswith("checkpoints/step-00000004"):
            raise AskdError(f"{self.store}: the store cannot be reached")
        upload(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "_upload", lost)
        expected = (
            r"^cannot write a checkpoint to the store: .*/distill: the store cannot be reached; the previous check"
        )
        with pytest.raises(AskdError, match=expected) as caught:
            train(recipe)
    assert "\n" not in str(caught.value) and "mysecret" not in str(caught.value)
    assert read_manifest(Run(recipe).place / "distill")["step"] == 2
    train(recipe)
    assert_stored_run(recipe, undisturbed)


@pytest.mark.slow
def test_missing_file_of_a_checkpoint_is_named(recipe: Recipe, cache: Path, monkeypatch: pytest.MonkeyPatch):
    train(recipe)
    (Run(recipe).place / "distill/checkpoints/step-00000005/student.safetensors").delete()
    with pytest.raises(AskdError, match=r"^s3://.*/step-00000005/student\.safetensors is missing: --force starts"):
        train(recipe)


@pytest.mark.slow
def test_training_goes_on_during_an_upload(recipe: Recipe, s3_server: str, undisturbed: Path):
    place = Run(recipe).place / "distill"
    assert read_manifest(place) == {}  # opens the store: Arrow opens none while a request is sent
    with stalling_proxy(s3_server) as proxy:
        slow = recipe.model_copy(update={"runs_root": recipe.runs_root.replace(s3_server, proxy.address)})
        proxy.stall(rb"PUT \S*step-00000002/optimizer")
        thread = threading.Thread(target=train, args=(slow,))
        thread.start()
        assert proxy.stalled.wait(60)
        until(lambda: last_step(slow) == 4)  # the next checkpoint waits for this one
        time.sleep(0.3)
        assert last_step(slow) == 4 and read_manifest(place) == {}
        proxy.release()
        thread.join()
        assert_stored_run(slow, undisturbed)


def last_step(recipe: Recipe) -> int:
    return max((int(line["step"]) for line in read_metrics(Run(recipe).distill)), default=0)


def until(moment: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < end
        time.sleep(0.01)


def two_machines(recipe: Recipe, folder: Path, name: str, dies_after: int = 1000) -> None:
    """Train with two ranks, each on a machine of its own; a run on this machine goes into ``folder/name``."""
    mp.spawn(_rank, (recipe.model_dump_json(), folder, name, dies_after), nprocs=2)


def _rank(rank: int, text: str, folder: Path, name: str, dies_after: int) -> None:
    os.environ["ASKD_CACHE"] = str(folder / f"{name}-{rank}")
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}.ranks", rank=rank, world_size=2)
    recipe = Recipe.model_validate_json(text)
    context = DyingContext(CPU, rank, 2)
    context.dies_after = dies_after
    run = Run(recipe)
    build_loop(recipe, context, run.distill if run.mirror is not None else folder / name, "key").run()
    dist.destroy_process_group()


@pytest.mark.full
@pytest.mark.slow
def test_machines_without_a_shared_folder(
    labelled: Recipe, s3: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The self-teacher is loaded from the best student: rank 1 fetches it from the store, and the ledger is of both."""
    here = with_objective(labelled, BEST, train={"checkpoint_steps": 2, "batching": {"utterances": 1}})
    two_machines(here, tmp_path, "expected")
    there = on_store(here, s3("runs"))
    with pytest.raises(mp.ProcessRaisedException, match="KilledError"):
        two_machines(there, tmp_path, "first", dies_after=11)
    step = read_manifest(Run(there).place / "distill")["step"]
    assert step > 0
    two_machines(there, tmp_path, "second")
    on_machine(monkeypatch, tmp_path / "second-0")
    assert_same_run(Run(there).distill, tmp_path / "expected")
    on_machine(monkeypatch, tmp_path / "second-1")
    assert not (Run(there).distill / "best").exists(), "rank 1 writes its part of the ledger only"
