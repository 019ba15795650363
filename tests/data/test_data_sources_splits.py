"""A split that the data bring is honoured: in a column, in the name of a file, in the name of a folder."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audio_files import noise_file

from askd_ray.config.source import Source
from askd_ray.data.sources import read_rows
from askd_ray.data.sources.splits import known_split, split_in_path, split_of_folder
from askd_ray.errors import AskdError


def rows_of(path, kind="manifest", **fields):
    return list(read_rows(Source(path=str(path), kind=kind, **fields)))


def a_parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"audio": {"bytes": noise_file(), "path": "x.wav"}, "text": "words", **columns}
    pq.write_table(pa.Table.from_pylist([row]), path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("validation", "dev"),
        ("valid", "dev"),
        ("val", "dev"),
        ("dev", "dev"),
        ("eval", "dev"),
        ("TEST", "test"),
        ("train-clean-100", "train"),
        ("train.clean.360", "train"),
        ("test_other", "test"),
        ("ood", None),
        ("trainer", None),
        ("train_dev", None),
        ("", None),
    ],
)
def test_split_names_are_normalised(name, split):
    assert known_split(name) == split


def test_split_column_is_used(manifest):
    names = ["train", "validation", "Test", "eval", None, "", float("nan")]
    rows = rows_of(manifest([{"split": name} for name in names]))
    assert [row.split for row in rows] == ["train", "dev", "test", "dev", "", "", ""]
    assert {row.problem for row in rows} == {""}


def test_unknown_split_name_is_quarantined_until_mapped(manifest):
    folder = manifest([{"split": "ood"}, {"split": "train"}])
    unknown, train = rows_of(folder)
    assert unknown.problem.startswith("unknown split: 'ood' is none of train, dev (or validation")
    assert "splits: {ood: test}" in unknown.problem and (unknown.split, train.problem) == ("", "")
    for meaning, split in {"test": "test", "train": "train", "hash": ""}.items():
        first, _ = rows_of(folder, splits={"ood": meaning})
        assert (first.split, first.problem) == (split, "")
    assert [row.split for row in rows_of(folder, splits={"train": "hash", "ood": "dev"})] == ["dev", ""]


def test_selection_by_an_unknown_split_name(manifest):
    folder = manifest([{"split": "ood"}, {"split": "validation"}, {"split": "dev"}, {"split": "train-clean-100"}])
    (row,) = rows_of(folder, split="ood")
    assert (row.split, row.problem) == ("", "")
    assert [row.split for row in rows_of(folder, split="dev")] == ["dev", "dev"]
    assert [row.split for row in rows_of(folder, split="train")] == ["train"]
    assert [row.split for row in rows_of(folder, split="train-clean-100")] == ["train"]
    with pytest.raises(AskdError, match=r"no row of the split 'trian': there is 'ood', 'validation', 'dev', 'train-"):
        rows_of(folder, split="trian")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "dev"),
        ("test.parquet", "test"),
        ("en/dev-3.parquet", "dev"),
        ("corpus-eval-00000.parquet", "dev"),
        ("data/test/0000.parquet", "test"),
        ("train/0000.PARQUET", "train"),
        ("split=test/part-0.parquet", "test"),
        ("split=validation/part-0.parquet", "dev"),
        ("0000.parquet", ""),
        ("contest-results.parquet", ""),
    ],
)
def test_split_from_hub_and_hive_layouts(tmp_path, path, split):
    a_parquet(tmp_path / "set" / path)
    (row,) = rows_of(tmp_path / "set", "parquet")
    assert (row.split, row.problem) == (split, "")


def test_split_from_the_name_of_the_source_folder(tmp_path):
    a_parquet(tmp_path / "test" / "0000.parquet")
    for path in (tmp_path / "test", tmp_path / "test" / "0000.parquet"):
        assert [row.split for row in rows_of(path, "parquet")] == ["test"]
    assert split_of_folder("test-clean") == "test-clean" and split_of_folder("train-clean-100") == "train-clean-100"
    assert split_of_folder("test_speech") == split_of_folder("contest") == ""


def test_split_column_overrides_the_file_name(tmp_path):
    a_parquet(tmp_path / "set" / "train-0.parquet", split="test")
    (row,) = rows_of(tmp_path / "set", "parquet")
    assert row.split == "test"


def test_file_named_for_two_splits_is_quarantined(tmp_path):
    a_parquet(tmp_path / "set" / "train_dev-00000-of-00001.parquet")
    (row,) = rows_of(tmp_path / "set", "parquet")
    assert row.problem.startswith("unknown split: 'train_dev' is none of")
    (row,) = rows_of(tmp_path / "set", "parquet", splits={"train_dev": "dev"})
    assert (row.split, row.problem) == ("dev", "")
    assert split_in_path(["train"], "dev.tar.gz") == "dev"


def test_language_and_domain_from_hive_folders(tmp_path):
    a_parquet(tmp_path / "set" / "language=de" / "domain=tele%20calls" / "split=dev" / "0.parquet")
    a_parquet(tmp_path / "set" / "language=fr" / "year=2024" / "0.parquet", language="it")
    a_parquet(tmp_path / "set" / "lang=sv" / "0.parquet")
    a_parquet(tmp_path / "set" / "language=__HIVE_DEFAULT_PARTITION__" / "0.parquet")
    rows = {
        row.where.removeprefix(f"{tmp_path}/set/").partition("/")[0]: row
        for row in rows_of(tmp_path / "set", "parquet")
    }
    german = rows["language=de"]
    assert (german.language, german.domain, german.split) == ("de", "tele calls", "dev")
    assert [rows[name].language for name in ("language=fr", "lang=sv")] == ["it", "en"]
    assert rows["language=__HIVE_DEFAULT_PARTITION__"].language == "en"
    mapped = rows_of(tmp_path / "set" / "lang=sv", "parquet", columns={"language": "lang"})
    assert [row.language for row in mapped] == ["sv"]


@pytest.mark.parametrize("selected", ["test", "validation"])
def test_selection_reads_only_files_of_the_split(tmp_path, selected):
    for name in ("train", "validation", "test"):
        a_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet", id=name)
    assert [row.id for row in rows_of(tmp_path / "set", "parquet", split=selected)] == [selected]
