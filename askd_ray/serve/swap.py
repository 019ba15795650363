"""Models that change while they serve: the new one is loaded and verified beside the old one, then takes its place."""

import logging
import threading
import time
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes, check_reference
from askd_ray.serve.engine import Hardware, LoadedModel, ServedModels, load
from askd_ray.serve.registry import Registry

_EVERY_S = 1.0
_log = logging.getLogger(__name__)


def load_verified(bundle: Path, name: str, hardware: Hardware) -> LoadedModel:
    """Load a bundle after its hashes, and let it transcribe its reference clips.

    Raises :class:`AskdError` that says what is wrong with it.
    """
    if (bundle / BUNDLE_FILE).is_file():
        check_hashes(bundle)
    loaded = load(bundle, name, hardware)
    check_reference(loaded.engine, bundle)
    return loaded


class Follower:
    """Keeps the models of a process at what a registry says. A bad bundle leaves the old model serving."""

    def __init__(self, models: ServedModels, registry: Registry, hardware: Hardware):
        self._models, self._registry, self._hardware = models, registry, hardware
        self._seen: dict[str, Path | None] = {}  # what was tried last, by name
        self.refused: dict[str, str] = {}  # why a model is not what the registry says

    def load_all(self) -> None:
        """Load what the registry has, before the service begins; where that is bad, what was served before it.

        Raises :class:`AskdError` where that is bad too.
        """
        for name in self._registry.names():
            bundles = self._registry.bundles(name)
            self._seen[name] = bundles[0]
            if not any(self._load(name, bundle) for bundle in bundles):
                raise AskdError(f"model {name}: {self.refused[name]}")

    def start(self) -> None:
        """Go along with the registry from now on, in a thread."""
        threading.Thread(target=self._follow_all, name="registry", daemon=True).start()

    def _follow_all(self) -> None:
        while True:
            time.sleep(_EVERY_S)
            for name in self._registry.names():
                self.follow(name)

    def follow(self, name: str) -> None:
        """Load what the registry has for a name, if that is new."""
        try:
            bundle = self._registry.current(name)
        except (AskdError, OSError) as error:
            return self._refuse(name, error)
        if bundle is not None and bundle != self._seen.get(name):
            self._seen[name] = bundle
            self.refused.pop(name, None)
            self._load(name, bundle)
        return None

    def _load(self, name: str, bundle: Path) -> bool:
        """Serve a bundle from now on, if it is good; returns whether it is."""
        try:
            loaded = load_verified(bundle, name, self._hardware)
        except (AskdError, OSError) as error:
            self._refuse(name, error)
            return False
        self._models.put(loaded)
        _log.warning("model %s is now version %s", name, loaded.model.version)
        return True

    def _refuse(self, name: str, error: AskdError | OSError) -> None:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, OSError) else str(error)
        self.refused.setdefault(name, reason)
        _log.error("model %s stays as it is: %s", name, reason)
