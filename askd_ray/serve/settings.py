"""The settings of the service, on the command line and in cluster/serve.yaml."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from askd_ray.audio.chunking import MAX_CHUNK_S
from askd_ray.errors import AskdError
from askd_ray.files import local_path
from askd_ray.models.bundle import COMPUTE_TYPES, ComputeType, read_bundle
from askd_ray.models.engine import MAX_BATCH_S
from askd_ray.serve.engine import Hardware, allocate_hardware
from askd_ray.serve.limits import read_keys
from askd_ray.serve.registry import Registry
from askd_ray.serve.transcription_service import MAX_AUDIO_S
from askd_ray.torch_setup import Device

_CHUNKS_PER_ENGINE = 4  # in progress, on a CPU
_REQUESTS_PER_INGRESS_CPU = 16  # in progress; most of them wait for an engine


class ServiceArgs(BaseModel):
    """The settings of the service: ``args`` in cluster/serve.yaml.

    ``models`` maps the names that clients request to bundle folders. The models of the folder ``registry`` are served
    too, and reloaded when they change (`askd promote`). The number of engine replicas follows the load, from
    ``engines`` to ``max_engines``. The number of ingress replicas, which decode files and detect speech, follows the
    requests in progress, from ``ingresses`` to ``max_ingresses``; each reserves ``ingress_cpus`` and decodes as many
    files at a time, at least two. Together they accept at most ``requests`` requests at a time, waiting ones included.
    A request may take ``request_s`` and contain ``audio_s`` of audio.

    On a CPU a call of an engine uses ``threads`` threads, and as many calls run concurrently as there are cores for;
    ``threads`` = 0 measures the best number for the first model. With ``device: cuda``, an engine has the share
    ``gpus_per_engine`` of a GPU, and ``workers`` concurrent calls (2). A call computes with ``compute_type`` (int8 on a
    CPU, float16 or int8_float16 on a GPU), and takes chunks of up to ``batch_s`` seconds in all: 30 on a CPU, on a GPU
    480 times its share.
    """

    model_config = ConfigDict(extra="forbid")

    models: dict[str, str] = Field(default_factory=dict[str, str])
    registry: str | None = None
    device: Device = "cpu"
    compute_type: ComputeType | None = None
    threads: int = Field(default=0, ge=0)
    workers: int | None = Field(default=None, ge=1)
    batch_s: float | None = Field(default=None, gt=0.0)
    gpus_per_engine: float = Field(default=1.0, gt=0.0, le=1.0)
    engines: int = Field(default=1, ge=1)
    max_engines: int | None = Field(default=None, ge=1)
    ingresses: int = Field(default=1, ge=1)
    max_ingresses: int | None = Field(default=None, ge=1)
    ingress_cpus: float = Field(default=1.0, gt=0.0)
    requests: int = Field(default=64, ge=1)
    request_s: float = Field(default=600.0, gt=0.0)
    audio_s: float = Field(default=MAX_AUDIO_S, gt=0.0)
    keys_file: str | None = None
    origins: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        allowed = COMPUTE_TYPES[self.device]
        if self.compute_type is not None and self.compute_type not in allowed:
            kinds = " or ".join(allowed)
            raise ValueError(f"compute_type = {self.compute_type}: with device {self.device}, {kinds} is allowed")
        if self.batch_s is not None and self.batch_s > MAX_BATCH_S[self.device]:
            limit = f"{MAX_BATCH_S[self.device]:g} s with device {self.device}"
            raise ValueError(f"batch_s = {self.batch_s:g}: a call takes at most {limit}")
        elsewhere = ("gpus_per_engine", "workers") if self.device == "cpu" else ("threads",)
        for name in elsewhere:
            if name in self.model_fields_set:
                raise ValueError(f"{name} has no effect with device {self.device}: remove it")
        return self

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.max_engines is not None and self.max_engines < self.engines:
            raise ValueError(f"max_engines = {self.max_engines} is below engines = {self.engines}")
        if self.max_ingresses is not None and self.max_ingresses < self.ingresses:
            raise ValueError(f"max_ingresses = {self.max_ingresses} is below ingresses = {self.ingresses}")
        if self.requests < (self.max_ingresses or self.ingresses):
            raise ValueError(f"requests = {self.requests}: every ingress must accept at least one")
        return self

    def hardware(self) -> Hardware:
        """Return what the models of an engine run on; on a CPU, this may time the first model."""
        is_cpu = self.device == "cpu"
        found = allocate_hardware(self.bundles()[0][1] if is_cpu else Path(), self.device, self.threads)
        share = 1.0 if is_cpu else self.gpus_per_engine  # engines of a GPU share its memory too
        return replace(
            found,
            workers=self.workers or found.workers,
            batch_s=self.batch_s or share * found.batch_s,
            compute_type=self.compute_type,
        )

    def chunks_per_engine(self) -> int:
        """Return how many chunks an engine has in progress, on average, before another engine starts.

        On a GPU they must fill the concurrent calls: with fewer, one GPU after the other would start half empty.
        """
        if self.device == "cpu":
            return _CHUNKS_PER_ENGINE
        hardware = self.hardware()
        return max(_CHUNKS_PER_ENGINE, int(hardware.workers * hardware.batch_s / MAX_CHUNK_S))

    def requests_per_ingress(self) -> int:
        """Return how many requests an ingress has in progress, on average, before another ingress starts."""
        return max(1, int(_REQUESTS_PER_INGRESS_CPU * self.ingress_cpus))

    def cpus(self) -> int:
        """Return the CPUs that the service reserves at its start."""
        return math.ceil(self.engines + self.ingresses * self.ingress_cpus)

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
            read_bundle(bundle, self.device, self.compute_type)
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
