"""The row index of real shards and labels, and of its parts."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexed import index_of
from small_run import utterances
from tiny_run import label_of

from askd_ray.audio.units import samples_of
from askd_ray.data import row_index as module
from askd_ray.data.labels import ARRAYS, SoftLabels, read_labels, write_labels
from askd_ray.data.row_index import DESCRIPTION, INDEX, RowIndex, row_index
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import BLOCK_ROWS, Block, read_rows, read_shard, to_table, write_table
from askd_ray.errors import AskdError
from askd_ray.location import Location
from askd_ray.randomness import utterance_key

KEY = {"top_k": 1}


@pytest.fixture(scope="module")
def clips(speech: Path) -> list[Utterance]:
    return utterances(speech, 24)


@pytest.fixture
def folder(clips: list[Utterance], tmp_path: Path) -> Path:
    """Two shards and their labels; the second one has more than a block, and some rows without labels."""
    many = [clips[i % len(clips)] for i in range(BLOCK_ROWS + 9)]
    for number, part in enumerate((clips[:5], many)):
        write_table(tmp_path / "shards" / f"train-{number:05d}.parquet", to_table(part), BLOCK_ROWS)
        labels = [_left_out(u) if i % 7 == 3 else label_of(u) for i, u in enumerate(part)]
        write_labels(tmp_path / "labels" / f"train-{number:05d}.parquet", labels, KEY)
    return tmp_path


def _left_out(utterance: Utterance) -> SoftLabels:
    empty = {name: getattr(label_of(utterance), name)[:0] for name in (*ARRAYS, "target_ids")}
    return replace(label_of(utterance), left_out="too long", **empty)


def opened(folder: Path) -> RowIndex:
    return row_index(Location.of(folder / "shards"), Location.of(folder / "labels"), KEY)


def test_index_has_every_labelled_row_where_it_is_stored(folder: Path):
    index = opened(folder)
    rows = index.rows(range(index.n_blocks))
    n_expected = 0
    for shard in sorted((folder / "shards").iterdir()):
        stored = read_shard(shard)
        labels = read_labels(folder / "labels" / shard.name, 1)
        n_expected += sum(not label.left_out for label in labels)
        for number in np.flatnonzero([index.block(b).shard == shard.name for b in rows.block]):
            at = index.block(int(rows.block[number])).rows.start + int(rows.row[number])
            utterance, label = stored[at], labels[at]
            assert not label.left_out and rows.tokens[number] == len(label.target_ids)
            assert int(rows.key[number]) == utterance_key(utterance.id)
            assert rows.samples[number] == samples_of(utterance.duration_s)
            assert index.domains[rows.domain[number]] == utterance.domain
    assert index.n_rows == len(rows.number) == n_expected and (rows.number == np.arange(n_expected)).all()
    assert index.n_blocks == 3  # of 5, 64 and 9 rows
    assert len(np.concatenate(list(index.teacher_losses()))) == n_expected


def test_index_is_small_and_mapped(folder: Path):
    lengths = np.random.default_rng(0).uniform(1, 20, 20_000).tolist()
    (batch,) = (module.record_batch(p.shard, p.block, p.starts, p.rows) for p in index_of(lengths, 64).parts)
    assert batch.nbytes / len(lengths) < 25
    assert not any(part.rows.flags.writeable for part in opened(folder).parts)


def test_fresh_index_is_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    index = opened(folder)
    monkeypatch.setattr(module, "_parts", lambda *_: pytest.fail("made again"))
    assert opened(folder) is index
    again = pickle.loads(pickle.dumps(index))
    assert again is index  # in the same process


@pytest.mark.parametrize("file", [INDEX, DESCRIPTION])
def test_missing_file_is_made_again(folder: Path, file: str):
    rows = opened(folder).n_rows
    (folder / "labels" / file).unlink()
    module.open_row_index.cache_clear()
    assert opened(folder).n_rows == rows and (folder / "labels" / file).is_file()


def test_changed_labels_make_a_new_index(folder: Path, clips: list[Utterance]):
    before = opened(folder)
    write_labels(folder / "labels" / "train-00000.parquet", [label_of(u) for u in clips[:5]], KEY)
    after = opened(folder)
    assert after.n_rows == before.n_rows + 1
    with pytest.raises(AskdError, match="have changed while they were read"):
        module.open_row_index(Location.of(folder / "labels"), "other")


def test_labels_with_another_key_are_refused(folder: Path):
    opened(folder)
    with pytest.raises(AskdError, match=r"stale soft labels .*top_k 1, the recipe asks for 2"):
        row_index(Location.of(folder / "shards"), Location.of(folder / "labels"), {"top_k": 2})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 4), st.data())
def test_rows_of_blocks_are_those_of_the_whole(n: int, block_rows: int, n_batches: int, data: st.DataObject):
    index = index_of([1.0 + i / 10 for i in range(n)], block_rows, n_batches)
    whole = index.rows(range(index.n_blocks))
    assert whole.number.tolist() == list(range(n))
    blocks = data.draw(st.lists(st.integers(0, index.n_blocks - 1), max_size=6))
    some = index.rows(blocks)
    expected = [i for block in blocks for i in range(n) if i // block_rows == block]
    assert some.number.tolist() == expected
    for part, column in zip(some, whole, strict=True):
        assert part.tolist() == column[expected].tolist() and part.dtype == column.dtype


@pytest.mark.parametrize("row_group_size", [None, 7, BLOCK_ROWS])
def test_blocks_of_any_shard_are_its_rows(clips: list[Utterance], tmp_path: Path, row_group_size: int | None):
    shard = tmp_path / "train-00000.parquet"
    many = [clips[i % len(clips)] for i in range(BLOCK_ROWS + 9)]
    write_table(shard, to_table(many), row_group_size)
    read = [u for number in (0, 1) for u in read_shard(shard, Block(shard.name, number).rows)]
    assert [u.id for u in read] == [u.id for u in many] and [u.audio for u in read] == [u.audio for u in many]
    some = read_rows(Location.of(shard), [70, 2, 2, 33], ["id"]).column("id").to_pylist()
    assert some == [many[i].id for i in (70, 2, 2, 33)]
    assert pq.ParquetFile(shard).num_row_groups == {None: 1, 7: 11, BLOCK_ROWS: 2}[row_group_size]


def test_row_beyond_the_shard_is_an_error(clips: list[Utterance], tmp_path: Path):
    shard = tmp_path / "train-00000.parquet"
    write_table(shard, to_table(clips[:3]))
    with pytest.raises(AskdError, match=r"train-00000\.parquet is damaged"):
        read_rows(Location.of(shard), [3], ["id"])
