"""A folder on an object store, and the copy of it on each machine that works on it. The store decides.

Libraries write models, plots and logs to local folders. So a stage fetches what it reads, works in the copy, and sends
what it has written.
"""

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from askd_ray.errors import without_credentials
from askd_ray.files import atomic_path, cache_root, digest, file_lock
from askd_ray.location import Location, map_concurrently

_CHUNK_BYTES = 8 << 20

Stamps = dict[str, tuple[int, int]]
"""Files by their path in the folder, with size in bytes and time of change in ns."""


@dataclass(frozen=True)
class Mirror:
    """``folder`` on this machine, a copy of parts of ``store``; names are relative paths of files and folders in both.

    A file counts as unchanged if it has the same size and time of change here and on the store: files that are fetched
    or sent get the store's time. Errors of the store are :class:`~askd_ray.errors.AskdError`.
    """

    folder: Path
    store: Location

    @classmethod
    def of(cls, store: Location) -> "Mirror":
        """Return the mirror of a folder on a store, in the cache (:func:`~askd_ray.files.cache_root`)."""
        return cls(cache_root() / "runs" / digest(without_credentials(store.root)) / store.path, store)

    def below(self, folder: Path) -> "Mirror":
        """Return the mirror of a folder inside this one."""
        return Mirror(folder, self.store / folder.relative_to(self.folder).as_posix())

    def fetch_path(self, path: Path) -> None:
        """Fetch a file or folder by its path here; does nothing for a path outside of the mirror."""
        if path.is_relative_to(self.folder):
            self.fetch(path.relative_to(self.folder).as_posix())

    def fetch(self, *names: str) -> None:
        """Make files and folders here as they are on the store; processes of a machine take turns."""
        self.restore({name: stamp for part in names for name, stamp in self.stored(part).items()}, *names)

    def restore(self, files: Mapping[str, tuple[int, int]], *names: str) -> None:
        """Make files and folders here as ``files`` on the store; other files in ``names`` are deleted here."""
        with file_lock(self.folder.parent / f".{self.folder.name}.lock"):
            here = {name: stamp for part in names for name, stamp in self.local(part).items()}
            for name in here.keys() - files.keys():
                (self.folder / name).unlink()
            for part in names:
                _remove_empty(self.folder / part)
            map_concurrently(self._download, [(name, s) for name, s in files.items() if here.get(name) != s])

    def send(self, *names: str) -> None:
        """Make files and folders on the store as they are here: first new and changed files, then deletions."""
        here, there = ({n: s for name in names for n, s in of(name).items()} for of in (self.local, self.stored))
        self.upload(name for name, stamp in here.items() if there.get(name) != stamp)
        self.delete(there.keys() - here.keys())

    def upload(self, names: Iterable[str]) -> None:
        """Send files, each as one object; they get the store's time here."""
        map_concurrently(self._upload, names)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files on the store, and the folders that have no files then: Arrow keeps these as empty objects."""
        names = list(names)
        map_concurrently(lambda name: (self.store / name).delete(), names)
        for folder in {PurePosixPath(name).parent.as_posix() for name in names} - {"."}:
            if not (self.store / folder).stamped(recursive=True):
                (self.store / folder).delete_folder()

    def stored(self, name: str = "") -> Stamps:
        """Return the files of a folder on the store, or the file of this name."""
        place = self.store / name if name else self.store
        found = place.stamped(recursive=True)
        if not found and name and place.is_file():
            found = {place: place.stamp()}
        return {file.path.removeprefix(f"{self.store.path}/"): stamp for file, stamp in found.items()}

    def local(self, name: str = "") -> Stamps:
        """Return the files of a folder here, or the file of this name, without hidden (half-written) files."""
        place = self.folder / name
        paths = {path.relative_to(self.folder): path for path in ([place] if place.is_file() else place.rglob("*"))}
        stamps: Stamps = {}
        for relative, path in sorted(paths.items()):
            if not any(part.startswith(".") for part in relative.parts) and path.is_file():
                state = path.stat()
                stamps[relative.as_posix()] = state.st_size, state.st_mtime_ns
        return stamps

    def _download(self, file: tuple[str, tuple[int, int]]) -> None:
        name, (_, time_ns) = file
        with atomic_path(self.folder / name) as temporary:
            with (self.store / name).stream() as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            os.utime(temporary, ns=(time_ns, time_ns))

    def _upload(self, name: str) -> None:
        with (self.folder / name).open("rb") as source, (self.store / name).output() as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
        _, time_ns = (self.store / name).stamp()
        os.utime(self.folder / name, ns=(time_ns, time_ns))


class MirroredFolder(ABC):
    """A folder on this machine, or one on a store with its copy on this machine."""

    @property
    @abstractmethod
    def place(self) -> Location:
        """The folder, on this machine or on a store."""

    @property
    def mirror(self) -> Mirror | None:
        """The copy of a folder on a store; None for a folder on this machine."""
        return Mirror.of(self.place) if self.place.root else None

    @property
    def path(self) -> Path:
        """The folder on this machine, absolute: the folder itself, or its copy."""
        return Path(self.place.path) if self.mirror is None else self.mirror.folder

    def fetch(self, *names: str) -> None:
        """Make files and folders in :attr:`path` as they are on the store; does nothing without a store."""
        if self.mirror is not None:
            self.mirror.fetch(*names)

    def send(self, *names: str) -> None:
        """Make files and folders on the store as they are in :attr:`path`; does nothing without a store."""
        if self.mirror is not None:
            self.mirror.send(*names)

    def has(self, name: str) -> bool:
        """Return whether it has a file, or a folder with files."""
        place = self.place / name
        return bool(place.stamped(recursive=True)) or place.is_file()


def _remove_empty(folder: Path) -> None:
    """Remove the empty folders in ``folder``, and itself if it is empty then."""
    for path in sorted((p for p in (folder, *folder.rglob("*")) if p.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
