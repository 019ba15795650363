from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from askd_ray.config.augment import Augment
from askd_ray.files import read_json, write_json
from askd_ray.runs import Run
from askd_ray.search.feature_budget import features_gb, shared_features

HOUR_GB = {"waveforms": 0.2304, "log-mels": 0.18432}
MASKS, NOISE = {"speed": [1.0]}, {"speed": [0.9, 1.0]}


@pytest.fixture
def recipe_of(searched: Callable[..., Any]) -> Callable[..., Any]:
    """Return a recipe with so many hours of prepared speech."""

    def make(hours: float, augment: dict[str, Any] = MASKS, **tune: Any) -> Any:
        recipe = searched(tune, augment=Augment.model_validate(augment).model_dump(mode="json"))
        record = Run(recipe).data_path / "prepare.json"
        prepared = read_json(Path(str(record)))
        prepared["result"]["minutes"]["train"] = 60 * hours
        write_json(Path(str(record)), prepared)
        return recipe

    return make


@pytest.mark.parametrize(("augment", "kind"), [(MASKS, "log-mels"), (NOISE, "waveforms")])
def test_size_of_decoded_clips(augment: dict[str, Any], kind: str, recipe_of: Callable[..., Any]):
    assert features_gb(recipe_of(100.0, augment)) == pytest.approx(100 * HOUR_GB[kind])


def test_clips_are_shared_if_they_fit(
    recipe_of: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = recipe_of(1.0)
    assert shared_features(recipe, tmp_path) == tmp_path / "features"
    assert "tune: the trials share decoded clips: 0.2 GB (tune.max_features_gb = 32)" in capsys.readouterr().out

    def decision(hours: float, limit_gb: float) -> str:
        settings = recipe.tune.model_copy(update={"max_features_gb": limit_gb})
        record = Path(str(Run(recipe).data_path / "prepare.json"))
        write_json(record, read_json(record) | {"result": {"minutes": {"train": 60 * hours}}})
        assert shared_features(recipe.model_copy(update={"tune": settings}), tmp_path) is None
        return " ".join(capsys.readouterr().out.split())

    assert decision(1000.0, 32.0).endswith("decoded clips would take 184.3 GB, and tune.max_features_gb = 32")
    assert "each trial reads the shards: decoded clips would take" in decision(1e9, 1e12)
    assert "GB free" in decision(1e9, 1e12)
    assert decision(1.0, 0.0) == ""
