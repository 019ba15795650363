"""The check that downloaded files are unchanged."""

from collections.abc import Mapping
from pathlib import Path

from askd_ray.files import sha256_of_file


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
