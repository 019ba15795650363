"""A location of data: a local folder or an object store, with one set of operations (pyarrow's file systems)."""

import errno
import os
import posixpath
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeVar, Union

import pyarrow as pa
from pyarrow import fs

from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, clear_interrupted, local_path, remove, scheme_of
from askd_ray.stores import HUB, check_container, file_system, in_words, is_of_store, parse_uri

UNFINISHED = ".unfinished"
"""A marker file in a folder of an object store, from the start of its replacement until the folder is complete."""

_BUFFER_BYTES = 8 << 20  # every read is a request to the store: few large reads are faster
_REQUESTS = 16  # concurrent requests for many small objects

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
        return cls(*parse_uri(str(place)))

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
        """Write a file atomically; see :meth:`atomic_output`."""
        with self.atomic_output() as file, self._store_errors():
            file.write(data)

    @contextmanager
    def atomic_output(self) -> Generator[pa.NativeFile]:
        """Open a file for writing in steps: on a local disk it appears by a rename, on a store as one object.

        After an error, a local file is as before, and a store has the written part.
        """
        if self.root:
            with self.output() as file:
                yield file
        else:
            with atomic_path(Path(self.path)) as temporary, pa.OSFile(str(temporary), "wb") as file:
                yield file

    @contextmanager
    def output(self) -> Generator[pa.NativeFile]:
        """Open a file for writing in steps, in an existing folder; after an error, the written part stays."""
        if self.root == HUB:
            raise AskdError(f"{self}: data sets on the hub are read-only here: write to a folder, s3:// or gs://")
        with self._store_errors():
            file = self._system.open_output_stream(self.path, compression=None)
        try:
            yield file
        finally:
            with self._store_errors():
                file.close()

    def delete_folder(self) -> None:
        """Delete a folder with all files in it, if it exists."""
        map_concurrently(Location.delete, self.stamped(recursive=True))
        if not self.root:
            remove(Path(self.path))

    def delete(self) -> None:
        """Delete a file, if it exists."""
        try:
            with self._store_errors():
                self._system.delete_file(self.path)
        except FileNotFoundError:
            self._check_container()

    @contextmanager
    def replaced(self) -> Generator["Location"]:
        """Yield an empty folder to fill; after success it replaces this folder. What a killed attempt left is deleted.

        On a local disk this is a rename. A store has no rename: the old files are deleted first, and
        :data:`UNFINISHED` marks the folder until the block succeeds.
        """
        if not self.root:
            clear_interrupted(Path(self.path))
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
            if is_of_store(error):
                raise in_words(str(self), error) from error
            if isinstance(error, (pa.ArrowException, OSError, *errors)):
                raise AskdError(f"{self} {problem}: {' '.join(str(error).split())[:300]}") from None
            raise

    @property
    def _system(self) -> fs.FileSystem:
        return file_system(self.root) if self.root else fs.LocalFileSystem()

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
            raise in_words(str(self), error) from error

    def _check_container(self) -> None:
        """Raise an :class:`AskdError` if the bucket or data set does not exist."""
        if self.root:
            check_container(self.root, self.path, str(self))


def map_concurrently(function: Callable[[_In], _Out], items: Iterable[_In]) -> list[_Out]:
    """Return ``function`` of each item, in order; many calls run at a time, since a store answers slowly."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))
