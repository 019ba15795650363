"""What the service is built from, on the command line and in cluster/serve.yaml."""

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
    """What the service is built from: ``args`` in cluster/serve.yaml.

    ``models`` are bundle folders by the name that clients ask for; ``registry`` is a folder whose models are served
    too, and followed as they change (`askd promote`). Between ``engines`` and ``max_engines`` replicas hear, as many
    as the requests need; in each a call takes ``threads`` threads, and as many calls run side by side as there are
    cores for. ``threads`` = 0 finds out how many suit the first model. ``requests`` at once are let in, with those in
    line; one of them may take ``request_s`` and hold ``audio_s`` of audio.
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
        """Return the API keys that are let in; none lets everyone in.

        Raises :class:`AskdError` for a file of keys that cannot be read.
        """
        return read_keys(None if self.keys_file is None else local_path(self.keys_file))

    def bundles(self) -> list[tuple[str, Path]]:
        """Return the name and the folder of each model that is to be served; the first is the default."""
        found = [(name, Path(bundle)) for name, bundle in self.models.items()]
        if self.registry is not None:
            registry = Registry(Path(self.registry))
            found += [(name, bundle) for name in registry.names() if (bundle := registry.current(name)) is not None]
        return found

    def check(self) -> list[str]:
        """Look at all that is to be served without loading it; returns the names of the models.

        Raises :class:`AskdError` for no model, a folder without one, a name that comes twice, and bad keys.
        """
        self.keys()
        found = self.bundles()
        names = [name for name, _ in found]
        if not names:
            raise AskdError("no model to serve: give --bundle, --model, or --registry with a model that was promoted")
        if len(set(names)) < len(names):
            raise AskdError(f"a model of the registry is called as another one: {', '.join(names)}")
        for _, bundle in found:
            read_bundle(bundle, self.device)
        return names


def named_models(bundle: Path | None, models: Sequence[str]) -> dict[str, str]:
    """Return folders by name, of a bundle under its own and of ``NAME=BUNDLE``.

    Raises :class:`AskdError` for what is not of that form, a folder without a model, and a name that comes twice.
    """
    found = [] if bundle is None else [(read_bundle(bundle).name, str(local_path(bundle).resolve()))]
    for given in models:
        name, separator, folder = given.partition("=")
        if not (name and separator and folder):
            raise AskdError(f"--model {given}: NAME=BUNDLE is expected")
        found.append((name, str(local_path(folder).resolve())))
    named = dict(found)
    if len(named) < len(found):
        raise AskdError(f"--model {found[-1][0]}=...: each name once")
    return named
