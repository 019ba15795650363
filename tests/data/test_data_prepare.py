import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from audio_files import noise_file

from askd_ray.audio.decode import decode
from askd_ray.config.schema import Recipe
from askd_ray.config.source import Source
from askd_ray.data.prepare import prepare
from askd_ray.data.schema import SHARD_SCHEMA, SPLITS
from askd_ray.data.shards import read_table, read_utterances
from askd_ray.errors import AskdError
from askd_ray.runs import Run

ALL_TRAIN = {"dev_share": 0.0, "test_share": 0.0}


@pytest.fixture
def recipe(tmp_path):
    def _recipe(*folders, **data):
        sources = [{"path": str(folder), "domain": "calls"} for folder in folders]
        return Recipe.model_validate(
            {"name": "mine", "runs_root": str(tmp_path / "runs"), "data": {"sources": sources, "derive": None, **data}}
        )

    return _recipe


def quarantine(run):
    return [json.loads(line) for line in (run.shards / "quarantine.jsonl").read_bytes().splitlines()]


def test_real_prompts_become_shards(speech, tmp_path):
    recipe = Recipe.model_validate(
        {
            "name": "ivr",
            "runs_root": str(tmp_path),
            "data": {"sources": [{"path": "cache:ivr"}], "utterances_per_shard": 100, "max_duration_s": 10.0},
        }
    )
    result = prepare(recipe)
    run = Run(recipe)
    assert result["read"] == 542
    assert sum(result["utterances"].values()) + sum(result["quarantined"].values()) == 542
    assert set(result["quarantined"]) == {"longer than 10 s", "markup in the text"}
    assert result["quarantined"]["markup in the text"] == 2  # <beep ascending> and <beep decending>
    rows = [row for split in SPLITS for row in read_utterances(run.shards, split)]
    assert len(rows) == sum(result["utterances"].values())
    for split in SPLITS:
        shards = [file.name for file in run.shards.files(f"{split}-*")]
        count = -(-result["utterances"][split] // 100)
        assert shards == [f"{split}-{i:05d}.parquet" for i in range(count)]
        seconds = sum(u.duration_s for u in rows if u.split == split)
        assert result["minutes"][split] == pytest.approx(seconds / 60, abs=0.01)
    assert read_table(run.shards / "train-00000.parquet").schema.equals(SHARD_SCHEMA)
    first = next(u for u in rows if u.id == "ivr/audio/activated.flac")
    assert (first.text, first.domain, first.language, first.licence) == ("Activated.", "ivr", "en", "CC-BY-SA-3.0")
    assert first.audio == (speech / "audio" / "activated.flac").read_bytes()
    assert first.duration_s == len(decode(first.audio)) / 16_000
    splits_of_text = {}
    for row in rows:
        splits_of_text.setdefault(row.text.casefold(), set()).add(row.split)
    assert all(len(splits) == 1 for splits in splits_of_text.values())  # the same words are never on both sides


def spoilt(**changes):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000).astype(np.float32)
    for at, value in changes.get("samples", {}).items():
        samples[at] = value
    buffer = io.BytesIO()
    soundfile.write(buffer, samples * changes.get("gain", 1.0), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


BAD_ROWS = {
    "unreadable audio": {"bytes": b"no audio"},
    "truncated": {"bytes": spoilt()[:20_000]},
    "empty text": {"text": " \n"},
    "longer than 1 s": None,  # filled in by the test: it needs the encoder
    "not finite": {"bytes": spoilt(samples={5: float("nan")})},
    "silence": {"bytes": spoilt(gain=0.0015)},  # a peak of 0.00075
    "duplicate id": {"id": "first"},
}


def test_bad_rows_are_quarantined_with_reasons(manifest, recipe):
    bad = {**BAD_ROWS, "longer than 1 s": {"bytes": noise_file(1.01, container="FLAC")}}
    folder = manifest([{"id": "first"}, *bad.values(), {"bytes": None}, {"bytes": spoilt(gain=0.003)}])
    run_recipe = recipe(folder, max_duration_s=1.0, max_quarantine_share=0.9, **ALL_TRAIN)
    result = prepare(run_recipe)
    assert result["read"] == 10
    assert result["utterances"] == {"train": 2, "dev": 0, "test": 0}
    assert result["quarantined"] == dict(Counter([*bad, "unreadable audio"]).most_common())
    lines = quarantine(Run(run_recipe))
    assert [line["reason"] for line in lines] == [*bad, "unreadable audio"]
    assert all(set(line) == {"id", "source", "reason", "detail"} for line in lines)
    assert lines[0]["source"] == f"{folder / 'manifest.jsonl'}:2"
    assert lines[-1]["detail"].endswith("8.wav: No such file or directory")
    assert [u.id for u in read_utterances(Run(run_recipe).shards, "train")] == ["first", str(folder / "9.wav")]


def test_too_many_bad_rows_write_quarantine_and_no_shards(manifest, recipe):
    good = recipe(manifest([{}], name="good"), **ALL_TRAIN)
    prepare(good)
    bad = recipe(manifest([{}] * 7 + [{"bytes": b"x"}] * 2 + [{"text": ""}], name="bad"), **ALL_TRAIN)
    message = r"3 of 10 rows can't be used \(2 unreadable audio, 1 empty text\).*max_quarantine_share = 0\.2"
    with pytest.raises(AskdError, match=message) as caught:
        prepare(bad, force=True)
    run = Run(bad)
    assert str(run.shards / "quarantine.jsonl") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in run.shards.files()] == ["quarantine.jsonl"]
    assert len(quarantine(run)) == 3
    assert run.record("prepare") is None  # the stages after it must not take the earlier shards for these


def test_allowed_quarantine_share_passes(manifest, recipe):
    assert prepare(recipe(manifest([{}] * 4 + [{"text": ""}]), **ALL_TRAIN))["quarantined"] == {"empty text": 1}


@pytest.mark.parametrize(
    ("rows", "message"), [([], "the sources hold no rows"), ([{"text": ""}], r"none of 1 rows .*\(1 empty text\)")]
)
def test_no_usable_rows(manifest, recipe, rows, message):
    run_recipe = recipe(manifest(rows), max_quarantine_share=1.0)
    with pytest.raises(AskdError, match=message):
        prepare(run_recipe)
    assert Run(run_recipe).record("prepare") is None


def test_no_sources(recipe):
    run_recipe = recipe()
    with pytest.raises(AskdError, match=r"data\.sources is empty: --set data\.sources="):
        prepare(run_recipe)
    assert not Run(run_recipe).path.exists()


def with_damaged_tar(recipe, tar):
    """Return the recipe with a further source, which only reading it shows to be damaged."""
    tar.write_bytes(b"no tar" * 100)
    sources = (*recipe.data.sources, Source(path=str(tar), kind="webdataset"))
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": sources})})


def assert_only_checked_parts(recipe, count):
    """Check that an error left nothing but complete parts, with which the next call continues."""
    folder = Run(recipe).path
    assert {p.name for p in folder.iterdir()} <= {"recipe.yaml", "parts"}
    left = sorted(p.suffix for p in (folder / "parts").iterdir())
    assert left == [".arrow"] * count + [".parquet"] * count


def test_failing_source_leaves_no_half_written_shards(manifest, recipe, tmp_path):
    run_recipe = recipe(manifest([{}] * 5), utterances_per_shard=1, **ALL_TRAIN)
    with pytest.raises(AskdError, match=r"x\.tar is damaged"):
        prepare(with_damaged_tar(run_recipe, tmp_path / "x.tar"))
    assert_only_checked_parts(run_recipe, 1)


def test_finished_prepare_is_not_repeated(manifest, recipe, capsys):
    folder = manifest([{}, {}, {}])
    run_recipe = recipe(folder, utterances_per_shard=2, **ALL_TRAIN)
    result = prepare(run_recipe)
    shard = Path(str(Run(run_recipe).shards)) / "train-00000.parquet"
    written = shard.stat().st_ino
    capsys.readouterr()
    assert prepare(run_recipe) == result
    assert "finished already (3 utterances" in capsys.readouterr().out
    assert shard.stat().st_ino == written

    assert prepare(run_recipe, force=True) == result
    assert shard.stat().st_ino != written

    shard.unlink()  # a shard is gone: the record alone is not trusted
    prepare(run_recipe)
    assert shard.is_file()

    (folder / "2.wav").write_bytes(noise_file(5.0))  # other audio under the same name
    assert prepare(run_recipe)["minutes"] != result["minutes"]


@pytest.mark.parametrize(
    ("rows", "same"),
    [([{}, {}, {}], True), ([{}, {"speaker": "Ann"}, {}], False)],
    ids=["touched", "another speaker"],
)
def test_later_stages_stay_valid_as_long_as_the_rows_do(rows, same, manifest, recipe):
    folder = manifest([{}, {}, {}])
    run_recipe = recipe(folder, utterances_per_shard=2, **ALL_TRAIN)
    prepare(run_recipe)
    run = Run(run_recipe)
    inputs, key = run.record("prepare")["key"], run.key("prepare")
    shutil.rmtree(folder)
    manifest(rows)
    for file in folder.iterdir():
        os.utime(file, (1, 1))  # as after a copy
    prepare(run_recipe)
    assert run.record("prepare")["key"] != inputs
    assert (run.key("prepare") == key) is same


def test_changed_settings_prepare_again(manifest, recipe):
    folder = manifest([{}, {}, {}])
    prepare(recipe(folder, utterances_per_shard=2, **ALL_TRAIN))
    run_recipe = recipe(folder, utterances_per_shard=1, **ALL_TRAIN)
    prepare(run_recipe)
    assert len(Run(run_recipe).shards.files("*.parquet")) == 3  # and none of the earlier ones


def test_rows_keep_order_and_shards_are_reproducible(manifest, recipe):
    lengths = np.random.default_rng(1).uniform(0.3, 0.9, 40)
    folder = manifest([{"bytes": noise_file(s)} for s in lengths])
    run_recipe = recipe(folder, utterances_per_shard=16, **ALL_TRAIN)
    prepare(run_recipe)
    rows = read_utterances(Run(run_recipe).shards, "train")
    assert [u.id for u in rows] == [str(folder / f"{i}.wav") for i in range(40)]
    shards = Run(run_recipe).shards.files("*.parquet")
    first = [shard.read_bytes() for shard in shards]
    prepare(run_recipe, force=True)
    assert [shard.read_bytes() for shard in shards] == first


def test_speaker_is_in_one_split(manifest, recipe):
    rows = [{"speaker": f"s{i % 12}", "bytes": noise_file(seed=i)} for i in range(48)]
    folders = [manifest(rows[:24], name="a"), manifest(rows[24:], name="b")]
    run_recipe = recipe(*folders, dev_share=0.3, test_share=0.3)
    prepare(run_recipe)
    places = Counter(
        (u.speaker, split)
        for split in SPLITS
        if Run(run_recipe).shards.files(f"{split}-*")
        for u in read_utterances(Run(run_recipe).shards, split)
    )
    assert len({split for _, split in places}) == 3
    assert {count for count in places.values()} == {4}


@pytest.mark.slow
def test_full_disk_leaves_nothing_half_written(manifest, recipe):
    """A limit on file size makes the kernel refuse the write, as a full disk does."""
    run_recipe = recipe(manifest([{}] * 8), **ALL_TRAIN)
    code = (
        "import sys; from askd_ray.config.schema import Recipe; from askd_ray.data.prepare import prepare\n"
        "try: prepare(Recipe.model_validate_json(sys.argv[1]))\n"
        "except OSError as error: print('OSError', error); sys.exit(3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, run_recipe.model_dump_json()],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 3, done.stderr
    assert "File too large" in done.stdout
    assert_only_checked_parts(run_recipe, 0)


def test_unwritable_folder_is_refused(tmp_path, manifest):
    (tmp_path / "file").write_text("no folder")
    sources = [{"path": str(manifest([{}]))}]
    run_recipe = Recipe.model_validate({"runs_root": str(tmp_path / "file" / "runs"), "data": {"sources": sources}})
    with pytest.raises(OSError, match="Not a directory"):
        prepare(run_recipe)
    assert (tmp_path / "file").read_text() == "no folder"


# At shares of a quarter each (test_splits_are_the_same_on_every_machine): alice dev, carol test, erin train.
UNLABELLED = [
    {"text": ""},
    {"text": "", "speaker": "alice"},
    {"text": " ", "speaker": "carol"},
    {"text": "", "speaker": "erin"},
]
QUARTERS = {"dev_share": 0.25, "test_share": 0.25}


def with_targets_kind(run_recipe, kind):
    return Recipe.model_validate({**run_recipe.model_dump(mode="json"), "targets": {"kind": kind}})


def test_rows_without_text_are_train_data_for_pseudo_labels(manifest, recipe):
    folder = manifest([{"text": "with text", "speaker": name} for name in ("alice", "carol", "erin")] + UNLABELLED)
    run_recipe = with_targets_kind(recipe(folder, **QUARTERS), "pseudo")
    result = prepare(run_recipe)
    assert result["read"] == 7
    assert result["utterances"] == {"train": 3, "dev": 1, "test": 1} and result["without_text"] == 2
    assert result["quarantined"] == {"no reference for the dev split": 1, "no reference for the test split": 1}
    assert sum(result["utterances"].values()) + sum(result["quarantined"].values()) == result["read"]
    train = read_utterances(Run(run_recipe).shards, "train")
    assert [(u.text, u.speaker) for u in train] == [("with text", "erin"), ("", ""), ("", "erin")]
    assert [line["reason"] for line in quarantine(Run(run_recipe))] == list(result["quarantined"])
    for split in ("dev", "test"):
        assert all(u.text for u in read_utterances(Run(run_recipe).shards, split))


def test_row_unusable_in_the_split_is_not_quarantined(manifest, recipe):
    rows = [{"text": "", "speaker": name} for name in ("alice", "bob", "carol", "dave", "erin")]
    whole = [{"speaker": name, "text": "words"} for name in ("alice", "carol")]
    rows = [*whole, *rows]
    run_recipe = with_targets_kind(recipe(manifest(rows), max_quarantine_share=0.0, **QUARTERS), "pseudo")
    assert prepare(run_recipe)["utterances"] == {"train": 1, "dev": 1, "test": 1}  # four of seven are set aside
    folder = manifest([*rows, {"bytes": b"x"}], name="bad")
    bad = with_targets_kind(recipe(folder, max_quarantine_share=0.1, **QUARTERS), "pseudo")
    with pytest.raises(AskdError, match=r"1 of 8 rows can't be used .*max_quarantine_share = 0\.1"):
        prepare(bad, force=True)


def test_kind_of_targets_only_matters_for_missing_text(manifest, recipe, capsys):
    whole = recipe(manifest([{}, {}], name="whole"), **ALL_TRAIN)
    for kind in ("reference", "pseudo", "reference"):
        prepare(with_targets_kind(whole, kind))
    assert capsys.readouterr().out.count("finished already") == 2
    prepare(with_targets_kind(whole, "pseudo"), force=True)
    prepare(whole)
    assert "finished already" in capsys.readouterr().out

    some = recipe(manifest([{}, {"text": ""}], name="some"), max_quarantine_share=0.5, **ALL_TRAIN)
    some = some.model_copy(update={"name": "some"})
    for kind, n in (("reference", 1), ("pseudo", 2), ("reference", 1)):
        assert prepare(with_targets_kind(some, kind))["utterances"]["train"] == n
        assert prepare(with_targets_kind(some, kind))["utterances"]["train"] == n
    assert capsys.readouterr().out.count("finished already") == 3


def test_missing_text_column(manifest, recipe, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "manifest.jsonl").write_text('{"audio": "0.wav"}\n')
    (folder / "0.wav").write_bytes(noise_file())
    run_recipe = recipe(folder, **ALL_TRAIN)
    with pytest.raises(AskdError, match="no column 'text'"):
        prepare(run_recipe)
    assert prepare(with_targets_kind(run_recipe, "pseudo"))["without_text"] == 1

    table = pa.table({"audio": [{"bytes": noise_file(), "path": "0.wav"}]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = {"path": str(tmp_path / "rows.parquet"), "kind": "parquet"}
    values = {**run_recipe.model_dump(mode="json"), "name": "rows"}
    rows = Recipe.model_validate({**values, "data": {"sources": [source], **ALL_TRAIN}})
    with pytest.raises(AskdError, match="columns 'audio' and 'text'"):
        prepare(rows)
    assert prepare(with_targets_kind(rows, "pseudo"))["without_text"] == 1


def test_shards_on_s3_equal_local_shards(manifest, recipe, s3, capsys):
    rows = [{"speaker": f"s{i % 7}"} for i in range(12)]
    here = recipe(manifest([*rows, {"text": ""}]), utterances_per_shard=3, dev_share=0.3, test_share=0.3)
    there = here.model_copy(update={"data_root": s3("root"), "runs_root": f"{here.runs_root}-there"})
    assert prepare(there) == prepare(here)
    capsys.readouterr()
    assert prepare(there)["read"] == 13 and "finished already" in capsys.readouterr().out
    stored = {str(f).removeprefix(str(Run(there).data_path)): f for f in Run(there).data_path.files(recursive=True)}
    for file in Run(here).shards.files():
        assert stored.pop(f"/shards/{file.name}").read_bytes() == file.read_bytes()
    assert set(stored) == {"/prepare.json"}
    assert b"s3://b" in stored["/prepare.json"].read_bytes()
    for written in (stored["/prepare.json"].read_bytes(), (Run(there).path / "recipe.yaml").read_bytes()):
        assert b"mysecret" not in written
    assert [p.name for p in Run(there).path.iterdir()] == ["recipe.yaml"]  # nothing lands on this machine's disk


def test_interrupted_prepare_on_s3_is_not_reused(manifest, recipe, s3, tmp_path):
    folder = manifest([{}] * 5)
    run_recipe = recipe(folder, utterances_per_shard=1, **ALL_TRAIN).model_copy(update={"data_root": s3("root")})
    prepare(run_recipe)
    with pytest.raises(AskdError, match=r"x\.tar is damaged"):
        prepare(with_damaged_tar(run_recipe, tmp_path / "x.tar"))
    assert Run(run_recipe).record("prepare") is None
    with pytest.raises(AskdError, match="are unfinished"):
        read_utterances(Run(run_recipe).shards, "train")
    (folder / "manifest.jsonl").write_text('{"audio": "0.wav", "text": "x"}\n')
    assert prepare(run_recipe)["read"] == 1
    assert [u.text for u in read_utterances(Run(run_recipe).shards, "train")] == ["x"]


def test_too_many_bad_rows_on_s3_write_quarantine_and_no_shards(manifest, recipe, s3):
    run_recipe = recipe(manifest([{}] * 3 + [{"text": ""}] * 2), utterances_per_shard=1, **ALL_TRAIN)
    run_recipe = run_recipe.model_copy(update={"data_root": s3("root")})
    with pytest.raises(
        AskdError, match=r"2 of 5 rows can't be used.*; s3://b\w+/root/mine/shards/quarantine\.jsonl lists"
    ):
        prepare(run_recipe)
    assert [file.name for file in Run(run_recipe).shards.files()] == ["quarantine.jsonl"]
    assert len(quarantine(Run(run_recipe))) == 2
