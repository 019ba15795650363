import logging
import shutil
from pathlib import Path

import pytest
from serving import bundle_of

from askd_ray.errors import AskdError
from askd_ray.files import read_json, write_json
from askd_ray.models.bundle import BUNDLE_FILE, REFERENCE, hashes
from askd_ray.serve import swap
from askd_ray.serve.engine import Hardware, ServedModels
from askd_ray.serve.registry import Registry
from askd_ray.serve.swap import Follower, load_verified


def test_versions_are_promoted_and_rolled_back(registry: Registry, tmp_path: Path, weights: Path):
    assert registry.names() == [] and registry.current("m") is None
    first = registry.add("m", bundle_of(tmp_path / "a", weights))
    second = registry.add("m", bundle_of(tmp_path / "b", weights, b"!"))
    assert first != second and registry.names() == []
    with pytest.raises(AskdError, match="no earlier version"):
        registry.roll_back("m")
    for place in (first, second, first):
        registry.promote("m", place.name)
        assert registry.current("m") == place
    assert registry.names() == ["m"]
    assert registry.roll_back("m") == second == registry.current("m")
    with pytest.raises(AskdError, match="no earlier version"):
        registry.roll_back("m")
    assert (first / "ctranslate2-int8" / "model.bin").is_file()


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101])
def test_invalid_model_names_are_refused(registry: Registry, name: str, weights: Path):
    with pytest.raises(AskdError, match="model name"):
        registry.add(name, weights)


def test_damaged_registry_names_the_file(registry: Registry):
    (registry.folder / "m").mkdir(parents=True)
    (registry.folder / "m" / "current.json").write_text("[]")
    with pytest.raises(AskdError, match=r"current\.json is damaged"):
        registry.current("m")


@pytest.mark.slow
def test_service_follows_the_registry_and_keeps_the_old_model_on_a_bad_bundle(
    registry: Registry, tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    caplog.set_level(logging.WARNING)
    first = registry.add("m", bundle_of(tmp_path / "a", weights))
    second = registry.add("m", bundle_of(tmp_path / "b", weights, b"\0"))
    bad = registry.add("m", bundle_of(tmp_path / "c", weights, b"\1"))
    (bad / "ctranslate2-int8" / "config.json").write_text("{}")
    registry.promote("m", first.name)
    models = ServedModels()
    follower = Follower(models, registry, Hardware())
    follower.load_all()

    def served() -> str:
        return models._loaded["m"].model.version

    assert served() == first.name
    registry.promote("m", bad.name)
    follower.follow("m")
    assert served() == first.name
    assert "config.json is corrupt" in follower.refused["m"]
    replaced = Follower(ServedModels(), registry, Hardware())  # an engine that starts now goes back to what was good
    replaced.load_all()
    assert replaced._models._loaded["m"].model.version == first.name
    assert "config.json is corrupt" in replaced.refused["m"]
    tries: list[Path] = []
    monkeypatch.setattr(swap, "load_verified", lambda bundle, *_: tries.append(bundle))
    follower.follow("m")
    assert tries == []  # it is not tried again and again
    monkeypatch.undo()
    registry.promote("m", second.name)
    follower.follow("m")
    assert served() == second.name and follower.refused == {}
    assert "is now version" in caplog.text
    only_bad = Registry(tmp_path / "other")
    only_bad.promote("m", only_bad.add("m", bad).name)
    with pytest.raises(AskdError, match=r"config\.json is corrupt"):
        Follower(ServedModels(), only_bad, Hardware()).load_all()


@pytest.mark.slow
def test_reference_clips_detect_another_model(tmp_path: Path, weights: Path, speech: Path):
    row = read_first(speech)
    folder = bundle_of(tmp_path / "a", weights)
    (folder / REFERENCE).mkdir()
    shutil.copy(speech / row["audio"], folder / REFERENCE / "clip.wav")
    for text, good in ((row["text"], True), ("Something else that nobody said.", False)):
        write_json(folder / REFERENCE / "reference.json", [{"file": "clip.wav", "language": "en", "text": text}])
        described = read_json(folder / BUNDLE_FILE)
        write_json(folder / BUNDLE_FILE, {**described, "sha256": hashes(folder)})
        if good:
            assert load_verified(folder, "m", Hardware()).model.languages == ("en",)
        else:
            with pytest.raises(AskdError, match="differ from those of the export"):
                load_verified(folder, "m", Hardware())


def read_first(speech: Path) -> dict[str, str]:
    import json

    rows = [json.loads(line) for line in (speech / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(row for row in rows if row["text"].startswith("Please enter"))
