"""cuBLAS for CTranslate2: its wheels need CUDA 12's cuBLAS but do not include it, and torch includes CUDA 13's."""

import ctypes
from importlib import metadata
from pathlib import Path

from askd_ray.errors import AskdError

_DISTRIBUTION = "nvidia-cublas-cu12"
_LIBRARIES = ("libcublasLt.so.12", "libcublas.so.12")  # in this order: the second needs the first


def load_cublas() -> None:
    """Load cuBLAS before CTranslate2 computes on a GPU and looks for it by name.

    The installed wheel of cuBLAS comes first, then the system's library path. CTranslate2 finds a library that is
    already loaded by its name, from any folder.

    Raises :class:`AskdError` when there is no cuBLAS.
    """
    installed = _installed()
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(str(installed.get(name, name)), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise AskdError(
                f"a model on a GPU needs cuBLAS of CUDA 12, and {name} cannot be loaded ({error}): "
                f"pip install {_DISTRIBUTION}; docs/install.md lists compatible versions"
            ) from None


def _installed() -> dict[str, Path]:
    """Return the libraries of the installed wheel, by name."""
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return {}
    files = [file for file in distribution.files or () if file.name in _LIBRARIES]
    return {file.name: Path(str(distribution.locate_file(file))) for file in files}
