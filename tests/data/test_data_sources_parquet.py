"""Parquet: the forms in which audio and texts may stand there."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audio_files import noise_file, stereo_file
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import decode
from askd_ray.config.source import Source
from askd_ray.data.sources import read_rows, survey
from askd_ray.errors import AskdError


def rows_of(path, **fields):
    return list(read_rows(Source(path=str(path), kind="parquet", **fields)))


def write(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_audio_as_a_path(tmp_path, kind):
    (tmp_path / "a.wav").write_bytes(noise_file())
    path = write(
        tmp_path / "x.parquet", audio=pa.array(["a.wav", None, str(tmp_path / "a.wav")], kind), text=["a", "b", "c"]
    )
    first, missing, last = rows_of(path)
    assert first.read_audio(30.0) == last.read_audio(30.0) == noise_file()
    assert missing.problem.startswith("no audio: ")
    source = Source(path=str(path), kind="parquet")
    before = survey([source])
    assert before.n_rows == 3
    (tmp_path / "a.wav").write_bytes(noise_file(0.75))
    assert survey([source]).fingerprint != before.fingerprint


def test_chunks_and_channels_of_named_recordings(tmp_path):
    (tmp_path / "a.wav").write_bytes(stereo_file(2.0))
    path = write(tmp_path / "x.parquet", audio=["a.wav"] * 2, text=["a", "b"], start_s=[0.0, 1.0], end_s=[1.0, 1.5])
    rows = rows_of(path, channel=1)
    assert len({row.id for row in rows}) == 2
    for row, chunk in zip(rows, (slice(0, 16_000), slice(16_000, 24_000)), strict=True):
        assert decode(row.read_audio(30.0)) == pytest.approx(decode(noise_file(2.0, seed=1))[chunk], abs=2**-13)


def test_channel_of_embedded_audio(tmp_path):
    path = write(tmp_path / "x.parquet", audio=[{"bytes": stereo_file(), "path": "a.wav"}], text=["a"])
    (row,) = rows_of(path, channel=0)
    assert decode(row.read_audio(30.0)) == pytest.approx(decode(noise_file(1.0, seed=0)), abs=2**-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_audio_as_samples(tmp_path, dtype):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)
    stored = (samples * 2**15).astype(dtype) if dtype is np.int16 else samples.astype(dtype)
    audio = [{"array": stored, "sampling_rate": 16_000, "path": "a.wav"}]
    (row,) = rows_of(write(tmp_path / "x.parquet", audio=audio, text=["a"]))
    assert decode(row.read_audio(30.0)) == pytest.approx(samples, abs=2**-14 if dtype is np.int16 else 1e-7)
    assert row.path == "a.wav"


@pytest.mark.parametrize(
    "audio",
    [
        {"array": [], "sampling_rate": 16_000},
        {"array": [0.5], "sampling_rate": 0},
        {"array": [0.5], "sampling_rate": None},
    ],
)
def test_invalid_samples_are_refused(tmp_path, audio):
    kind = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])
    (row,) = rows_of(write(tmp_path / "x.parquet", audio=pa.array([audio], kind), text=["a"]))
    assert row.problem.startswith("unreadable audio: no samples of a known rate: ")


def test_audio_bytes_as_a_list_of_numbers_and_as_a_column(tmp_path):
    kind = pa.struct([("bytes", pa.list_(pa.uint8())), ("path", pa.string())])
    audio = pa.array([{"bytes": list(noise_file()), "path": "a.wav"}, {"bytes": [], "path": None}], kind)
    good, empty = rows_of(write(tmp_path / "x.parquet", audio=audio, text=["a", "b"]))
    assert (good.audio, good.problem) == (noise_file(), "")
    assert empty.problem.startswith("no audio")
    kind = pa.struct([("bytes", pa.list_(pa.int32())), ("path", pa.string())])
    (bad,) = rows_of(
        write(tmp_path / "y.parquet", audio=pa.array([{"bytes": [1, 700], "path": "a.wav"}], kind), text=["a"])
    )
    assert bad.problem == "unreadable audio: its bytes are no list of numbers from 0 to 255"
    (plain,) = rows_of(write(tmp_path / "z.parquet", audio=[noise_file()], text=["a"]))
    assert plain.audio == noise_file()


@pytest.mark.parametrize(
    ("texts", "read", "problem"),
    [
        (pa.array([["a", "b"]]), "", "unusable text: a text is needed, and it is the list"),
        (pa.array([{"en": "a"}]), "", "unusable text: a text is needed, and it is the dict"),
        (pa.array([float("nan")]), "", ""),
        (pa.array([None], pa.string()), "", ""),
        (pa.array([b"Gr\xfc\xdfe"]), "", "text is not UTF-8: invalid start byte at byte 2"),
        (pa.array(["Grüße".encode()]), "Grüße", ""),
        (pa.array([b"Gr\xfc\xdfe"]).view(pa.string()), "", "text is not UTF-8: invalid start byte at byte 2"),
        (pa.array(["Grüße"]).dictionary_encode(), "Grüße", ""),
        (pa.array([5]), "5", ""),
    ],
)
def test_texts_of_other_types(tmp_path, texts, read, problem):
    audio = [{"bytes": noise_file(), "path": "a.wav"}]
    (row,) = rows_of(write(tmp_path / "x.parquet", audio=audio, text=texts))
    assert row.text == read and row.problem.startswith(problem) and bool(row.problem) == bool(problem)


def test_path_that_is_not_utf_8(tmp_path):
    paths = pa.array([b"\xff.wav"]).view(pa.string())
    audio = pa.StructArray.from_arrays([pa.array([noise_file()]), paths], ["bytes", "path"])
    (row,) = rows_of(write(tmp_path / "x.parquet", audio=audio, text=["a"]))
    assert row.problem == "unusable audio: '\\udcff.wav' is not UTF-8"


def test_renamed_columns(tmp_path):
    columns = {"audio": "clip", "text": "words", "speaker": "who"}
    path = write(
        tmp_path / "x.parquet", clip=[{"bytes": noise_file(), "path": ""}], words=["a"], who=[3.0], text=["other"]
    )
    (row,) = rows_of(path, columns=columns)
    assert (row.text, row.speaker, row.audio) == ("a", "3", noise_file())
    with pytest.raises(AskdError, match=r"columns 'audio' and .* are needed, it has .*'clip'.*columns: \{audio: NAME"):
        rows_of(path)


def test_duplicate_column_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a.wav"])] * 3, ["audio", "text", "text"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(AskdError, match=r"x\.parquet: several columns 'text'"):
        rows_of(tmp_path)


def test_large_row_group_is_read_in_parts(tmp_path):
    random = np.random.default_rng(0)
    audio = [{"bytes": random.bytes(1 << 20), "path": "a"} for _ in range(128)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"audio": audio, "text": ["a"] * 128}), path, write_batch_size=8)  # of a page
    del audio
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_rows(Source(path=str(path), kind="parquet"))]
    assert len(held) == 128 and max(held) < 64 << 20


_VALUES = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.fixed_dictionaries({"text": _VALUES, "speaker": _VALUES, "id": _VALUES}), min_size=1, max_size=20))
def test_parquet_round_trip(table):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        kind = pa.schema([("audio", pa.string()), *((name, pa.string()) for name in ("text", "speaker", "id"))])
        pq.write_table(pa.Table.from_pylist([{"audio": "a.wav", **row} for row in table], kind), path)
        rows = rows_of(path)
    assert len(rows) == len(table)
    for row, written in zip(rows, table, strict=True):
        if any("\0" in (value or "") for value in written.values()):
            assert row.problem
        else:
            words = " ".join((written["text"] or "").removeprefix("\ufeff").split())
            assert (row.problem, row.text, row.speaker) == (
                "",
                words,
                (written["speaker"] or "").removeprefix("\ufeff"),
            )
