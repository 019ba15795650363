"""Paths, atomic writes, JSON and hashes: a reader sees a complete file or none."""

import fcntl
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

_URI = re.compile(r"([a-z][a-z0-9+.-]+):/", re.IGNORECASE)  # one slash is probably a typing error of a URI


def scheme_of(place: str) -> str | None:
    """Return the scheme of a URI, unchanged, or None for a path."""
    match = _URI.match(place)
    return None if match is None else match[1]


def check_place(place: str, *schemes: str) -> str:
    """Return ``place`` unchanged if it is a local path or a URI of one of the schemes.

    Raises :class:`AskdError` for other URIs, and as :func:`local_path` does.
    """
    scheme = scheme_of(place)
    if scheme is None or not schemes:
        local_path(place)
    elif scheme not in schemes or not place.startswith(f"{scheme}://"):
        allowed = " or ".join(f"{known}://..." for known in schemes)
        raise AskdError(f"{without_credentials(place)}: a path is allowed, or {allowed}")
    return place


def local_path(place: str | Path) -> Path:
    """Return an absolute local path, with ``~`` expanded.

    Raises :class:`AskdError` for a URI, which would become a local folder of that name, and for ``~`` without a home.
    """
    text = str(place)
    if scheme_of(text) is not None:
        shown = without_credentials(text)
        raise AskdError(f"{shown}: expected a path on this machine (a local or mounted disk), not a URI")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise AskdError(f"{text}: this user has no home folder: set HOME, or give a path without ~") from None


def cache_root() -> Path:
    """Return the folder of downloads and of copies: ``$ASKD_CACHE``, or ``~/.cache/askd``.

    Raises :class:`AskdError` if neither can be used.
    """
    given = os.environ.get("ASKD_CACHE")
    try:
        return local_path(given or "~/.cache/askd").resolve()
    except AskdError as error:
        raise AskdError(f"{error}; downloads go to $ASKD_CACHE if that is set") from None


@contextmanager
def file_lock(path: Path) -> Generator[None]:
    """Hold a lock file of this machine: one process (or thread) at a time runs the block. The file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the file, also if the process is killed
        yield


@contextmanager
def atomic_path(target: Path) -> Generator[Path]:
    """Yield a temporary path next to ``target``. After success it becomes ``target``; after an error it is deleted.

    Works for a file and for a folder (the block creates one of them). An existing folder is replaced: it is moved away
    first, since a rename onto a folder that is not empty fails.
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


def clear_interrupted(target: Path) -> None:
    """Delete the temporary files and folders of :func:`atomic_path` for ``target`` that killed processes left.

    No other process may be writing ``target``.
    """
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if path.name.startswith(f".{target.name}.") and path.suffix in (".tmp", ".old"):
            remove(path)


def _sync(path: Path) -> None:
    """Flush files to the disk, so that a rename never leads to an empty file after a power failure."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def hash_fraction(name: str) -> float:
    """Return a number in [0, 1) from a hash of a name: equal on every machine, and uniform over many names."""
    bits = name.encode(errors="surrogatepass")  # names from files may contain lone surrogates
    return int.from_bytes(hashlib.sha256(bits).digest()[:8], "big") / 2**64


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """Return ``value`` as indented JSON with a final line break."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return a short, stable hash (16 hex digits) of any JSON value, for the keys of stages."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
