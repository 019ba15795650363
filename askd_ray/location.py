"""A location of data: a local folder or an object store, with one set of operations (pyarrow's file systems)."""

import errno
import os
import posixpath
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar, Union

import pyarrow as pa
from pyarrow import fs

from askd_ray.errors import AskdError, without_credentials
from askd_ray.files import atomic_path, local_path, scheme_of

UNFINISHED = ".unfinished"
"""A marker file in a folder of an object store, from the start of its replacement until the folder is complete."""

_ALLOWED = "a folder, s3://BUCKET/..., gs://BUCKET/... or hf://datasets/USER/NAME/... is allowed"
_BUFFER_BYTES = 8 << 20  # every read is a request to the store: few large reads are faster
_GIVE_UP_S = 30
_REQUESTS = 16  # concurrent requests for many small objects
_STORE_ERROR = re.compile(r"AWS Error (\w+)|google::cloud::Status\((\w+)")
_HUB_CLIENT = ("httpx", "httpx2", "huggingface_hub")  # their errors come from the hub or the network

_IN_WORDS = {
    "there is no such bucket": {"NO_SUCH_BUCKET"},
    "the store cannot be reached": {"NETWORK_CONNECTION", "UNAVAILABLE", "ConnectError", "ConnectTimeout"},
    "access denied: give credentials with access (in the environment, or as key:secret@ in the URI)": {
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_SIGNATURE", "SIGNATURE_DOES_NOT_MATCH"),
        *("PERMISSION_DENIED", "UNAUTHENTICATED"),
    },
}

_In = TypeVar("_In")
_Out = TypeVar("_Out")
PathOrUri = Union["Location", Path, str]
"""The argument types of :meth:`Location.of`."""


@dataclass(frozen=True, repr=False)
class Location:
    """A file or folder: ``path`` in the file system of ``root``, which is "" for the local file system.

    Create it with :meth:`of`. It can be sent to Ray tasks: it is two strings. ``root`` may contain credentials;
    ``str()`` gives the path or the URI without them. Errors of a store become an :class:`AskdError`. A missing file
    stays a :class:`FileNotFoundError`, and an error of a disk an :class:`OSError`.
    """

    root: str
    path: str

    @classmethod
    def of(cls, place: PathOrUri) -> "Location":
        """Return the location of a path or a URI; s3:// and gs:// accept pyarrow's options, such as ``?region=...``.

        Raises :class:`AskdError` for another scheme (s3:/, S3://), and for a URI without a bucket or data set.
        """
        if isinstance(place, Location):
            return place
        if scheme_of(str(place)) is None:
            return cls("", str(local_path(place)))
        scheme, _, rest = str(place).partition("://")
        if scheme == "hf" and re.match(r"datasets/[^/]+/[^/]", rest):
            return cls("hf://", posixpath.normpath(rest))
        if scheme not in ("s3", "gs"):
            raise AskdError(f"{without_credentials(str(place))}: unknown scheme, or no data set: {_ALLOWED}")
        rest, _, options = rest.partition("?")
        authority, _, path = rest.partition("/")
        bucket = authority.rpartition("@")[2]
        if not bucket or ":" in bucket:
            slash = "write a '/' in a key or secret as %2F; " if bucket else ""
            raise AskdError(f"{scheme}:// without a bucket: {slash}{_ALLOWED}")
        if scheme == "gs" and "retry_limit_seconds=" not in options:  # else its client retries for 15 minutes
            options += f"&retry_limit_seconds={_GIVE_UP_S}"
        return cls(f"{scheme}://{authority}/?{options}", posixpath.normpath(f"{bucket}/{path}"))

    def __str__(self) -> str:
        return f"{self.root.partition('://')[0]}://{self.path}" if self.root else self.path

    __repr__ = __str__

    def __truediv__(self, below: str) -> "Location":
        path = posixpath.normpath(f"{self.path}/{below}") if self.root else str(Path(self.path) / below)
        return Location(self.root, path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "Location":
        """The folder that contains it."""
        return Location(self.root, posixpath.dirname(self.path))

    def exists(self) -> bool:
        """Return whether the file or folder exists."""
        return self._type() != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Return whether it exists and is a file."""
        return self._type() == fs.FileType.File

    def stamped(self, recursive: bool = False) -> dict["Location", tuple[int, int]]:
        """Return the files of a folder, sorted, with size in bytes and time of change (ns; -1 if the store has none).

        A missing folder has no files. Links to folders are not followed.
        """
        with self._store_errors():
            if self.root:
                entries = self._system.get_file_info(fs.FileSelector(self.path, True, recursive))
            else:
                paths = Path(self.path).glob("**/*" if recursive else "*")
                entries = self._system.get_file_info([str(path) for path in paths])
        if not entries:
            self._check_container()
        files = [info for info in entries if info.type == fs.FileType.File]
        return {
            Location(self.root, info.path): (info.size, -1 if info.mtime_ns is None else info.mtime_ns)
            for info in sorted(files, key=lambda info: info.path.split("/"))
        }

    def files(self, pattern: str = "*", recursive: bool = False) -> list["Location"]:
        """Return the files of a folder with names that match ``pattern`` (``train-*.parquet``), sorted."""
        return [file for file in self.stamped(recursive) if fnmatchcase(file.name, pattern)]

    def open(self) -> pa.NativeFile:
        """Open a file for random access, as Parquet needs."""
        with self._store_errors():
            return self._system.open_input_file(self.path)

    def stream(self) -> pa.NativeFile:
        """Open a file for reading from start to end."""
        with self._store_errors():
            return self._system.open_input_stream(self.path, compression=None, buffer_size=_BUFFER_BYTES)

    def read_bytes(self, max_bytes: int | None = None) -> bytes:
        """Return the content of a file.

        Raises :class:`OSError` (``EFBIG``) for more than ``max_bytes`` bytes.
        """
        with self.open() as file:
            if max_bytes is not None and file.size() > max_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self))
            with self._store_errors():
                return file.read()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write a file atomically: with a rename on a local disk, as one object on a store."""
        if not self.root:
            with atomic_path(Path(self.path)) as temporary:
                temporary.write_bytes(data)
        else:
            with self.output() as file, self._store_errors():
                file.write(data)

    @contextmanager
    def output(self) -> Generator[pa.NativeFile]:
        """Open a file for writing in steps, in an existing folder; after an error, the written part stays."""
        if self.root == "hf://":
            raise AskdError(f"{self}: data sets on the hub are read-only here: write to a folder, s3:// or gs://")
        with self._store_errors():
            file = self._system.open_output_stream(self.path, compression=None)
        try:
            yield file
        finally:
            with self._store_errors():
                file.close()

    def delete(self) -> None:
        """Delete a file, if it exists."""
        try:
            with self._store_errors():
                self._system.delete_file(self.path)
        except FileNotFoundError:
            self._check_container()

    @contextmanager
    def replaced(self) -> Generator["Location"]:
        """Yield an empty folder to fill; after success it replaces this folder.

        On a local disk this is a rename. A store has no rename: the old files are deleted first, and
        :data:`UNFINISHED` marks the folder until the block succeeds.
        """
        if not self.root:
            with atomic_path(Path(self.path)) as temporary:
                temporary.mkdir()
                yield Location.of(temporary)
            return
        mark = self / UNFINISHED
        mark.write_bytes(b"")
        map_concurrently(Location.delete, [file for file in self.stamped(recursive=True) if file != mark])
        yield self
        mark.delete()

    @contextmanager
    def explain(self, problem: str, *errors: type[Exception]) -> Generator[None]:
        """Turn errors of reading this file into an :class:`AskdError`.

        The message is that the file does not exist, the store's error, or ``problem``, also for the types ``errors``.
        """
        try:
            yield
        except FileNotFoundError:
            raise AskdError(f"{self} does not exist") from None
        except Exception as error:
            if isinstance(error, AskdError):
                raise
            if _is_of_store(error):
                raise self._store_error(error) from error
            if isinstance(error, (pa.ArrowException, OSError, *errors)):
                raise AskdError(f"{self} {problem}: {' '.join(str(error).split())[:300]}") from None
            raise

    @property
    def _system(self) -> fs.FileSystem:
        return _file_system(self.root)

    def _type(self) -> fs.FileType:
        with self._store_errors():
            (info,) = self._system.get_file_info([self.path])
        if info.type == fs.FileType.NotFound:
            self._check_container()
        return info.type

    @contextmanager
    def _store_errors(self) -> Generator[None]:
        """Turn errors of a store into an :class:`AskdError`, except for a missing file."""
        try:
            yield
        except Exception as error:  # each store's client has other error types
            if isinstance(error, AskdError) or not self.root:
                raise
            if isinstance(error, FileNotFoundError):
                self._check_container()
                raise
            raise self._store_error(error) from error

    def _check_container(self) -> None:
        """Raise an :class:`AskdError` if the bucket or data set does not exist."""
        if not self.root:
            return
        container = "/".join(self.path.split("/")[: 3 if self.root == "hf://" else 1])
        try:
            (info,) = self._system.get_file_info([container])
        except Exception as error:
            raise self._store_error(error) from error
        if info.type == fs.FileType.NotFound:
            kind = "data set (or HF_TOKEN may not see it)" if self.root == "hf://" else "bucket"
            raise AskdError(f"{self}: there is no such {kind}")

    def _store_error(self, error: Exception) -> AskdError:
        text = without_credentials(" ".join(str(error).split()))
        match = _STORE_ERROR.search(text)
        code = next(filter(None, match.groups())) if match else type(error).__name__
        words = next((words for words, codes in _IN_WORDS.items() if code in codes), code)
        return AskdError(f"{self}: {words} ({text[:300]})")


def map_concurrently(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Return ``function`` of each item, in order; many calls run at a time, since a store answers slowly."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


def _is_of_store(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in _HUB_CLIENT or _STORE_ERROR.search(str(error)) is not None


@lru_cache(maxsize=32)
def _file_system(root: str) -> fs.FileSystem:
    """Return the file system of a root; opening one may need a request, for the bucket's region."""
    if not root:
        return fs.LocalFileSystem()
    if root == "hf://":
        return hub_file_system()
    try:
        return fs.FileSystem.from_uri(root)[0]
    except (pa.ArrowException, OSError) as error:
        text = without_credentials(" ".join(str(error).split()))
        raise AskdError(f"{without_credentials(root)}: {text[:300]}") from None


def hub_file_system() -> fs.FileSystem:
    """Return Hugging Face's hub as a file system; the variable ``HF_TOKEN`` gives access to private data sets."""
    from huggingface_hub import HfFileSystem

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
