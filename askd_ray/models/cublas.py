"""cuBLAS for CTranslate2: its wheels are built for CUDA 12 and bring none, and torch brings that of CUDA 13."""

import ctypes
from importlib import metadata
from pathlib import Path

from askd_ray.errors import AskdError

_DISTRIBUTION = "nvidia-cublas-cu12"
_LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")  # in this order: the second needs the first


def load_cublas() -> None:
    """Load the cuBLAS that CTranslate2 looks for by its name, once it computes on a GPU.

    That of the wheel that is installed with this package, else one that the system's loader finds. A library that is
    loaded already is found by its name, wherever it lies.

    Raises :class:`AskdError` when there is none.
    """
    installed = _installed()
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(str(installed.get(name, name)), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise AskdError(
                f"a model on a GPU needs cuBLAS of CUDA 12, and {name} cannot be loaded ({error}): "
                f"pip install {_DISTRIBUTION}; docs/install.md says what belongs together"
            ) from None


def _installed() -> dict[str, Path]:
    """Return the libraries of the wheel, by name."""
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    files = [file for file in distribution.files or () if file.name in _LIBRARIES]
    return {file.name: Path(str(distribution.locate_file(file))) for file in files}
