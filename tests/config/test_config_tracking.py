from pathlib import Path

import pytest

from askd_ray.config.load import load_recipe, with_absolute_paths
from askd_ray.errors import AskdError


def test_a_folder_and_a_server():
    folder = with_absolute_paths(load_recipe("demo", ["tracking.mlflow=some/folder", "tracking.experiment=calls"]))
    assert folder.tracking.mlflow == str(Path("some/folder").resolve()) and not folder.tracking.is_server
    server = with_absolute_paths(load_recipe("demo", ["tracking.mlflow=https://mlflow.example:5000"]))
    assert server.tracking.mlflow == "https://mlflow.example:5000" and server.tracking.is_server


def test_an_experiment_without_a_store_is_refused():
    with pytest.raises(AskdError, match=r"tracking: experiment = 'calls' would be ignored: tracking.mlflow names no"):
        load_recipe("demo", ["tracking.experiment=calls"])


@pytest.mark.parametrize("where", ["sqlite:///mlflow.db", "postgresql://me:hush@host/db", "http://", ""])
def test_other_stores_are_refused(where: str):
    with pytest.raises(AskdError, match=r"tracking: mlflow is a folder, or the address of a tracking server") as error:
        load_recipe("demo", [f"tracking.mlflow='{where}'"])
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("where", ["http://me:hush@host:5000", "https://hush@host", "https://host/?token=hush"])
def test_secrets_are_refused_and_not_repeated(where: str):
    with pytest.raises(AskdError, match="MLFLOW_TRACKING_PASSWORD") as error:
        load_recipe("demo", [f"tracking.mlflow={where}"])
    assert "hush" not in str(error.value)
