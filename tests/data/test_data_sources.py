import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from audio_files import noise_file

from askd_ray.audio.decode import AudioError, decode
from askd_ray.config.schema import Recipe
from askd_ray.config.source import Source
from askd_ray.data.prepare import prepare
from askd_ray.data.sources import read_rows, survey
from askd_ray.errors import AskdError
from askd_ray.location import Location


def rows_of(path, kind="manifest", **fields):
    return list(read_rows(Source(path=str(path), kind=kind, **fields)))


def one_line(caught):
    assert "\n" not in str(caught.value)


ROWS = [
    {"audio": "a.wav", "text": "One,  two", "speaker": "s1", "domain": "calls", "language": "de", "licence": "CC0-1.0"},
    {"audio": "sub/b.wav", "text": 'say "three"', "speaker": "", "domain": "", "language": "", "licence": ""},
]


def write_table(path, rows, delimiter):
    def cell(value):
        return '"' + value.replace('"', '""') + '"' if delimiter == "," else value

    lines = [delimiter.join(rows[0]), *(delimiter.join(cell(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")


@pytest.mark.parametrize("suffix", ["jsonl", "tsv", "csv"])
def test_manifest_formats_give_the_same_rows(tmp_path, suffix):
    file = tmp_path / f"manifest.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    else:
        write_table(file, ROWS, "\t" if suffix == "tsv" else ",")
    for path in (file, tmp_path):
        first, second = rows_of(path, domain="books", licence="MIT")
        assert (first.text, first.speaker, first.domain) == ("One, two", "s1", "calls")
        assert (first.language, first.licence) == ("de", "CC0-1.0")
        assert str(first.audio) == str(tmp_path / "a.wav")
        assert first.id == str(tmp_path / "a.wav")
        assert (second.text, second.speaker, second.domain) == ('say "three"', "", "books")
        assert (second.language, second.licence) == ("en", "MIT")
        assert str(second.audio) == str(tmp_path / "sub" / "b.wav")


def test_given_id_is_used(manifest):
    assert [row.id for row in rows_of(manifest([{"id": "mine"}, {"id": 7}]))] == ["mine", "7"]


def test_chunk_of_a_long_recording(manifest):
    folder = manifest(
        [{"bytes": noise_file(2.0), "start_s": 0.5, "end_s": 1.25}, {"bytes": noise_file(2.0), "end_s": "0.5"}]
    )
    first, second = rows_of(folder)
    assert first.id.endswith("0.wav@0.5-1.25")
    whole = decode((folder / "0.wav").read_bytes())
    assert decode(first.read_audio(30.0)) == pytest.approx(whole[8_000:20_000], abs=2**-14)
    assert len(decode(second.read_audio(30.0))) == 8_000
    assert first.read_audio(30.0)[:4] == b"fLaC"


def test_chunks_of_one_recording_have_different_ids(manifest):
    rows = [{"audio": "long.wav", "bytes": noise_file(2.0), "start_s": s, "end_s": s + 1} for s in (0.0, 0.5)]
    assert len({row.id for row in rows_of(manifest(rows))}) == 2


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_unreadable_audio_is_a_problem_of_the_row(manifest, make):
    folder = manifest([{"bytes": None}])
    make(folder / "0.wav")
    (row,) = rows_of(folder)
    with pytest.raises(AudioError, match=r"^unreadable audio: .*0\.wav: "):
        row.read_audio(30.0)


def test_huge_file_is_not_read(manifest):
    folder = manifest([{}])
    os.truncate(folder / "0.wav", 1 << 40)  # sparse: takes no space
    (row,) = rows_of(folder)
    with pytest.raises(AudioError, match=r"^longer than 30 s: .*is over 512 MiB"):
        row.read_audio(30.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.jsonl", '{"audio": "a", "text": "b"}\n{"audio": ', r"m\.jsonl:2: not JSON"),
        ("m.jsonl", "[1]\n", r"m\.jsonl:1: expected a JSON object, found list"),
        (
            "m.jsonl",
            '{"audio": "a", "txt": "b"}\n',
            r"m\.jsonl:1: unknown column 'txt': allowed.*; did you mean 'text'\?",
        ),
        ("m.jsonl", '{"audio": "a"}\n', r"m\.jsonl:1: no column 'text'"),
        ("m.jsonl", '{"audio": "a", "text": "b", "end_s": "x"}\n', r"m\.jsonl:1: end_s = 'x': a number of seconds"),
        ("m.jsonl", '{"audio": "a", "text": "b", "start_s": NaN}\n', r"m\.jsonl:1: start_s = nan"),
        ("m.csv", "audio,text,speker\na,b,c\n", r"m\.csv:2: unknown column 'speker'.*; did you mean 'speaker'\?"),
        ("m.csv", "text\nb\n", r"m\.csv:2: no column 'audio'"),
        ("m.csv", "audio,text\na,b\nc\n", r"m\.csv:3: 1 cells, and the header has 2"),
        ("m.tsv", "audio\ttext\na\tb\tc\n", r"m\.tsv:2: 3 cells, and the header has 2"),
        ("m.tsv", "", r"m\.tsv:1: no header"),
        ("m.txt", "", r"m\.txt: kind: manifest reads \.jsonl, \.json, \.tsv or \.csv"),
    ],
)
def test_broken_manifest_names_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    for read in (rows_of, lambda path: survey([Source(path=str(path))])):
        with pytest.raises(AskdError, match=message) as caught:
            read(tmp_path / name)
        one_line(caught)


def test_binary_manifest_is_refused(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"audio": "\xff"}')
    with pytest.raises(AskdError, match=r"m\.jsonl: not UTF-8 text"):
        rows_of(tmp_path / "m.jsonl")


@pytest.mark.parametrize("kind", ["manifest", "parquet", "webdataset"])
def test_missing_sources_are_refused(tmp_path, kind):
    with pytest.raises(AskdError, match=r"source .*nowhere does not exist"):
        rows_of(tmp_path / "nowhere", kind)
    with pytest.raises(AskdError, match=r"0 manifests in it|no \.(parquet|tar), .* file in it"):
        rows_of(tmp_path, kind)


def test_two_manifests_in_a_folder_are_refused(tmp_path):
    for suffix in ("csv", "tsv"):
        (tmp_path / f"manifest.{suffix}").write_text("audio")
    with pytest.raises(AskdError, match=r"2 manifests in it, and exactly one manifest is needed"):
        rows_of(tmp_path)


def test_speech_from_the_cache(speech):
    rows = rows_of("cache:ivr")
    assert len(rows) == survey([Source(path="cache:ivr")]).n_rows == 542
    assert rows[0].id == "ivr/audio/activated.flac"
    assert {row.domain for row in rows} == {"ivr"}
    assert {row.speaker for row in rows} == {""}


def test_missing_cached_speech_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path))
    with pytest.raises(AskdError, match=r"`askd fetch speech ivr`"):
        rows_of("cache:ivr")


def write_parquet(path, rows, audio_type=None):
    table = pa.Table.from_pylist(rows)
    if audio_type is not None:
        table = table.set_column(0, "audio", pa.array([row["audio"] for row in rows], audio_type))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_parquet_in_hugging_face_style(tmp_path):
    audio = noise_file()
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "data" / "beside.wav").write_bytes(audio)
    write_parquet(
        tmp_path / "set" / "data" / "train-00000-of-00001.parquet",
        [
            {"audio": {"bytes": audio, "path": "x.wav"}, "sentence": "Hi", "speaker_id": 12, "up_votes": 2},
            {"audio": {"bytes": None, "path": "beside.wav"}, "sentence": "Ho", "speaker_id": 13, "up_votes": 0},
            {"audio": {"bytes": None, "path": None}, "sentence": None, "speaker_id": None, "up_votes": 0},
        ],
    )
    rows = rows_of(tmp_path / "set", "parquet", domain="web")
    assert [row.text for row in rows] == ["Hi", "Ho", ""]
    assert [row.speaker for row in rows] == ["12", "13", ""]
    assert [row.read_audio(30.0) for row in rows[:2]] == [audio, audio]
    assert rows[2].problem == "no audio: neither bytes nor a path in the row"
    assert rows[0].path == "x.wav"
    assert rows[0].domain == "web"
    assert rows[2].id.endswith("set/data/train-00000-of-00001.parquet:2")


def test_parquet_with_columns_of_ours(tmp_path):
    row = {"audio": {"bytes": noise_file(), "path": "x"}, "text": "a", "id": "i", "speaker": "s", "domain": "d"}
    write_parquet(tmp_path / "x.parquet", [{**row, "language": "fr", "licence": "L", "duration_s": 0.5}])
    (read,) = rows_of(tmp_path / "x.parquet", "parquet")
    assert (read.id, read.speaker, read.domain, read.language, read.licence) == ("i", "s", "d", "fr", "L")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"audio": {"bytes": b"", "path": ""}, "transcript": "x"}],
            r"'text' or 'sentence' or 'transcription' are needed, it has",
        ),
        ([{"sound": b"", "text": "x"}], r"columns 'audio' and"),
        ([{"audio": 5, "text": "x"}], r"column 'audio' is int64, and struct<bytes, path>.* is needed"),
    ],
)
def test_parquet_with_other_columns(tmp_path, rows, message):
    write_parquet(tmp_path / "x.parquet", rows)
    with pytest.raises(AskdError, match=rf"x\.parquet: .*{message}"):
        rows_of(tmp_path, "parquet")


def test_damaged_parquet_is_refused(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, [{"audio": {"bytes": noise_file(2.0), "path": ""}, "text": "x"}])
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(AskdError, match=r"x\.parquet is damaged or no Parquet file") as caught:
        rows_of(tmp_path, "parquet")
    one_line(caught)
    path.write_bytes(whole[:4] + b"\xff" * 2000 + whole[2004:])
    with pytest.raises(AskdError, match=r"x\.parquet is damaged after row 0") as caught:
        rows_of(tmp_path, "parquet")
    one_line(caught)


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz")])
def test_webdataset_members_are_grouped_by_name(tmp_path, name, mode):
    write_tar(
        tmp_path / name,
        [
            ("a/000.flac", noise_file(container="FLAC")),
            ("a/000.txt", "Hällo\n".encode()),
            ("a/001.json", json.dumps({"text": "Two", "speaker": "s", "language": "sv", "id": "two"}).encode()),
            ("a/001.WAV", noise_file()),
            ("b/001.wav", noise_file(0.25)),
            ("b/001.txt", b"Three"),
            ("b/001.cls", b"5"),
            ("b/002.txt", b"no audio"),
        ],
        mode,
    )
    rows = rows_of(tmp_path, "webdataset", language="de")
    assert [row.text for row in rows] == ["Hällo", "Two", "Three", "no audio"]
    assert [row.language for row in rows] == ["de", "sv", "de", "de"]
    assert rows[1].speaker == "s"
    assert rows[1].id == "two"
    assert rows[2].id.endswith(f"{name}/b/001")
    assert rows[2].audio == noise_file(0.25)
    assert rows[2].path == "b/001.wav"
    assert rows[3].audio == b""


def test_tars_are_not_unpacked(tmp_path, monkeypatch):
    write_tar(tmp_path / "x.tar", [("../../evil.wav", noise_file()), ("../../evil.txt", b"text")])
    monkeypatch.chdir(tmp_path)
    assert len(rows_of("x.tar", "webdataset")) == 1
    assert [f.name for f in Path().iterdir()] == ["x.tar"]
    assert not (tmp_path.parent.parent / "evil.wav").exists()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_damaged_tars_are_refused(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    write_tar(path, [("0.wav", noise_file()), ("0.txt", b"text")], "w:gz" if suffix.endswith("gz") else "w")
    whole = path.read_bytes()
    for data in (whole[:5000], b"not a tar at all" * 100):
        path.write_bytes(data)
        with pytest.raises(AskdError, match=rf"x\.{suffix} is damaged or no tar file") as caught:
            rows_of(path, "webdataset")
        one_line(caught)


def test_broken_json_in_a_tar_is_a_problem_of_the_row(tmp_path):
    write_tar(
        tmp_path / "x.tar", [("0.wav", noise_file()), ("0.json", b"{"), ("1.wav", noise_file()), ("1.txt", b"one")]
    )
    broken, whole = rows_of(tmp_path, "webdataset")
    assert broken.problem.startswith("unreadable json: 0.json: not JSON: ")
    assert (whole.text, whole.problem) == ("one", "")


def test_fingerprint_depends_on_manifest_and_audio(manifest):
    folder = manifest([{}, {}])
    source = Source(path=str(folder))
    first = survey([source])
    assert first.n_rows == 2
    assert survey([source]) == first
    os.utime(folder / "1.wav", ns=(1, 1))
    touched = survey([source])
    assert touched.fingerprint != first.fingerprint
    (folder / "1.wav").unlink()
    assert survey([source]).fingerprint not in {first.fingerprint, touched.fingerprint}


def test_survey_counts_rows_when_cheap(tmp_path, manifest):
    clips = Source(path=str(manifest([{}, {}])))
    write_parquet(tmp_path / "x.parquet", [{"audio": {"bytes": noise_file(), "path": ""}, "text": "x"}] * 3)
    parquet = Source(path=str(tmp_path / "x.parquet"), kind="parquet")
    write_tar(tmp_path / "x.tar", [("0.wav", noise_file())])
    tar = Source(path=str(tmp_path / "x.tar"), kind="webdataset")
    assert survey([clips, parquet]).n_rows == 5
    assert survey([clips, tar]).n_rows is None


def a_source(folder, kind):
    """Write a source of two clips of its kind."""
    folder.mkdir(parents=True)
    clips = [noise_file(1.0, seed=0), noise_file(0.5, container="FLAC", seed=1)]
    if kind == "manifest":
        rows = [
            {"audio": "sub/0.wav", "text": "One", "start_s": 0.25, "end_s": 0.75},
            {"audio": "1.flac", "text": "Two"},
        ]
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "sub").mkdir()
        for row, clip in zip(rows, clips, strict=True):
            (folder / row["audio"]).write_bytes(clip)
    elif kind == "parquet":
        rows = [
            {"audio": {"bytes": clips[0], "path": "0.wav"}, "text": "One"},
            {"audio": {"bytes": None, "path": "1.flac"}, "text": "Two"},
        ]
        write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
        (folder / "data" / "1.flac").write_bytes(clips[1])
    else:
        members = [("0.wav", clips[0]), ("0.txt", b"One"), ("1.flac", clips[1]), ("1.txt", b"Two")]
        write_tar(folder / "a.tar.gz", members, "w:gz")
    return folder


def upload(folder, uri):
    for file in (f for f in folder.rglob("*") if f.is_file()):
        (Location.of(uri) / str(file.relative_to(folder))).write_bytes(file.read_bytes())
    return uri


def same_rows(uri, folder, kind):
    """Whether the source at the URI says what the folder says, with ids of its own; return its rows."""
    here, there = rows_of(folder, kind), rows_of(uri, kind)
    place = str(Location.of(uri))
    assert [row.id for row in there] == [row.id.replace(str(folder), place) for row in here]
    assert [row.where for row in there] == [row.where.replace(str(folder), place) for row in here]
    assert [row.text for row in there] == ["One", "Two"]
    assert [row.read_audio(30.0) for row in there] == [row.read_audio(30.0) for row in here]
    sources = [Source(path=str(path), kind=kind) for path in (uri, folder)]
    assert survey([sources[0]]).n_rows == survey([sources[1]]).n_rows == (None if kind == "webdataset" else 2)
    return there


@pytest.mark.parametrize("kind", ["manifest", "parquet", "webdataset"])
def test_a_source_on_s3(s3, tmp_path, kind):
    folder = a_source(tmp_path / "clips", kind)
    uri = upload(folder, s3("some/clips"))
    rows = same_rows(uri, folder, kind)
    assert "mysecret" not in repr(rows)
    source = Source(path=uri, kind=kind)
    first = survey([source])
    assert survey([source]) == first
    one = Location.of(uri).files(recursive=True)[-1]  # 0.wav, or the one Parquet file or tar: it gets company
    target = one if kind == "manifest" else one.parent / f"b-{one.name}"
    target.write_bytes(one.read_bytes() + b"\n" * (target == one))
    assert survey([source]).fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", ["manifest", "parquet", "webdataset"])
def test_a_source_on_the_hub(hub, tmp_path, kind):
    folder = a_source(hub / "datasets" / "user" / "name" / "en", kind)
    same_rows("hf://datasets/user/name/en", folder, kind)


@pytest.mark.parametrize(("kind", "name"), [("parquet", "x.parquet"), ("webdataset", "x.tar"), ("manifest", "x.csv")])
def test_a_damaged_source_on_s3(s3, kind, name):
    uri = s3(name)
    Location.of(uri).write_bytes(b"not at all \xff" * 100)
    with pytest.raises(AskdError, match=rf"^s3://b\w+/{name}(:| is damaged)") as caught:
        rows_of(uri, kind)
    one_line(caught)
    with pytest.raises(AskdError, match=r"source s3://b\w+/nowhere does not exist"):
        rows_of(s3("nowhere"), kind)


def test_missing_audio_is_a_problem_of_the_row_and_missing_store_an_error(s3, tmp_path):
    folder = a_source(tmp_path / "clips", "manifest")
    rows = rows_of(upload(folder, s3("clips")))
    (Location.of(s3("clips")) / "1.flac").delete()
    with pytest.raises(AudioError, match=r"^unreadable audio: s3://b\w+/clips/1\.flac: No such file or directory"):
        rows[1].read_audio(30.0)
    (Location.of(s3("clips")) / "sub/0.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match="no decoder takes it"):
        rows[0].read_audio(30.0)
    for row in rows:
        gone = dataclasses.replace(row, audio=Location(row.audio.root, "elsewhere/1.flac"))
        with pytest.raises(AskdError, match="there is no such bucket"):
            gone.read_audio(30.0)


def test_source_split_and_share(manifest):
    rows = [{"id": str(i), "split": "train" if i % 2 else "dev"} for i in range(400)]
    folder = manifest(rows)
    assert [row.id for row in rows_of(folder, split="dev")] == [str(i) for i in range(0, 400, 2)]
    half = {row.id for row in rows_of(folder, share=0.5)}
    assert 150 < len(half) < 250
    assert {row.id for row in rows_of(folder, share=0.2)} < half
    assert {row.id for row in rows_of(folder, share=0.5, split="dev")} == {i for i in half if int(i) % 2 == 0}
    assert rows_of(folder, share=0.0) == []
    with pytest.raises(AskdError, match=r"no row of the split 'test': there is 'dev', 'train'$"):
        rows_of(folder, split="test")
    sources = [Source(path=str(folder), **chosen) for chosen in ({}, {"split": "dev"}, {"share": 0.5})]
    assert [survey([source]).n_rows for source in sources] == [400, None, None]


def test_upper_case_texts_become_sentences(manifest):
    texts = [{"text": text} for text in ("THIS IS LOUD", "NASA said so", "ÜBER ALLEN", "123")]
    path = manifest(texts)
    texts_by_case = {case: [row.text for row in rows_of(path, case=case)] for case in ("as_is", "sentence")}
    assert texts_by_case["as_is"] == ["THIS IS LOUD", "NASA said so", "ÜBER ALLEN", "123"]
    assert texts_by_case["sentence"] == ["This is loud", "NASA said so", "Über allen", "123"]


def test_rows_with_problems_are_quarantined_and_the_counts_add_up(tmp_path):
    rows = [{"audio": f"{n}.wav", "text": f"text {n}"} for n in range(6)]
    bad = [
        {"text": ["a"]},
        {"text": "half \ud83d"},
        {"audio": None},
        {"audio": "a\0"},
        {"start_s": -1},
        {"split": "ood"},
    ]
    for n in range(6):
        (tmp_path / f"{n}.wav").write_bytes(noise_file(seed=n))
    lines = [*rows, *({**rows[0], "id": f"bad {n}", **row} for n, row in enumerate(bad))]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"sources": [{"path": str(tmp_path)}], "dev_share": 0.0, "test_share": 0.0, "max_quarantine_share": 0.5}
    recipe = Recipe.model_validate({"name": "mine", "runs_root": str(tmp_path / "runs"), "data": data})
    result = prepare(recipe)
    assert result["quarantined"] == {
        "unusable text": 1,
        "damaged text": 1,
        "no audio": 1,
        "unusable audio": 1,
        "unreadable audio": 1,
        "unknown split": 1,
    }
    assert result["read"] == 12 and sum(result["utterances"].values()) == 6
