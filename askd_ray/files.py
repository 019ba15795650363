"""Writing files so that a reader sees the whole of them or nothing."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from askd_ray.errors import AskdError, without_credentials

_URI = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # with one slash it is meant as one too


def scheme_of(place: str) -> str | None:
    """Return the scheme of a URI as it is written, or None for a path."""
    found = _URI.match(place)
    return None if found is None else found[1]


def check_place(place: str, *schemes: str) -> str:
    """Return a path on this machine's disks, or a URI of one of the schemes, as it is.

    Raises :class:`AskdError` for every other URI, and as :func:`local_path` does.
    """
    scheme = scheme_of(place)
    if scheme is None or not schemes:
        local_path(place)
    elif scheme not in schemes or not place.startswith(f"{scheme}://"):
        allowed = " or ".join(f"{known}://..." for known in schemes)
        raise AskdError(f"{without_credentials(place)}: a path is allowed, or {allowed}")
    return place


def local_path(place: str | Path) -> Path:
    """Return a path on this machine's disks, absolute, with ``~`` replaced.

    Raises :class:`AskdError` for a URI: it would become a folder of that name here, and for the home of nobody.
    """
    text = str(place)
    if scheme_of(text) is not None:
        shown = without_credentials(text)
        raise AskdError(f"{shown}: a path on a disk of this machine is expected, or on one that it mounts")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise AskdError(f"{text}: this user has no home folder: set HOME, or give a path without ~") from None


@contextmanager
def atomic_path(target: Path) -> Generator[Path]:
    """Yield a temporary path beside ``target``; it becomes ``target`` when the block ends well, and is gone otherwise.

    Works for a file and for a folder (the block creates whichever it wants). A folder that is already there is
    replaced: it is moved aside first, since a rename onto a folder that is not empty fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        _sync(temporary)
        old = target.with_name(f".{target.name}.{uuid4().hex[:8]}.old")
        if temporary.is_dir() and target.exists():
            target.rename(old)
        try:
            temporary.replace(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        remove(old)
    finally:
        remove(temporary)


def _sync(path: Path) -> None:
    """Flush what was written to the disk, so that a rename never exposes an empty file after a power cut."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def hash_fraction(name: str) -> float:
    """Return a place in [0, 1) that a hash gives to a name: the same on every machine, and even over many names."""
    bits = name.encode(errors="surrogatepass")  # names come from files that may hold half of a character
    return int.from_bytes(hashlib.sha256(bits).digest()[:8], "big") / 2**64


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """Return ``value`` as indented JSON, with a line break at its end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return a short, stable hash (16 hex digits) of anything that JSON can hold: the key of a stage's inputs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
