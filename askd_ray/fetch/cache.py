"""The folder of downloads, and the check that downloaded files are unchanged."""

import os
from collections.abc import Mapping
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.files import local_path, sha256_of_file


def cache_root() -> Path:
    """Return the folder of downloads: ``$ASKD_CACHE``, or ``~/.cache/askd``.

    Raises :class:`AskdError` if neither can be used.
    """
    given = os.environ.get("ASKD_CACHE")
    try:
        return local_path(given or "~/.cache/askd").resolve()
    except AskdError as error:
        raise AskdError(f"{error}; downloads go to $ASKD_CACHE if that is set") from None


def find_damage(folder: Path, sha256: Mapping[str, str]) -> str | None:
    """Return the problem of the first file in ``folder`` that is missing or differs from its SHA-256, or None.

    ``sha256`` maps file names to hashes.
    """
    for name, expected in sha256.items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if sha256_of_file(file) != expected:
            return f"{file} is corrupt (its SHA-256 is not the expected one)"
    return None
