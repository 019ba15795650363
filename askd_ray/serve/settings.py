"""The settings of the service, on the command line and in cluster/serve.yaml."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from askd_ray.errors import AskdError
from askd_ray.files import local_path
from askd_ray.models.bundle import read_bundle
from askd_ray.serve.limits import read_keys
from askd_ray.serve.registry import Registry
from askd_ray.serve.transcription_service import MAX_AUDIO_S
from askd_ray.torch_setup import Device


class ServiceArgs(BaseModel):
    """The settings of the service: ``args`` in cluster/serve.yaml.

    ``models`` maps the names that clients request to bundle folders. The models of the folder ``registry`` are served
    too, and reloaded when they change (`askd promote`). The number of engine replicas follows the load, from
    ``engines`` to ``max_engines``. In a replica a call uses ``threads`` threads, and as many calls run concurrently as
    there are cores for; ``threads`` = 0 measures the best number for the first model. At most ``requests`` requests are
    accepted at a time, waiting ones included. A request may take ``request_s`` and contain ``audio_s`` of audio.
    """

    model_config = ConfigDict(extra="forbid")

    models: dict[str, str] = Field(default_factory=dict[str, str])
    registry: str | None = None
    device: Device = "cpu"
    threads: int = Field(default=0, ge=0)
    engines: int = Field(default=1, ge=1)
    max_engines: int | None = Field(default=None, ge=1)
    requests: int = Field(default=64, ge=1)
    request_s: float = Field(default=600.0, gt=0.0)
    audio_s: float = Field(default=MAX_AUDIO_S, gt=0.0)
    keys_file: str | None = None
    origins: tuple[str, ...] = ()

    def keys(self) -> tuple[str, ...]:
        """Return the accepted API keys; empty: no key is needed.

        Raises :class:`AskdError` for a key file that cannot be read.
        """
        return read_keys(None if self.keys_file is None else local_path(self.keys_file))

    def bundles(self) -> list[tuple[str, Path]]:
        """Return the name and the folder of each model to serve; the first is the default."""
        models = [(name, Path(bundle)) for name, bundle in self.models.items()]
        if self.registry is not None:
            registry = Registry(Path(self.registry))
            models += [(name, bundle) for name in registry.names() if (bundle := registry.current(name)) is not None]
        return models

    def check(self) -> list[str]:
        """Check all models without loading them, and return their names.

        Raises :class:`AskdError` for no model, a folder without a model, a repeated name, and invalid keys.
        """
        self.keys()
        models = self.bundles()
        names = [name for name, _ in models]
        if not names:
            raise AskdError("no model to serve: give --bundle, --model, or --registry with a promoted model")
        if len(set(names)) < len(names):
            raise AskdError(f"a model of the registry has the name of another model: {', '.join(names)}")
        for _, bundle in models:
            read_bundle(bundle, self.device)
        return names


def named_models(bundle: Path | None, models: Sequence[str]) -> dict[str, str]:
    """Return model folders by name: a bundle under its name in bundle.json, and each ``NAME=BUNDLE``.

    Raises :class:`AskdError` for another form, a folder without a model, and a repeated name.
    """
    folders = [] if bundle is None else [(read_bundle(bundle).name, str(local_path(bundle).resolve()))]
    for given in models:
        name, separator, folder = given.partition("=")
        if not (name and separator and folder):
            raise AskdError(f"--model {given}: NAME=BUNDLE is expected")
        folders.append((name, str(local_path(folder).resolve())))
    folder_by_name = dict(folders)
    if len(folder_by_name) < len(folders):
        raise AskdError(f"--model {folders[-1][0]}=...: each name once")
    return folder_by_name
