import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from tiny_run import record_as_labelled

from askd_ray import ray_cluster
from askd_ray.config.load import dump_recipe
from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.ray_cluster import auth_token, connect, disconnect
from askd_ray.runs import Run

LOCAL_CLUSTER = """
import os, ray
from askd_ray.ray_cluster import connect, disconnect
connect(num_cpus=3)
connect()
print(ray.cluster_resources()["CPU"], os.environ["RAY_AUTH_MODE"])
disconnect()
print(ray.is_initialized())
"""


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", "no Ray cluster at RAY_ADDRESS=127.0.0.1:1"),
        ("127.0.0.1:99999", "no Ray cluster at"),
        ("http://127.0.0.1:8265", "askd submit"),
    ],
)
def test_address_without_a_cluster_is_refused(
    no_cluster: None, monkeypatch: pytest.MonkeyPatch, address: str, expected: str
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AskdError, match=expected) as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_token_is_read_from_the_places_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("home\n")
    assert auth_token() == "home"
    (tmp_path / "file").write_text("file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert auth_token() == "file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "variable")
    assert auth_token() == "variable"


@pytest.mark.full
@pytest.mark.slow
def test_local_cluster_needs_a_token_and_writes_none(tmp_path: Path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ray_cluster.package_folder().parent)}
    out = subprocess.run(
        [sys.executable, "-c", LOCAL_CLUSTER], env=environment, capture_output=True, text=True, timeout=120
    )
    assert out.stdout == "3.0 token\nFalse\n", out.stderr
    assert not (tmp_path / ".ray").exists()


@pytest.mark.slow
def test_disconnect_leaves_a_cluster_of_others_running(ray_session: None):
    node = ray.get_runtime_context().get_node_id()
    connect()
    disconnect()
    assert ray.get_runtime_context().get_node_id() == node


@pytest.mark.slow
def test_workers_import_the_package(ray_session: None):
    @ray.remote
    def seen() -> str:
        import askd_ray

        return str(askd_ray.__file__)

    assert Path(ray.get(seen.remote())).parent == ray_cluster.package_folder()
    assert ray.cluster_resources()["CPU"] >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster.ray, "is_initialized", lambda: pytest.fail("Ray was asked first"))
    with pytest.raises(AskdError, match=r"no GPU that torch can use.*--set train\.workers\.gpu=false.*RAY_ADDRESS"):
        connect(use_gpu=True)


@pytest.mark.slow
def test_gpu_unknown_to_ray_is_refused(ray_session: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(ray_cluster.ray, "cluster_resources", lambda: {"CPU": 4.0})
    with pytest.raises(AskdError, match="Ray finds none on this machine"):
        connect(use_gpu=True)


@pytest.mark.full
@pytest.mark.slow
def test_stages_wait_for_the_first_node_with_cpus(copy_of_run: Callable[[], Recipe], tmp_path: Path):
    """A cluster whose groups of nodes grow from zero has no CPU when a stage begins."""
    recipe = copy_of_run()
    run, file = Run(recipe), tmp_path / "recipe.yaml"
    record_as_labelled(run)
    for path in (run.path / "label.json", *map(str, run.labels.files("train-*"))):
        os.remove(path)
    file.write_text(dump_recipe(recipe), encoding="utf-8")
    script = Path(__file__).parent / "support" / "late_node.py"
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # a short path, because socket paths have a length limit
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 32, "RAY_TMPDIR": folder}
        paths = os.pathsep.join([str(ray_cluster.package_folder().parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(script), str(file)],
            env=others | token | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=400,
        )
    assert done.returncode == 0, done.stderr
    assert len(run.labels.files("train-*")) == 2 and run.student.is_dir()
