"""A folder with versions of models. One version of each model is served, and a running service follows changes.

<registry>/<name>/<version>/      a bundle
<registry>/<name>/current.json    {"version": ..., "before": [...]}, replaced atomically
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
    """The registry's folder, on a disk that every replica can read.

    Raises :class:`AskdError` for a URI.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", local_path(self.folder))

    def names(self) -> list[str]:
        """Return the names of the models that have a promoted version."""
        return sorted(file.parent.name for file in self.folder.glob(f"*/{_CURRENT}"))

    def current(self, name: str) -> Path | None:
        """Return the bundle to serve under a name, or None.

        Raises :class:`AskdError` when the registry is damaged.
        """
        return next(iter(self.bundles(name)), None)

    def bundles(self, name: str) -> list[Path]:
        """Return the bundle to serve under a name, then the bundles served before it, the latest first.

        Raises :class:`AskdError` when the registry is damaged.
        """
        file = self.folder / name / _CURRENT
        if not file.is_file():
            return []
        try:
            current = read_json(file)
            return [self.folder / name / str(version) for version in (current["version"], *current["before"])]
        except (ValueError, KeyError, TypeError):
            raise AskdError(f"{file} is damaged: it must name the version to serve; promote a bundle again") from None

    def add(self, name: str, bundle: Path) -> Path:
        """Copy a bundle into the registry and return its folder there; :meth:`promote` serves it.

        Raises :class:`AskdError` for an invalid name and a folder that is no bundle.
        """
        if not _NAME.fullmatch(name):
            raise AskdError(f"model name {name!r}: letters, digits, dots, dashes and underscores are allowed")
        target = self.folder / name / read_bundle(bundle).version
        if not target.is_dir():
            with atomic_path(target) as temporary:
                shutil.copytree(bundle, temporary)
        return target

    def promote(self, name: str, version: str) -> None:
        """Serve a version from now on; keep the version before it for a rollback."""
        file = self.folder / name / _CURRENT
        before = [] if not file.is_file() else [read_json(file)["version"], *read_json(file)["before"]]
        write_json(file, {"version": version, "before": [v for v in before if v != version]})

    def roll_back(self, name: str) -> Path:
        """Serve the version before the current one again, and return its bundle.

        Raises :class:`AskdError` when there is none.
        """
        file = self.folder / name / _CURRENT
        before = read_json(file)["before"] if file.is_file() else []
        if not before:
            raise AskdError(f"model {name!r}: {self.folder} has no earlier version to roll back to")
        write_json(file, {"version": before[0], "before": before[1:]})
        return self.folder / name / before[0]
