"""Where data lie: a local folder or an object store, behind one small set of operations (pyarrow's file systems)."""

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
"""Lies in a folder of an object store from when its replacement begins until it is whole."""

_ALLOWED = "a folder, s3://BUCKET/..., gs://BUCKET/... or hf://datasets/USER/NAME/... is allowed"
_BUFFER_BYTES = 8 << 20  # a store answers each read with a request: few large ones
_GIVE_UP_S = 30
_REQUESTS = 16  # under way at a time where many small things are asked for
_STORE_ERROR = re.compile(r"AWS Error (\w+)|google::cloud::Status\((\w+)")
_HUB_CLIENT = ("httpx", "httpx2", "huggingface_hub")  # modules whose errors are the hub's or the network's

_IN_WORDS = {
    "there is no such bucket": {"NO_SUCH_BUCKET"},
    "the store cannot be reached": {"NETWORK_CONNECTION", "UNAVAILABLE", "ConnectError", "ConnectTimeout"},
    "access denied: credentials that may work there are needed (of the environment, or key:secret@ in the URI)": {
        *("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "INVALID_SIGNATURE", "SIGNATURE_DOES_NOT_MATCH"),
        *("PERMISSION_DENIED", "UNAUTHENTICATED"),
    },
}

_In = TypeVar("_In")
_Out = TypeVar("_Out")
PathOrUri = Union["Location", Path, str]
"""What a :class:`Location` is made from."""


@dataclass(frozen=True, repr=False)
class Location:
    """A file or folder: ``path`` in the file system of ``root``, which is "" for this machine's own.

    Made by :meth:`of`. It travels to Ray tasks as it is: two strings, of which ``root`` may hold credentials; ``str()``
    gives the path or the URI without them. What a store refuses becomes an :class:`AskdError`; a file that is missing
    stays a :class:`FileNotFoundError`, and a disk's trouble an :class:`OSError`.
    """

    root: str
    path: str

    @classmethod
    def of(cls, place: PathOrUri) -> "Location":
        """Return the location of a path or a URI: s3:// and gs:// take pyarrow's ``?region=...`` options.

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
            slash = "a '/' in a key or secret is written %2F; " if bucket else ""
            raise AskdError(f"{scheme}:// without a bucket: {slash}{_ALLOWED}")
        if scheme == "gs" and "retry_limit_seconds=" not in options:  # its client would try for 15 minutes
            options += f"&retry_limit_seconds={_GIVE_UP_S}"
        return cls(f"{scheme}://{authority}/?{options}", posixpath.normpath(f"{bucket}/{path}"))

    def __str__(self) -> str:
        return f"{self.root.partition('://')[0]}://{self.path}" if self.root else self.path

    __repr__ = __str__

    def __truediv__(self, below: str) -> "Location":
        below_it = posixpath.normpath(f"{self.path}/{below}") if self.root else str(Path(self.path) / below)
        return Location(self.root, below_it)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def suffix(self) -> str:
        """What the name ends with, from its last dot on."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "Location":
        """The folder that it lies in."""
        return Location(self.root, posixpath.dirname(self.path))

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return self._type() != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Whether there is such a file."""
        return self._type() == fs.FileType.File

    def stamped(self, recursive: bool = False) -> dict["Location", tuple[int, int]]:
        """Return the files of a folder, sorted, with bytes and time of change (ns; -1 where a store doesn't say).

        No files where there is no such folder. Links to folders are not followed.
        """
        with self._reached():
            if self.root:
                found = self._system.get_file_info(fs.FileSelector(self.path, True, recursive))
            else:
                paths = Path(self.path).glob("**/*" if recursive else "*")
                found = self._system.get_file_info([str(path) for path in paths])
        if not found:
            self._check_container()
        files = [info for info in found if info.type == fs.FileType.File]
        return {
            Location(self.root, info.path): (info.size, -1 if info.mtime_ns is None else info.mtime_ns)
            for info in sorted(files, key=lambda info: info.path.split("/"))
        }

    def files(self, pattern: str = "*", recursive: bool = False) -> list["Location"]:
        """Return the files of a folder whose name is like ``pattern`` (``train-*.parquet``), sorted."""
        return [file for file in self.stamped(recursive) if fnmatchcase(file.name, pattern)]

    def open(self) -> pa.NativeFile:
        """Open a file for reading here and there, as Parquet is read."""
        with self._reached():
            return self._system.open_input_file(self.path)

    def stream(self) -> pa.NativeFile:
        """Open a file for reading from its begin to its end."""
        with self._reached():
            return self._system.open_input_stream(self.path, compression=None, buffer_size=_BUFFER_BYTES)

    def read_bytes(self, most: int | None = None) -> bytes:
        """Return the whole of a file.

        Raises :class:`OSError` (``EFBIG``) where that is more than ``most`` bytes.
        """
        with self.open() as file:
            if most is not None and file.size() > most:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self))
            with self._reached():
                return file.read()

    def write_bytes(self, data: bytes | pa.Buffer) -> None:
        """Write a file that appears whole or not at all: through a rename here, as one object on a store."""
        if not self.root:
            with atomic_path(Path(self.path)) as temporary:
                temporary.write_bytes(data)
        else:
            with self.output() as file, self._reached():
                file.write(data)

    @contextmanager
    def output(self) -> Generator[pa.NativeFile]:
        """Open a file for writing bit by bit, in a folder that is there; what is written before an error stays."""
        if self.root == "hf://":
            raise AskdError(f"{self}: a data set on the hub is only read here: write to a folder, s3:// or gs://")
        with self._reached():
            file = self._system.open_output_stream(self.path, compression=None)
        try:
            yield file
        finally:
            with self._reached():
                file.close()

    def delete(self) -> None:
        """Delete a file, if it is there."""
        try:
            with self._reached():
                self._system.delete_file(self.path)
        except FileNotFoundError:
            self._check_container()

    @contextmanager
    def replaced(self) -> Generator["Location"]:
        """Yield an empty folder to fill, which takes this one's place when the block ends well.

        Here that is a rename. A store has none: the old files go first, and :data:`UNFINISHED` lies there until the
        block has ended well.
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
    def explain(self, otherwise: str, *errors: type[Exception]) -> Generator[None]:
        """Turn what goes wrong while this file is read into an :class:`AskdError`.

        Its line says that the file does not exist, what the store refuses, or ``otherwise``, for ``errors`` too.
        """
        try:
            yield
        except FileNotFoundError:
            raise AskdError(f"{self} does not exist") from None
        except Exception as error:
            if isinstance(error, AskdError):
                raise
            if _is_of_store(error):
                raise self._refused(error) from error
            if isinstance(error, (pa.ArrowException, OSError, *errors)):
                raise AskdError(f"{self} {otherwise}: {' '.join(str(error).split())[:300]}") from None
            raise

    @property
    def _system(self) -> fs.FileSystem:
        return _file_system(self.root)

    def _type(self) -> fs.FileType:
        with self._reached():
            (info,) = self._system.get_file_info([self.path])
        if info.type == fs.FileType.NotFound:
            self._check_container()
        return info.type

    @contextmanager
    def _reached(self) -> Generator[None]:
        """Turn what a store refuses into an :class:`AskdError`, but for a missing file."""
        try:
            yield
        except Exception as error:  # each store's client has errors of its own
            if isinstance(error, AskdError) or not self.root:
                raise
            if isinstance(error, FileNotFoundError):
                self._check_container()
                raise
            raise self._refused(error) from error

    def _check_container(self) -> None:
        """Say so where not only a file is missing, but the whole bucket or data set."""
        if not self.root:
            return
        container = "/".join(self.path.split("/")[: 3 if self.root == "hf://" else 1])
        try:
            (info,) = self._system.get_file_info([container])
        except Exception as error:
            raise self._refused(error) from error
        if info.type == fs.FileType.NotFound:
            kind = "data set (or HF_TOKEN may not see it)" if self.root == "hf://" else "bucket"
            raise AskdError(f"{self}: there is no such {kind}")

    def _refused(self, error: Exception) -> AskdError:
        text = without_credentials(" ".join(str(error).split()))
        found = _STORE_ERROR.search(text)
        code = next(filter(None, found.groups())) if found else type(error).__name__
        words = next((words for words, codes in _IN_WORDS.items() if code in codes), code)
        return AskdError(f"{self}: {words} ({text[:300]})")


def map_concurrently(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Return ``function`` of each item, in order, many under way at a time: a store takes its time for each."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


def _is_of_store(error: Exception) -> bool:
    return type(error).__module__.split(".")[0] in _HUB_CLIENT or _STORE_ERROR.search(str(error)) is not None


@lru_cache(maxsize=32)
def _file_system(root: str) -> fs.FileSystem:
    """Return the file system of a root; opening one may mean a request (in which region is the bucket?)."""
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
    """Return Hugging Face's hub as a file system; the environment's ``HF_TOKEN`` opens what is not public."""
    from huggingface_hub import HfFileSystem

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
