"""Kill a run in the middle of its data, and compare the resumed run with an undisturbed one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.sampler import DataCursor, Sampler
from askd_ray.data.schema import Batch
from askd_ray.train.build import build_loop
from askd_ray.train.context import PlainContext
from askd_ray.train.ledger import read_ledger
from askd_ray.train.track import read_metrics

CPU = torch.device("cpu")
UNIQUE = ("time_s", "utterances_per_s", "data_wait_share")  # metrics that differ between any two runs


class KilledError(Exception):
    pass


class DyingContext(PlainContext):
    """Dies in the middle of the data, as a worker does."""

    dies_after = 0

    def batches(self, loader: BatchLoader, sampler: Sampler, cursor: DataCursor) -> Iterator[Batch]:
        for n, batch in enumerate(super().batches(loader, sampler, cursor)):
            if n == self.dies_after:
                raise KilledError
            yield batch


def killed(recipe: Recipe, folder: Path, dies_after: int, **parts: Any) -> None:
    """Run a recipe's loop, with other parts, into a folder until it dies after ``dies_after`` batches."""
    context = DyingContext(CPU)
    context.dies_after = dies_after
    with pytest.raises(KilledError):
        build_loop(recipe, context, folder, "key", **parts).run()


def checkpoint(folder: Path, file: str = "student") -> dict[str, torch.Tensor]:
    """The tensors of a run's only checkpoint."""
    (found,) = (folder / "checkpoints").glob("step-*")
    return load_file(found / f"{file}.safetensors")


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """A run's metrics without those in ``UNIQUE``."""
    return [{k: v for k, v in m.items() if k not in UNIQUE} for m in read_metrics(folder)]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Check that both runs ended with the same bits, and logged the same metrics and ledger."""
    for file in ("student", "optimizer"):
        found, expected_tensors = checkpoint(folder, file), checkpoint(expected, file)
        assert found.keys() == expected_tensors.keys()
        for name, value in found.items():
            assert torch.equal(value, expected_tensors[name]), name
    files = [sorted(path.glob("self_teacher/*")) for path in (folder, expected)]
    assert [f.name for f in files[0]] == [f.name for f in files[1]]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
    lines = metrics_of(folder)
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    assert lines == metrics_of(expected)
    assert ledger_of(folder) == ledger_of(expected) != []


def ledger_of(folder: Path) -> list[dict[str, object]]:
    """A run's ledger, row by row."""
    return read_ledger(folder / "ledger").to_pylist()
