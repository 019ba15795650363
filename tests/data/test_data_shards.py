"""A split that is sealed is read by nothing in the process."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_run import small_run

from askd_ray.data.prefetch import prefetch
from askd_ray.data.shards import BLOCK_ROWS, read_table, read_utterances, sealed, shard_paths, write_table


def test_a_sealed_split_is_not_read_until_the_block_ends(tmp_path: Path, speech: Path):
    shards = small_run(tmp_path, speech).shards
    (path,) = shard_paths(shards, "test")
    with sealed("test"):
        assert len(read_utterances(shards, "dev")) == 4
        for read in (lambda: read_utterances(shards, "test"), lambda: read_table(path), lambda: read_table(str(path))):
            with pytest.raises(PermissionError, match=r"test-00000\.parquet: the test split is not read here"):
                read()
            with pytest.raises(PermissionError):  # nor in a thread
                next(prefetch([read], 1))
    assert len(read_utterances(shards, "test")) == 4


def test_row_groups_let_readers_fetch_a_part_of_a_shard(tmp_path: Path):
    path = tmp_path / "train-00000.parquet"
    write_table(path, pa.table({"id": [str(n) for n in range(150)]}), BLOCK_ROWS)
    with pq.ParquetFile(path) as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [64, 64, 22]


def test_seal_ends_after_an_error(tmp_path: Path, speech: Path):
    shards = small_run(tmp_path, speech).shards
    with pytest.raises(KeyError), sealed("test"):
        raise KeyError
    assert len(read_utterances(shards, "test")) == 4
