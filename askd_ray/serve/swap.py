"""Replace models while they serve: load and verify the new model beside the old one, then switch."""

import logging
import threading
import time
from pathlib import Path

from askd_ray.errors import AskdError
from askd_ray.models.bundle import BUNDLE_FILE, check_hashes, check_reference
from askd_ray.serve.engine import Hardware, LoadedModel, ServedModels, load
from askd_ray.serve.registry import Registry

_POLL_S = 1.0
_log = logging.getLogger(__name__)


def load_verified(bundle: Path, name: str, hardware: Hardware) -> LoadedModel:
    """Check the hashes of a bundle, load it, and check its transcripts of the reference clips.

    Raises :class:`AskdError` where a check fails.
    """
    if (bundle / BUNDLE_FILE).is_file():
        check_hashes(bundle)
    loaded = load(bundle, name, hardware)
    check_reference(loaded.engine, bundle)
    return loaded


class Follower:
    """Keeps the models of a process in step with a registry. A bad bundle leaves the old model serving."""

    def __init__(self, models: ServedModels, registry: Registry, hardware: Hardware):
        self._models, self._registry, self._hardware = models, registry, hardware
        self._tried: dict[str, Path | None] = {}  # the bundle that was tried last, by model name
        self.refused: dict[str, str] = {}  # why a model differs from the registry

    def load_all(self) -> None:
        """Load all models of the registry before the service starts; where a bundle is bad, load an earlier one.

        Raises :class:`AskdError` where the earlier ones are bad too.
        """
        for name in self._registry.names():
            bundles = self._registry.bundles(name)
            self._tried[name] = bundles[0]
            if not any(self._load(name, bundle) for bundle in bundles):
                raise AskdError(f"model {name}: {self.refused[name]}")

    def start(self) -> None:
        """Follow the registry from now on, in a thread."""
        threading.Thread(target=self._follow_all, name="registry", daemon=True).start()

    def _follow_all(self) -> None:
        while True:
            time.sleep(_POLL_S)
            for name in self._registry.names():
                self.follow(name)

    def follow(self, name: str) -> None:
        """Load the registry's bundle for a name, if it is new."""
        try:
            bundle = self._registry.current(name)
        except (AskdError, OSError) as error:
            return self._refuse(name, error)
        if bundle is not None and bundle != self._tried.get(name):
            self._tried[name] = bundle
            self.refused.pop(name, None)
            self._load(name, bundle)
        return None

    def _load(self, name: str, bundle: Path) -> bool:
        """Serve a bundle from now on, if it passes the checks; return whether it does."""
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
        _log.error("model %s is not replaced: %s", name, reason)
