import json
import shutil
import subprocess

import pytest
import soundfile

from askd_ray.errors import AskdError
from askd_ray.fetch import speech as module
from askd_ray.fetch.speech import fetch_speech, speech_folder


def test_prompts_texts_and_licence(speech):
    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == 542
    assert all(set(row) == {"audio", "text", "domain", "language", "licence"} for row in rows)
    texts = {row["audio"]: row["text"] for row in rows}
    assert texts["audio/digits/1.flac"].lower() == "one"
    assert not any(set(text) & set("[]()") for text in texts.values())
    minutes = sum(soundfile.info(speech / row["audio"]).duration for row in rows) / 60
    assert 23 < minutes < 25
    licence = (speech / "LICENSE.txt").read_text()
    assert "Allison Smith" in licence and "CC-BY-SA-3.0" in licence and "Digium" in licence


def test_cached_speech_needs_no_tools(speech, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert fetch_speech("ivr") == speech_folder("ivr") == speech


@pytest.mark.parametrize("change", ["flip", "delete", "no sums"])
def test_damaged_cache_is_refused_with_a_repair_command(speech, cache, change):
    folder = cache / "speech" / "ivr"
    shutil.copytree(speech, folder)
    clip = folder / "audio" / "activated.flac"
    if change == "flip":
        clip.write_bytes(clip.read_bytes()[:-1] + b"\0")
    else:
        (clip if change == "delete" else folder / "SHA256SUMS").unlink()
    name = "SHA256SUMS" if change == "no sums" else "activated.flac"
    for call in (fetch_speech, speech_folder):
        with pytest.raises(AskdError, match=rf"{name} is (corrupt|missing).*`askd fetch speech ivr --force`"):
            call("ivr")


def test_missing_speech_is_refused(cache):
    with pytest.raises(AskdError, match=r"speech ivr is not in .*`askd fetch speech ivr` fetches it"):
        speech_folder("ivr")


def test_unknown_names_are_refused(cache):
    with pytest.raises(AskdError, match=r"no speech 'ivy': known are ivr; did you mean 'ivr'\?"):
        fetch_speech("ivy")


def test_missing_apt_is_refused_with_an_alternative(cache, monkeypatch):
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(AskdError, match=r"no apt-get here.*data\.sources=\[\{path: FOLDER\}\].*demo SPEECH=FOLDER"):
        fetch_speech("ivr")
    assert not (cache / "speech").exists()


def test_package_lists_are_fetched_into_a_private_folder(cache, monkeypatch):
    """An apt that always fails: what is asked of it, and what is left behind."""
    asked = []

    def run(command, folder):
        asked.append((command, folder))
        return subprocess.CompletedProcess(command, 100, "", "W: x\nE: Unable to locate package\nE: y\n")

    monkeypatch.setattr(module, "_run", run)
    monkeypatch.setattr(module.shutil, "which", lambda tool: tool)
    with pytest.raises(AskdError, match=r"could not fetch asterisk.*\(E: Unable to locate package\).*data\.sources"):
        fetch_speech("ivr")
    assert [("download" in c, "update" in c) for c, _ in asked] == [(True, False), (False, True), (True, False)]
    assert not any("Dir::State::Lists" in word for word in asked[0][0])
    for command, folder in asked[1:]:
        assert f"Dir::State::Lists={folder}/lists" in command
    assert list((cache / "speech").iterdir()) == []


@pytest.fixture
def unpacked(tmp_path_factory):
    """What dpkg-deb leaves of a small package."""
    tmp_path = tmp_path_factory.mktemp("unpacked")
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US_f_Allison"
    (sounds / "digits").mkdir(parents=True)
    for name in ("hello", "digits/1", "beep", "note"):
        (sounds / f"{name}.g722").write_bytes(name.encode() * 2000)
    docs = tmp_path / "usr/share/doc/asterisk-core-sounds-en"
    docs.mkdir(parents=True)
    (docs / "core-sounds-en.txt").write_text(
        "; a comment: no speech\n\nhello: Hello: there.\ndigits/1: one\nbeep: [a beep]\nnote: IAX (note)\ngone: Gone.\n"
    )
    return tmp_path


def test_only_prompts_with_audio_and_plain_text_are_kept(unpacked):
    assert [(p.name, p.text) for p in module._prompts(unpacked)] == [("digits/1", "one"), ("hello", "Hello: there.")]


def test_other_contents_are_refused(unpacked, cache, monkeypatch):
    monkeypatch.setattr(module, "_download", lambda name, work: shutil.copytree(unpacked, work, dirs_exist_ok=True))
    monkeypatch.setattr(module.shutil, "which", lambda tool: tool)
    with pytest.raises(AskdError, match=r"other contents than the known ones.*--set data\.sources"):
        fetch_speech("ivr")
    assert list((cache / "speech").iterdir()) == []
