import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from askd_ray.errors import AskdError
from askd_ray.models import cublas
from askd_ray.models.cublas import load_cublas
from askd_ray.models.engine import Engine

NAMES = ["libcublasLt.so.12", "libcublas.so.12"]


def distribution(site: Path, names: list[str], folder: str = "nvidia/cublas/lib") -> None:
    """Install a fake wheel with some libraries."""
    info = site / "nvidia_cublas_cu12-12.9.3.13.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cublas-cu12\nVersion: 12.9.3.13\n")
    (info / "RECORD").write_text("".join(f"{folder}/{name},,\n" for name in ["libnvblas.so.12", *names]))
    # importlib_metadata, which other packages put before the standard library's finder, lists only files that exist.
    (site / folder).mkdir(parents=True)
    for name in names:
        (site / folder / name).touch()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the loaded libraries; loading a library outside a wheel fails."""
    found: list[str] = []

    def load(name: str, mode: int) -> None:
        assert mode == ctypes.RTLD_GLOBAL
        if "/" not in name:
            raise OSError(f"{name}: cannot open shared object file")
        found.append(name)

    monkeypatch.setattr(cublas.ctypes, "CDLL", load)
    return found


@pytest.mark.parametrize("folder", ["nvidia/cublas/lib", "nvidia/cu12/lib"])
def test_wheel_libraries_are_loaded_by_path_in_order(
    folder: str, loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    distribution(tmp_path, NAMES[::-1], folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_cublas()
    assert loaded == [str(tmp_path / folder / name) for name in NAMES]


@pytest.mark.parametrize("names", [None, [], NAMES[:1], NAMES[1:]], ids=["no wheel", "empty", "one", "the other"])
def test_missing_library_is_a_one_line_error(
    names: list[str] | None, loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if names is not None:
        distribution(tmp_path, names)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(AskdError, match=r"needs cuBLAS of CUDA 12.*pip install nvidia-cublas-cu12") as caught:
        load_cublas()
    assert "\n" not in str(caught.value)


def test_only_gpu_engines_load_cublas(weights: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(AskdError, match="needs cuBLAS of CUDA 12"):
        Engine(weights, device="cuda", compute_type="float16")
    assert Engine(weights).languages == ("en",)


REAL = """
import ctypes
from askd_ray.models.cublas import load_cublas
try:
    ctypes.CDLL("libcublas.so.12")
    raise SystemExit("the system has one: nothing is shown here")
except OSError:
    pass
load_cublas()
print(ctypes.CDLL("libcublas.so.12").cublasCreate_v2 is not None)
"""


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="no wheel for this machine")
def test_installed_cublas_is_found_by_name():
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True, check=False)
    if "the system has one" in done.stderr:
        pytest.skip("the system has a cuBLAS 12 of its own")
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
