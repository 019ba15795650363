"""Parts that ranks write: every rank finds the labels of all, on one folder or on a folder for each machine."""

import tempfile
from pathlib import Path
from random import Random

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.objective.label_parts import CachedLabels, LabelParts, exchange_parts, remove_parts, write_part

K = 3


def labels_of(utterance: str, part: int = 0) -> CachedLabels:
    length = len(utterance) % 4 + 1
    ids = torch.arange(length * K, dtype=torch.int32).reshape(length, K) + 100 * part + len(utterance)
    return CachedLabels(ids, torch.full((length, K + 1), part + 0.5, dtype=torch.float16))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=20, unique=True), max_size=4), st.randoms())
def test_labels_are_those_of_the_last_part_that_has_them(parts: list[list[str]], random: Random):
    with tempfile.TemporaryDirectory() as folder:
        written = LabelParts(Path(folder))
        for number, utterances in enumerate(parts):
            write_part(Path(folder) / str(number), {u: labels_of(u, number) for u in utterances})
            written.open([str(number)])
        last = {u: number for number, utterances in enumerate(parts) for u in utterances}
        wanted = [*last, *last][:25]
        random.shuffle(wanted)
        for utterance, found in zip(wanted, written.find(wanted), strict=True):
            expected = labels_of(utterance, last[utterance])
            assert torch.equal(found.ids, expected.ids) and torch.equal(found.buckets, expected.buckets)
        with pytest.raises(KeyError, match="no labels of the previous epoch for unknown"):
            written.find([*wanted, "unknown"])


def _rank(rank: int, root: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{root / 'store'}", rank=rank, world_size=2)
    for name, folder in (("one", root / "shared"), ("each", root / f"machine-{rank}")):
        parts = LabelParts(folder)
        for number in range(3):  # in the second exchange only one rank has something, in the third neither
            part = f"{number}-{rank}" if number == 0 or (number == 1 and rank == 1) else None
            if part is not None:
                write_part(folder / part, {f"{name} {part}": labels_of(part)})
            parts.open(exchange_parts(folder, part))
        assert parts.names == ["0-0", "0-1", "1-1"]
        assert len(parts.find([f"{name} {part}" for part in parts.names])) == 3
    dist.barrier()
    if rank == 0:
        remove_parts(root / "shared", ["1-1"])
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_find_the_labels_of_all(tmp_path: Path):
    mp.spawn(_rank, (tmp_path,), nprocs=2)
    assert [f.name for f in (tmp_path / "shared").iterdir()] == ["1-1"]
    for rank in range(2):
        assert sorted(f.name for f in (tmp_path / f"machine-{rank}").iterdir()) == ["0-0", "0-1", "1-1"]
