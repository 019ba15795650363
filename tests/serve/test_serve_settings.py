from pathlib import Path

import pytest
from serving import bundle_of

from askd_ray.errors import AskdError
from askd_ray.serve.registry import Registry
from askd_ray.serve.settings import ServiceArgs, named_models


def test_models_by_name(tmp_path: Path, weights: Path):
    bundle = bundle_of(tmp_path / "student", weights)
    assert named_models(bundle, [f"base={weights}"]) == {"student": str(bundle), "base": str(weights.resolve())}
    for wrong in ("base", "=x", "base="):
        with pytest.raises(AskdError, match="NAME=BUNDLE"):
            named_models(None, [wrong])
    with pytest.raises(AskdError, match="each name once"):
        named_models(None, ["a=x", "a=y"])


def test_settings_are_checked_before_the_start(tmp_path: Path, weights: Path):
    registry = Registry(tmp_path / "registry")
    with pytest.raises(AskdError, match="no model to serve"):
        ServiceArgs(registry=str(registry.folder)).check()
    place = registry.add("fast", bundle_of(tmp_path / "student", weights))
    registry.promote("fast", place.name)
    both = ServiceArgs(models={"base": str(weights)}, registry=str(registry.folder))
    assert both.check() == ["base", "fast"]
    with pytest.raises(AskdError, match="has the name of another model"):
        ServiceArgs(models={"fast": str(weights)}, registry=str(registry.folder)).check()
    with pytest.raises(AskdError, match="no model in"):
        ServiceArgs(models={"fast": str(tmp_path)}).check()
    with pytest.raises(AskdError, match="cannot be read"):
        ServiceArgs(models={"base": str(weights)}, keys_file=str(tmp_path / "keys")).check()
