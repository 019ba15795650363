"""Manifests: their formats, their columns, and what is no text in them."""

import csv
import gzip
import io
import json
import math
import string
import tempfile
from pathlib import Path

import pytest
from audio_files import noise_file, stereo_file
from hypothesis import given, settings
from hypothesis import strategies as st

from askd_ray.audio.decode import AudioError, decode
from askd_ray.config.source import Source
from askd_ray.data.sources import read_rows, survey
from askd_ray.errors import AskdError


def rows_of(path, kind="manifest", **fields):
    return list(read_rows(Source(path=str(path), kind=kind, **fields)))


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


ROWS = [{"audio": "a.wav", "text": "One"}, {"audio": "b.wav", "text": "Two"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.json", json.dumps(ROWS, indent=1)),
        ("m.json", lines(ROWS)),
        ("m.JSONL", lines(ROWS)),
        ("m.jsonl", "\ufeff" + lines(ROWS)),
        ("m.csv", "audio,text\r\na.wav,One\r\nb.wav,Two\r\n"),
        ("m.tsv", "audio\ttext\na.wav\tOne\nb.wav\tTwo\n"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_manifest_formats(tmp_path, name, text, packed):
    data = text.encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    assert [(row.text, row.path) for row in rows_of(path)] == [("One", "a.wav"), ("Two", "b.wav")]
    assert survey([Source(path=str(path))]).n_rows == 2


@pytest.mark.parametrize("name", ["manifest.json", "manifest.csv.gz", "MANIFEST.TSV"])
def test_manifest_of_a_folder_has_any_format(tmp_path, name):
    text = {"json": json.dumps(ROWS), "csv": "audio,text\na.wav,One\n", "tsv": "audio\ttext\na.wav\tOne\n"}
    data = text[name.lower().split(".")[1]].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert rows_of(tmp_path)[0].text == "One"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.json", b'[{"audio": "a"}, 3]', r"m\.json:1: no column 'text'"),
        ("m.json", b'[{"audio": "a", "text": "b"}, 3]', r"m\.json:2: expected a JSON object, found int"),
        ("m.json", b'[{"audio": "a", "text": "b"}', r"m\.json: not JSON"),
        (
            "m.jsonl",
            b'{"audio": "a", "text": "b", "text": "c"}',
            r"m\.jsonl:1: not JSON: the name 'text' occurs 2 times",
        ),
        ("m.jsonl", b"[" * 100_000, r"m\.jsonl:1: not JSON"),
        ("m.jsonl.gz", gzip.compress(lines(ROWS * 500).encode())[:-20], r"m\.jsonl\.gz cannot be read"),
        ("m.jsonl.gz", b"no gzip", r"m\.jsonl\.gz cannot be read"),
        ("m.csv", b"audio,text,text\na,b,c\n", r"m\.csv:1: the name 'text' occurs 2 times"),
        ("m.csv", "audio,text\na,b".encode("utf-16"), r"m\.csv: not UTF-8 text"),
        ("m.csv", 'audio,text\na,"b\nc,d\n', r"m\.csv:\d: unexpected end of data"),
        ("m.csv", 'audio,text\na,"b\nc,"d"\ne,f\n', r"m\.csv:\d: ',' expected after '\"'"),
        (
            "m.csv",
            'audio,text\na.wav,"b\nc.wav,d"\ne.wav,f\n',
            r"m\.csv:2: a quoted cell continues on the next line, which looks like a row \('c\.wav,d'\): is a quot",
        ),
        ("m.csv", 'audio,text\na,"b" c\n', r"m\.csv:2: ',' expected after '\"'"),
        ("m.tsv", 'audio\ttext\na\t"b\nc"\n', r"m\.tsv:3: 1 cells, and the header has 2"),
    ],
)
def test_manifest_that_would_lose_rows_is_refused(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    for read in (rows_of, lambda path: survey([Source(path=str(path))])):
        with pytest.raises(AskdError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_multi_line_text(tmp_path):
    (tmp_path / "m.csv").write_text('audio,text\na.wav,"Well, then\nsay ""hi"", please"\nb.wav,Two\n')
    assert [row.text for row in rows_of(tmp_path / "m.csv")] == ['Well, then say "hi", please', "Two"]


def test_quoted_tsv_cells(tmp_path):
    (tmp_path / "m.tsv").write_text('audio\ttext\na\t"""Stop"", he said"\nb\t"Stop" he said "so"\nc\t"\n')
    assert [row.text for row in rows_of(tmp_path / "m.tsv")] == ['"Stop", he said', '"Stop" he said "so"', '"']


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (["a", "b"], "unusable text: a text is needed, and it is the list \"['a', 'b']\""),
        ({"en": "a"}, "unusable text: a text is needed, and it is the dict"),
        (True, "unusable text: a text is needed, and it is the bool 'True'"),
        (1.5, "unusable text: a text is needed, and it is the float '1.5'"),
        ("half \ud83d", r"damaged text: 'half \ud83d' is not UTF-8"),
        ("a\0b", r"damaged text: 'a\x00b' holds NUL characters"),
    ],
)
def test_null_like_texts_are_empty(tmp_path, value, problem):
    (tmp_path / "m.jsonl").write_text(lines([{"audio": "a.wav", "text": value, "id": "bad"}, ROWS[1]]))
    bad, good = rows_of(tmp_path / "m.jsonl")
    assert bad.problem.startswith(problem) and (bad.id, bad.text, good.problem) == ("bad", "", "")
    assert bad.problem.encode()
    with pytest.raises(AudioError, match=problem.partition(":")[0]):
        bad.read_audio(30.0)


@pytest.mark.parametrize("value", [None, "", " \n", math.nan])
def test_missing_text_is_empty(tmp_path, value):
    (tmp_path / "m.jsonl").write_text(lines([{"audio": "a.wav", "text": value, "speaker": value}]))
    (row,) = rows_of(tmp_path / "m.jsonl")
    assert (row.text, row.problem) == ("", "")


def test_numbers_in_name_columns(tmp_path):
    (tmp_path / "m.jsonl").write_text(lines([{"audio": "a.wav", "text": 7, "speaker": 12.0, "id": 3}]))
    (row,) = rows_of(tmp_path / "m.jsonl")
    assert (row.text, row.speaker, row.id, row.problem) == ("7", "12", "3", "")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"audio": None}, "no audio: the row names none"),
        ({"audio": math.nan}, "no audio: the row names none"),
        ({"audio": ["a"]}, "unusable audio: a text is needed, and it is the list"),
        ({"audio": "a\0.wav"}, "unusable audio: 'a\\x00.wav' holds NUL"),
        ({"audio": "\udcff.wav"}, "unusable audio: '\\udcff.wav' is not UTF-8"),
        ({"speaker": ["a"]}, "unusable speaker: a text is needed"),
        ({"speaker": "\ud800"}, "unusable speaker: '\\ud800' is not UTF-8"),
        ({"id": "\ud800"}, "unusable id: "),
        ({"split": ["train"]}, "unusable split: "),
        ({"start_s": -1}, "unreadable audio: no chunk from -1 s to the end"),
        ({"start_s": 2, "end_s": 1}, "unreadable audio: no chunk from 2 s to 1 s"),
        ({"start_s": 1, "end_s": 1}, "unreadable audio: no chunk from 1 s to 1 s"),
        ({"start_s": 1e300}, "unreadable audio: no chunk from 1e+300 s"),
        ({"channel": "left"}, "unusable channel: 'left', and a number from 0 to 255 is needed"),
        ({"channel": -1}, "unusable channel: '-1'"),
    ],
)
def test_unusable_rows_are_counted_with_reasons(tmp_path, row, problem):
    (tmp_path / "m.jsonl").write_text(lines([{**ROWS[0], **row}, ROWS[1]]))
    source = Source(path=str(tmp_path / "m.jsonl"))
    bad, good = read_rows(source)
    assert bad.problem.startswith(problem), bad.problem
    assert good.problem == "" and survey([source]).n_rows == 2
    assert json.dumps(vars(bad), ensure_ascii=False, default=str).encode()  # as the quarantine file has it
    with pytest.raises(AudioError):
        bad.read_audio(30.0)


def test_renamed_columns(tmp_path):
    (tmp_path / "m.csv").write_text("audio_filepath,transcription,speaker\na.wav,One,s\n")
    columns = {"audio": "audio_filepath", "text": "transcription"}
    (row,) = rows_of(tmp_path / "m.csv", columns=columns)
    assert (row.path, row.text, row.speaker) == ("a.wav", "One", "s")
    with pytest.raises(AskdError, match=r"m\.csv:2: unknown column 'audio_filepath': allowed are audio, .*columns: \{"):
        rows_of(tmp_path / "m.csv")
    with pytest.raises(AskdError, match=r"no column 'words': it has audio_filepath, transcription, speaker; columns:"):
        rows_of(tmp_path / "m.csv", columns={**columns, "text": "words"}, unknown_columns="ignore")


def test_unknown_columns_are_ignored_on_request(tmp_path):
    (tmp_path / "m.jsonl").write_text(lines([{**ROWS[0], "up_votes": 3, "accents": ["x"]}]))
    with pytest.raises(AskdError, match=r"unknown column 'up_votes'.*unknown_columns: ignore"):
        rows_of(tmp_path / "m.jsonl")
    assert rows_of(tmp_path / "m.jsonl", unknown_columns="ignore")[0].text == "One"


def test_channel_of_a_source(tmp_path):
    (tmp_path / "call.wav").write_bytes(stereo_file(2.0))
    left, right = (decode(noise_file(2.0, seed=seed)) for seed in (0, 1))
    path = tmp_path / "m.jsonl"
    path.write_text(lines([{"audio": "call.wav", "text": "x"}]))
    for channel, expected in ((0, left), (1, right), ("mix", (left + right) / 2)):
        (row,) = rows_of(path, channel=channel)
        assert decode(row.read_audio(30.0)) == pytest.approx(expected, abs=2**-13)
    (row,) = rows_of(path, channel=2)
    with pytest.raises(AudioError, match="no channel 2: the recording has 2, counted from 0"):
        row.read_audio(30.0)
    with pytest.raises(AudioError, match=r"^longer than 1 s"):
        decode(rows_of(path, channel=1)[0].read_audio(1.0), 1.0)


def test_channel_of_a_row(tmp_path):
    (tmp_path / "call.wav").write_bytes(stereo_file(2.0))
    path = tmp_path / "m.csv"
    path.write_text("audio,text,start_s,end_s,channel\ncall.wav,a,0.5,1.5,0\ncall.wav,b,0.5,1.5,1\ncall.wav,c,,,\n")
    left, right, both = rows_of(path)
    assert len({left.id, right.id, both.id}) == 3 and both.channel is None
    for row, seed in ((left, 0), (right, 1)):
        assert decode(row.read_audio(30.0)) == pytest.approx(
            decode(noise_file(2.0, seed=seed))[8_000:24_000], abs=2**-13
        )


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text(
    alphabet=string.printable + '"\u2028\xa0\x85é', max_size=20
)
_WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda name: name.strip() and "://" not in name
)
_TABLES = st.lists(st.tuples(_WORDS, _TEXTS), max_size=8)


def expected_text(text):
    return " ".join(text.removeprefix("\ufeff").split())


def check_same(path, table):
    """Each row that was written is read, as it was written or with a problem."""
    rows = rows_of(path)
    assert len(rows) == len(table)
    for row, (_, text) in zip(rows, table, strict=True):
        assert row.problem or row.text == expected_text(text)
        assert not row.problem or "\0" in text


@settings(deadline=None, max_examples=150)
@given(_TABLES, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"]))
def test_csv_round_trip(table, quoting, end):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=quoting, lineterminator=end)
    writer.writerows([("audio", "text"), *((f"{audio}.wav", text) for audio, text in table)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
        try:
            check_same(path, table)
        except AskdError as error:  # Python's writer leaves a carriage return without quotes: a row of too few cells
            assert "cells, and the header has 2" in str(error)
            assert any("\r" in text for _, text in table) and quoting == csv.QUOTE_MINIMAL


@settings(deadline=None, max_examples=100)
@given(_TABLES)
def test_tsv_round_trip(table):
    table = [(audio, " ".join(text.split())) for audio, text in table]  # without tabs and line breaks
    buffer = io.StringIO(newline="")
    csv.writer(buffer, "excel-tab").writerows([("audio", "text"), *table])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.tsv"
        path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
        check_same(path, table)


_JSON = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10) | st.lists(st.text(max_size=3))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"audio": _JSON, "text": _JSON},
            optional={"id": _JSON, "speaker": _JSON, "split": _JSON, "language": _JSON, "channel": _JSON},
        ),
        max_size=6,
    ),
    st.booleans(),
    st.booleans(),
)
def test_json_round_trip(table, is_list, ascii_only):
    text = json.dumps(table, ensure_ascii=ascii_only) if is_list else "".join(json.dumps(row) + "\n" for row in table)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            rows = rows_of(path)
        except AskdError as error:
            assert not ascii_only and "not UTF-8 text" in str(error)
            return
    assert len(rows) == len(table)
    for row, written in zip(rows, table, strict=True):
        assert f"{row.id}{row.text}{row.problem}{row.where}".encode() is not None
        if not row.problem:
            value = written["text"]
            is_missing = value is None or (isinstance(value, float) and math.isnan(value))
            assert row.text == ("" if is_missing else expected_text(str(value)))
            assert isinstance(value, str | int | None) or is_missing


def test_damaged_recording_is_refused_not_shortened(tmp_path):
    (tmp_path / "call.wav").write_bytes(stereo_file(2.0)[:-8_000])
    (tmp_path / "m.jsonl").write_text(lines([{"audio": "call.wav", "text": "x"}]))
    (row,) = rows_of(tmp_path / "m.jsonl", channel=1)
    with pytest.raises(AudioError, match=r"^truncated: "):
        row.read_audio(30.0)
