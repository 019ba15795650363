"""A folder of models by name, of which one version each is served; the service follows it while it runs.

<registry>/<name>/<version>/      a bundle
<registry>/<name>/current.json    {"version": ..., "before": [...]}: one file, replaced in one move
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, local_path, read_json, write_json
from askd_ray.models.bundle import read_bundle

_CURRENT = "current.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Registry:
    """The folder, on a disk; all who serve from it must see it.

    Raises :class:`AskdError` for a URI.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", local_path(self.folder))

    def names(self) -> list[str]:
        """Return the models that have a version to serve."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{_CURRENT}"))

    def current(self, name: str) -> Path | None:
        """Return the bundle that is to be served under a name, or None.

        Raises :class:`AskdError` when the registry is damaged.
        """
        return next(iter(self.bundles(name)), None)

    def bundles(self, name: str) -> list[Path]:
        """Return the bundle that is to be served under a name, and those that were before it, the latest first.

        Raises :class:`AskdError` when the registry is damaged.
        """
        file = self.folder / name / _CURRENT
        if not file.is_file():
            return []
        try:
            found = read_json(file)
            return [self.folder / name / str(version) for version in (found["version"], *found["before"])]
        except (ValueError, KeyError, TypeError):
            raise AskdError(f"{file} is damaged: it must hold the version to serve; promote one again") from None

    def add(self, name: str, bundle: Path) -> Path:
        """Copy a bundle into the registry; returns where it is. Nothing is served of it yet.

        Raises :class:`AskdError` for a name that is no name, and a folder that is no bundle.
        """
        if not _NAME.fullmatch(name):
            raise AskdError(f"model name {name!r}: letters, digits, dots, dashes and underscores are allowed")
        place = self.folder / name / read_bundle(bundle).version
        if not place.is_dir():
            with atomic_path(place) as temporary:
                shutil.copytree(bundle, temporary)
        return place

    def promote(self, name: str, version: str) -> None:
        """Have a version served from now on; the one before it stays for a rollback."""
        file = self.folder / name / _CURRENT
        before = [] if not file.is_file() else [read_json(file)["version"], *read_json(file)["before"]]
        write_json(file, {"version": version, "before": [v for v in before if v != version]})

    def roll_back(self, name: str) -> Path:
        """Have the version served that was before; returns its bundle.

        Raises :class:`AskdError` when there was none.
        """
        file = self.folder / name / _CURRENT
        before = read_json(file)["before"] if file.is_file() else []
        if not before:
            raise AskdError(f"model {name!r}: nothing was served in {self.folder} before")
        write_json(file, {"version": before[0], "before": before[1:]})
        return self.folder / name / before[0]
