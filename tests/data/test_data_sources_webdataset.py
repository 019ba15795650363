"""WebDataset tars: which members are a sample, and what is no text or no audio in them."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from audio_files import noise_file
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import AudioError
from askd_ray.config.source import Source
from askd_ray.data.sources import read_rows
from askd_ray.data.sources import webdataset as reader


def rows_of(path, **fields):
    return list(read_rows(Source(path=str(path), kind="webdataset", **fields)))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("data", "text", "problem"),
    [
        ("Grüße\n".encode(), "Grüße", ""),
        ("\ufeffGrüße".encode(), "Grüße", ""),
        ("Grüße".encode("latin-1"), "", "text is not UTF-8: invalid start byte at byte 2"),
        ("Grüße".encode("utf-16"), "", "text is not UTF-8: invalid start byte at byte 0"),
        ("Gruss".encode("utf-16-le"), "", "damaged text: 'G\\x00r\\x00u\\x00s\\x00s\\x00' holds NUL characters"),
        (b"", "", ""),
    ],
)
def test_tar_text_that_is_not_utf_8_is_quarantined(tmp_path, data, text, problem):
    members = [("0.wav", noise_file()), ("0.txt", data), ("1.wav", noise_file()), ("1.txt", b"one")]
    first, second = rows_of(write_tar(tmp_path / "x.tar", members))
    assert (first.text, first.problem) == (text, problem)
    assert (second.text, second.problem) == ("one", "")


def test_samples_merged_by_a_dot_are_counted(tmp_path):
    members = [
        ("a/rec.1.wav", noise_file()),
        ("a/rec.1.txt", b"one"),
        ("a/rec.2.wav", noise_file()),
        ("a/rec.2.txt", b"two"),
        ("a/rec.3.wav", noise_file()),
        ("b.4.wav", noise_file()),
        ("b.4.txt", b"four"),
    ]
    *collapsed, good = rows_of(write_tar(tmp_path / "x.tar", members))
    assert len(collapsed) == len({row.id for row in collapsed}) == 3
    assert {row.problem for row in collapsed} == {
        "several samples under one key: a/rec.1.wav, a/rec.2.wav, a/rec.3.wav: "
        "the key of a sample is its name up to the first dot"
    }
    assert (good.text, good.path, good.problem) == ("four", "b.4.wav", "")


@pytest.mark.parametrize(
    ("names", "n_rows"),
    [
        (["0.wav", "0.flac"], 2),
        (["0.wav", "0.wav"], 2),
        (["0.wav", "0.en.txt", "0.de.txt"], 2),
        (["0.wav", "0.json", "0.json"], 2),
    ],
)
def test_sample_with_duplicate_member(tmp_path, names, n_rows):
    members = [(name, noise_file() if name.endswith(("wav", "flac")) else b"{}") for name in names]
    rows = rows_of(write_tar(tmp_path / "x.tar", members))
    assert len(rows) == n_rows
    assert {row.problem.partition(":")[0] for row in rows} == {"several samples under one key"}


def test_sample_without_audio(tmp_path):
    (row,) = rows_of(write_tar(tmp_path / "x.tar", [("0.m4b", b"x"), ("0.txt", b"words")]))
    assert row.problem == "no audio: the sample is 0.m4b, 0.txt"


def test_links_and_too_large_members(tmp_path, monkeypatch):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("0.wav", tarfile.REGTYPE), ("1.wav", tarfile.LNKTYPE), ("2.wav", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "0.wav", len(noise_file()) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(noise_file()))
    whole, *links = rows_of(path)
    assert (whole.audio, whole.problem) == (noise_file(), "")
    assert [row.problem for row in links] == [f"unreadable audio: {n}.wav is a link, or over 512 MiB" for n in (1, 2)]
    monkeypatch.setattr(reader, "MAX_BYTES", 1 << 10)
    assert rows_of(path)[0].problem.startswith("unreadable audio: 0.wav is a link, or over")


def test_key_that_is_not_utf_8(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("kee.wav", noise_file()), ("kee.txt", b"words")])
    data = path.read_bytes()
    path.write_bytes(b"".join(fixed_header(block) for block in (data[i : i + 512] for i in range(0, len(data), 512))))
    (row,) = rows_of(path)
    assert row.problem.startswith("unusable audio: 'k\\udcff\\udcff.wav' is not UTF-8")
    assert row.id.encode() and row.where.encode()
    with pytest.raises(AudioError, match="unusable audio"):
        row.read_audio(30.0)


def fixed_header(block):
    """Return a tar's block, its name made Latin-1 and its checksum right where it is a header."""
    if not block.startswith(b"kee."):
        return block
    block = b"k\xff\xff." + block[4:]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


def test_time_fields_do_not_cut_the_clip(tmp_path):
    described = json.dumps({"text": "x", "start_s": 100.0, "end_s": 100.5, "channel": "telephone"}).encode()
    (row,) = rows_of(write_tar(tmp_path / "x.tar", [("0.wav", noise_file()), ("0.json", described)]))
    assert (row.problem, row.read_audio(30.0)) == ("", noise_file())


def test_text_field_name_in_json(tmp_path):
    members = [
        ("0.wav", noise_file()),
        ("0.json", b'{"raw": "a"}'),
        ("1.wav", noise_file()),
        ("1.txt", b"b"),
        ("1.json", b'{"raw": "c"}'),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    assert [row.text for row in rows_of(path, columns={"text": "raw"})] == ["a", "b"]


_NAMES = st.text(alphabet="ab.", min_size=1, max_size=4)
_MEMBERS = st.lists(st.tuples(_NAMES, st.sampled_from(["wav", "txt", "json", "cls"])), max_size=10)


@settings(deadline=None, max_examples=150)
@given(_MEMBERS)
def test_every_audio_member_of_a_tar_is_a_row(members):
    """Each recording of a tar is a row of its own, but for those whose names are nothing but an extension."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{name}.{extension}" for name, extension in members]
        rows = rows_of(write_tar(Path(folder) / "x.tar", [(name, b"{}") for name in names]))
    n_recordings = sum(name.endswith(".wav") and not name.startswith(".") for name in names)
    n_with_audio = sum(bool(row.audio) for row in rows)
    n_collapsed = sum(row.problem.startswith("several samples") for row in rows)
    assert n_with_audio + n_collapsed >= n_recordings
    assert all(row.audio or row.problem for row in rows)
