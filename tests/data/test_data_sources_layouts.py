"""The layouts of corpora and toolkits that are read as they are."""

import gzip
import json
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


def rows_of(path, kind, **fields):
    return list(read_rows(Source(path=str(path), kind=kind, **fields)))


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def summaries(rows):
    return [(row.text, row.speaker, row.language, row.split) for row in rows]


def test_nemo(tmp_path):
    lines = [
        {
            "audio_filepath": "clips/a.wav",
            "duration": 0.5,
            "text": "one",
            "speaker": 7,
            "lang": "de",
            "pred_text": "won",
        },
        {"audio_filepath": "clips/long.wav", "offset": 0.5, "duration": 0.25, "text": "two", "taskname": "asr"},
    ]
    files = {"clips/a.wav": noise_file(), "clips/long.wav": noise_file(2.0)}
    files["train_manifest.json"] = "".join(json.dumps(line) + "\n" for line in lines)
    for path in (write(tmp_path, files), tmp_path / "train_manifest.json"):
        rows = rows_of(path, "nemo")
        assert summaries(rows) == [("one", "7", "de", "train"), ("two", "", "en", "train")]
        assert rows[0].read_audio(30.0) == noise_file()
        assert decode(rows[1].read_audio(30.0)) == pytest.approx(decode(noise_file(2.0))[8_000:12_000], abs=2**-14)


def test_common_voice(tmp_path):
    header = "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\n"
    files = {f"sv/clips/{n}.mp3": noise_file() for n in range(4)}
    for n, name in enumerate(("train", "dev", "test", "validated")):
        files[f"sv/{name}.tsv"] = f'{header}c{n}\t{n}.mp3\tx\t"Hej ""du"""\t2\tsv-SE\n'
    rows = rows_of(write(tmp_path, files), "common_voice")
    # validated.tsv holds the rows of the others too, and is read where the path names it.
    assert summaries(rows) == [
        ('Hej "du"', f"c{n}", "sv-SE", split) for n, split in ((1, "dev"), (2, "test"), (0, "train"))
    ]
    assert [row.read_audio(30.0) for row in rows] == [noise_file()] * 3
    assert rows[0].id == str(tmp_path / "sv/clips/1.mp3")
    assert [row.split for row in rows_of(tmp_path / "sv" / "validated.tsv", "common_voice")] == [""]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_audiofolder(tmp_path, suffix):
    for split in ("train", "validation", "test"):
        text = f"file_name,transcription,take\nx/a.wav,Text of {split},1\n"
        if suffix == "jsonl":
            text = json.dumps({"file_name": "x/a.wav", "transcription": f"Text of {split}", "take": [1]}) + "\n"
        write(tmp_path / "data" / split, {f"metadata.{suffix}": text, "x/a.wav": noise_file()})
    rows = rows_of(tmp_path, "audiofolder")
    assert [(row.text, row.split) for row in rows] == [
        ("Text of test", "test"),
        ("Text of train", "train"),
        ("Text of validation", "dev"),
    ]
    assert rows[0].read_audio(30.0) == noise_file()


def test_ljspeech(tmp_path):
    text = 'LJ001-0001|Printing, in "1455"|Printing, in fourteen fifty-five\nLJ001-0002|being\n'
    write(tmp_path, {"metadata.csv": text, "wavs/LJ001-0001.wav": noise_file()})
    rows = rows_of(tmp_path, "ljspeech")
    assert [row.text for row in rows] == ['Printing, in "1455"', "being"]
    assert rows[0].read_audio(30.0) == noise_file()
    assert rows_of(tmp_path, "ljspeech", columns={"text": "normalized_text"})[0].text.endswith("fifty-five")
    write(tmp_path, {"metadata.csv": "LJ001-0001\n"})
    with pytest.raises(AskdError, match=r"metadata\.csv:1: 1 cells, and ID\|TEXT or"):
        rows_of(tmp_path, "ljspeech")


def test_librispeech(tmp_path):
    files = {}
    for folder in ("train-clean-100", "dev-other", "test-clean"):
        files[f"{folder}/84/121/84-121.trans.txt"] = "84-121-0000 GO ON\n84-121-0001\n"
        files[f"{folder}/84/121/84-121-0000.flac"] = noise_file(container="FLAC")
    rows = rows_of(write(tmp_path / "LibriSpeech", files), "librispeech", case="sentence")
    assert summaries(rows) == [
        (text, "84", "en", split) for split in ("dev", "test", "train") for text in ("Go on", "")
    ]
    assert rows[0].read_audio(30.0) == noise_file(container="FLAC")
    assert rows[0].id == str(tmp_path / "LibriSpeech/dev-other/84/121/84-121-0000.flac")
    assert {row.split for row in rows_of(tmp_path / "LibriSpeech" / "test-clean", "librispeech")} == {"test"}
    assert len(rows_of(tmp_path / "LibriSpeech", "librispeech", split="dev-other")) == 2


KALDI = {
    "train/wav.scp": "call1 ../audio/call1.wav\ncall2 sph2pipe -f wav call2.sph |\n",
    "train/segments": "a-1 call1 0.0 0.5\na-2 call1 1.5 -1\nb-1 call2 0.0 1.0\nc-1 gone 0.0 1.0\n",
    "train/text": "a-1 hello there\na-2 goodbye\nb-1 what\nc-1 no\nd-1 only text\n",
    "train/utt2spk": "a-1 alice\na-2 alice\nb-1 bob\n",
    "train/utt2lang": "a-2 de\n",
    "test/wav.scp": "t-1 ../audio/t.wav\n",
    "test/text": "t-1 whole file\n",
}


def test_kaldi(tmp_path):
    write(tmp_path, {**KALDI, "audio/call1.wav": noise_file(2.0), "audio/t.wav": noise_file()})
    test, one, two, *broken = rows_of(tmp_path, "kaldi")
    assert summaries([test, one, two]) == [
        ("whole file", "", "en", "test"),
        ("hello there", "alice", "en", "train"),
        ("goodbye", "alice", "de", "train"),
    ]
    whole = decode(noise_file(2.0))
    assert test.read_audio(30.0) == noise_file()
    assert decode(one.read_audio(30.0)) == pytest.approx(whole[:8_000], abs=2**-14)
    assert decode(two.read_audio(30.0)) == pytest.approx(whole[24_000:], abs=2**-14)
    assert [row.problem for row in broken] == [
        "unreadable audio: wav.scp names a command, and none is run: write its output to a file",
        "no audio: wav.scp has no recording gone",
        "no audio: only a text",
    ]
    assert survey([Source(path=str(tmp_path), kind="kaldi")]).n_rows == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("text", None, r"train/text does not exist"),
        ("segments", "a-1 call1 0.0\n", r"segments:1: 3 words, and UTTERANCE RECORDING START END"),
        ("segments", "a-1 call1 0.0 soon\n", r"segments:1: end_s = 'soon': a number of seconds"),
        ("utt2spk", "a-1 alice\na-1 bob\n", r"utt2spk:2: 'a-1' occurs twice"),
        ("wav.scp", "call1 a.wav\ncall1 b.wav\n", r"wav\.scp:2: 'call1' occurs twice"),
    ],
)
def test_broken_kaldi_folder_is_refused(tmp_path, name, text, message):
    write(tmp_path, {file: data for file, data in KALDI.items() if file.startswith("train")})
    if text is None:
        (tmp_path / "train" / name).unlink()
    else:
        (tmp_path / "train" / name).write_text(text)
    with pytest.raises(AskdError, match=message):
        rows_of(tmp_path, "kaldi")


def a_cut(name, segments, **fields):
    """As Lhotse 1.33 writes cuts."""
    sources = [{"type": "file", "channels": [0, 1] if name == "call" else [0], "source": f"{name}.wav"}]
    described = {"id": name, "sources": sources, "sampling_rate": 16000, "num_samples": 32000, "duration": 2.0}
    spoken = [
        {
            "id": i,
            "recording_id": name,
            "start": s,
            "duration": d,
            "channel": c,
            "text": t,
            "language": "de",
            "speaker": i,
        }
        for i, s, d, c, t in segments
    ]
    cut = {"id": f"{name}-0", "start": 0, "duration": 2.0, "channel": 0, "supervisions": spoken}
    return {**cut, "recording": described, "type": "MonoCut", **fields}


def test_lhotse(tmp_path):
    cuts = [
        a_cut("call", [("s1", 0.5, 0.5, 0, "one"), ("s2", 1.0, 0.5, 1, "two")], channel=[0, 1], type="MultiCut"),
        a_cut("mono", [("s3", 0.0, 2.0, 0, "all of it")]),
        a_cut("mono", [("s4", 0.0, 0.5, 0, "trimmed")], id="s4", start=1.5, duration=0.5),
        a_cut("mono", [], id="silent"),
    ]
    packed = gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode())
    write(tmp_path, {"cuts_train.jsonl.gz": packed, "call.wav": stereo_file(2.0), "mono.wav": noise_file(2.0)})
    rows = rows_of(tmp_path, "lhotse")
    assert summaries(rows) == [
        *((text, f"s{i}", "de", "train") for i, text in enumerate(("one", "two", "all of it", "trimmed"), start=1)),
        ("", "", "en", "train"),
    ]
    one, two = decode(noise_file(2.0)), decode(noise_file(2.0, seed=1))
    for row, samples in zip(rows, (one[8_000:16_000], two[16_000:24_000], one, one[24_000:], one), strict=True):
        assert decode(row.read_audio(30.0)) == pytest.approx(samples, abs=2**-13)
    assert rows[2].read_audio(30.0) == noise_file(2.0)  # the file as it is
    assert len({row.id for row in rows}) == 5


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        ({"id": "m", "type": "MixedCut", "tracks": []}, "no audio: a MixedCut, and cuts of recordings in files"),
        (a_cut("a", [], recording=None), "no audio: a cut without a recording"),
        (
            a_cut("a", [], recording={"transforms": [{"name": "Speed"}]}),
            "no audio: a recording with transforms",
        ),
        (
            a_cut("a", [], recording={"sources": [{"type": "command", "channels": [0], "source": "rm x"}]}),
            "unreadable audio: a recording of command: one file is needed, and no command is run",
        ),
        ({"audio": "x.wav"}, "no Lhotse cut: KeyError 'id'"),
        (a_cut("a", [], supervisions=[{"start": None}]), "no Lhotse cut: TypeError"),
        (a_cut("a", [], supervisions=3), "no Lhotse cut: TypeError"),
    ],
)
def test_lhotse_cuts_without_recording_are_counted(tmp_path, cut, problem):
    text = json.dumps(cut) + "\n" + json.dumps(a_cut("mono", [("s", 0.0, 1.0, 0, "x")])) + "\n"
    bad, good = rows_of(write(tmp_path, {"cuts.jsonl": text}) / "cuts.jsonl", "lhotse")
    assert bad.problem.startswith(problem) and good.problem == ""
    with pytest.raises(AudioError, match=problem.partition(":")[0]):
        bad.read_audio(30.0)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nemo", r"\.json or \.jsonl"),
        ("lhotse", r"cuts \.jsonl"),
        ("common_voice", r"train\.tsv, dev\.tsv or test\.tsv"),
        ("audiofolder", r"metadata\.csv or metadata\.jsonl"),
        ("ljspeech", r"metadata\.csv"),
        ("librispeech", r"\.trans\.txt"),
        ("kaldi", r"wav\.scp"),
    ],
)
def test_unknown_layout_is_refused(tmp_path, kind, names):
    with pytest.raises(AskdError, match=rf"source .*: no {names}.* file in it, as kind: {kind} needs"):
        rows_of(tmp_path, kind)
    (tmp_path / "x.bin").touch()
    with pytest.raises(AskdError, match=rf"x\.bin: kind: {kind} reads {names}"):
        rows_of(tmp_path / "x.bin", kind)


_WORDS = st.text(alphabet="abé ü\"'|,", max_size=12).map(lambda text: " ".join(text.replace("|", "").split()))


@settings(deadline=None, max_examples=60)
@given(st.lists(_WORDS, max_size=8))
def test_every_line_is_a_row(texts):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lines = [(f"u-{n}", text) for n, text in enumerate(texts)]
        write(root / "l", {"metadata.csv": "".join(f"{name}|{text}\n" for name, text in lines)})
        write(root / "s", {"1-2.trans.txt": "".join(f"{name} {text}\n" for name, text in lines)})
        files = {"text": "".join(f"{name} {text}\n" for name, text in lines)}
        write(root / "k", {**files, "wav.scp": "".join(f"{name} {name}.wav\n" for name, _ in lines)})
        for name, kind in {"l": "ljspeech", "s": "librispeech", "k": "kaldi"}.items():
            rows = rows_of(root / name, kind)
            assert [(row.text, row.problem) for row in rows] == [(text, "") for text in texts]
