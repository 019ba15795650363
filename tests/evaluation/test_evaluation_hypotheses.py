from dataclasses import replace
from pathlib import Path

from hypothesis_rows import make_row

from askd_ray.data.shards import write_table
from askd_ray.evaluation.hypotheses import RAW, SERVED, read_hypotheses, to_table, write_hypotheses

ROW = make_row("m", "a b", "a c", token_texts=(" a", " c"), token_probs=(0.5, 0.25), ended=True)
ROWS = [ROW, replace(ROW, path=RAW, hypothesis="a a a", ended=False), replace(ROW, token_texts=None, token_probs=None)]


def test_rows_are_read_as_they_were_written(tmp_path: Path):
    write_hypotheses(tmp_path / "h.parquet", ROWS)
    assert read_hypotheses(tmp_path / "h.parquet") == ROWS
    assert [row.path for row in ROWS] == [SERVED, RAW, SERVED]


def test_rows_of_an_earlier_version_are_raw(tmp_path: Path):
    write_table(tmp_path / "old.parquet", to_table([ROW]).drop_columns(["path"]))
    assert read_hypotheses(tmp_path / "old.parquet") == [replace(ROW, path=RAW)]
