"""Which files a source consists of: patterns, and files in a folder that would be skipped."""

import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audio_files import noise_file

from askd_ray.config.source import Source
from askd_ray.data.sources import read_rows, survey
from askd_ray.errors import AskdError
from askd_ray.location import Location


def ids_of(path, kind="manifest", **fields):
    return [row.id for row in read_rows(Source(path=str(path), kind=kind, **fields))]


@pytest.fixture
def tar(tmp_path):
    """Write a tar of one sample, which is named as the tar is."""

    def _tar(name, mode="w"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, mode) as file:
            for member, data in (("0.wav", noise_file()), ("0.json", json.dumps({"id": name, "text": "x"}).encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return path

    return _tar


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.TAR", "w"), ("x.tar.xz", "w:xz"), ("x.Tar.Gz", "w:gz"), ("x.tbz2", "w:bz2"), ("x.txz", "w:xz")],
)
def test_compressed_tars_with_any_case_of_suffix(tmp_path, tar, name, mode):
    tar(name, mode)
    assert ids_of(tmp_path, "webdataset") == [name]


@pytest.mark.parametrize("cut", [100, 500])
def test_damaged_xz_is_refused(tmp_path, tar, cut):
    path = tar("x.tar.xz", "w:xz")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AskdError, match=r"x\.tar\.xz is damaged or no tar file"):
        ids_of(tmp_path, "webdataset")


def test_upper_case_parquet_suffix(tmp_path):
    pq.write_table(pa.table({"audio": ["a.wav"], "text": ["x"], "id": ["one"]}), tmp_path / "X.PARQUET")
    assert ids_of(tmp_path, "parquet") == ["one"]


@pytest.mark.parametrize("other", ["more.zip", "more.tar.zst", "more.parquet", "MORE.ARROW", "sub/more.rar"])
def test_unsupported_data_files_are_refused(tmp_path, tar, other):
    tar("x.tar")
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b"rows")
    with pytest.raises(AskdError, match=rf"kind: webdataset does not read {other.split('/')[-1]} .*pattern") as caught:
        ids_of(tmp_path, "webdataset")
    assert "\n" not in str(caught.value)
    assert ids_of(tmp_path / "*.tar", "webdataset") == ["x.tar"]


def test_files_without_rows_are_ignored(tmp_path, tar):
    tar("x.tar")
    for name in ("README.md", "LICENSE", ".hidden.zip", "_SUCCESS", "sizes.json"):
        (tmp_path / name).write_text("about")
    assert ids_of(tmp_path, "webdataset") == ["x.tar"]


def test_patterns_and_braces(tmp_path, tar):
    for name in ("a/train-000.tar", "a/train-001.tar", "a/train-002.tar", "a/other.tar", "b/c/train-003.tar"):
        tar(name)
    read = {
        "a/train-*.tar": ["a/train-000.tar", "a/train-001.tar", "a/train-002.tar"],
        "a/train-{000..001}.tar": ["a/train-000.tar", "a/train-001.tar"],
        "a/{other,train-002}.tar": ["a/other.tar", "a/train-002.tar"],
        "**/train-00[23].tar": ["a/train-002.tar", "b/c/train-003.tar"],
        "*/other.tar": ["a/other.tar"],
    }
    for pattern, names in read.items():
        assert ids_of(tmp_path / pattern, "webdataset") == names
        assert survey([Source(path=str(tmp_path / pattern), kind="webdataset")]).fingerprint
    with pytest.raises(AskdError, match=r"no file in it matches train-003\.tar"):
        ids_of(tmp_path / "a/train-{000..003}.tar", "webdataset")
    with pytest.raises(AskdError, match=r"kind: manifest reads \.jsonl"):
        ids_of(tmp_path / "a/*.tar")


def test_existing_name_with_pattern_characters(tmp_path, tar):
    path = tar("x[1].tar")
    assert ids_of(path, "webdataset") == ["x[1].tar"]


def test_relative_patterns(tmp_path, tar, monkeypatch):
    tar("a/x.tar")
    monkeypatch.chdir(tmp_path)
    assert ids_of("a/*.tar", "webdataset") == ids_of("*/x.tar", "webdataset") == ["a/x.tar"]


def test_patterns_on_a_store(s3, tar):
    for name in ("set/train-0.tar", "set/train-1.tar"):
        Location.of(s3(name)).write_bytes(tar(name).read_bytes())
    assert ids_of(s3("set/train-{0..1}.tar"), "webdataset") == ["set/train-0.tar", "set/train-1.tar"]
    assert ids_of(s3("set/*-1.tar"), "webdataset") == ["set/train-1.tar"]


def test_manifests_by_pattern(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"audio": f"{name}.wav", "text": name, "id": name}) + "\n")
    assert ids_of(tmp_path / "*.jsonl") == ["a", "b"]


def test_file_name_that_is_not_utf_8(tmp_path, tar):
    tar("x.tar")
    (tmp_path / "manifest.jsonl").write_text('{"audio": "0.wav", "text": "x"}')
    with open(os.fsencode(tmp_path) + b"/\xff.tar", "wb"):
        pass
    with pytest.raises(AskdError, match=r"the name of a file in it is not UTF-8: .*udcff\.tar'"):
        ids_of(tmp_path, "webdataset")
    with pytest.raises(AskdError, match="the name of a file in it is not UTF-8"):
        survey([Source(path=str(tmp_path / "manifest.jsonl"))])


def test_audio_by_absolute_path_and_by_uri(s3, tmp_path):
    (tmp_path / "far.wav").write_bytes(noise_file())
    lines = [
        {"audio": str(tmp_path / "far.wav"), "text": "x"},
        {"audio": "s3://b/x.wav", "text": "y"},
        {"audio": "ftp://x", "text": "z"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    local, stored, unknown = read_rows(Source(path=str(tmp_path / "m.jsonl")))
    assert local.read_audio(30.0) == noise_file()
    assert (str(stored.audio), stored.id) == ("s3://b/x.wav", "s3://b/x.wav")
    assert unknown.problem.startswith("unreadable audio: ftp://x: unknown scheme")
