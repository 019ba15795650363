"""The folder where downloads live, and the check that they still are what was downloaded."""

import os
from collections.abc import Mapping
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.files import local_path, sha256_of_file


def cache_root() -> Path:
    """Return the folder of downloads: ``$ASKD_CACHE``, or ``~/.cache/askd``.

    Raises :class:`AskdError` where neither is there.
    """
    given = os.environ.get("ASKD_CACHE")
    try:
        return local_path(given or "~/.cache/askd").resolve()
    except AskdError as error:
        raise AskdError(f"{error}; downloads go to $ASKD_CACHE where that is set") from None


def find_damage(folder: Path, sha256: Mapping[str, str]) -> str | None:
    """Return what is wrong with the first file of ``folder`` that is not as ``sha256`` (name to hash) says, or None."""
    for name, expected in sha256.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if sha256_of_file(file) != expected:
            return f"{file} is corrupt (its SHA-256 is not the expected one)"
    return None
