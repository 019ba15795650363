"""Decoding for an evaluation on a Ray cluster: a pool of actors runs the decode jobs, model by model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import ray
import ray.data

from askd_ray.data.ray_stream import configure
from askd_ray.evaluation.decode import DecodeJob, Material, run_decode_job
from askd_ray.evaluation.systems import AsrSystem, open_system
from askd_ray.mirror import Mirror
from askd_ray.progress import bar
from askd_ray.ray_cluster import connect, cpus_by_node
from askd_ray.ray_errors import user_error
from askd_ray.torch_setup import Device, usable_device, use_threads

_CORES_PER_ACTOR = 8  # one copy of the model uses all cores of a small machine


def decode(
    jobs: Sequence[DecodeJob], material: Material, folder: Path, use_gpu: bool, mirror: Mirror | None = None
) -> None:
    """Run the jobs whose files are not in ``folder`` yet; a killed run continues.

    All machines must see the folder and the models, or it lies in a ``mirror`` of a store, as the bundles do.

    Raises :class:`AskdError` when a model or a server cannot be used.
    """
    todo = [job for job in jobs if not job.file(folder).is_file()]
    if not todo:
        return
    connect(use_gpu=use_gpu)
    configure()
    n_gpus = int(ray.cluster_resources().get("GPU", 0))
    pool = max(1, n_gpus if use_gpu else int(sum(cpus_by_node())) // _CORES_PER_ACTOR)
    items = [{"number": number} for number in range(len(todo))]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        cast(Any, _Decoder),
        fn_constructor_args=(ray.put((todo, material)), folder, use_gpu, mirror),
        num_gpus=1 if use_gpu else 0,
        num_cpus=0.5,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(pool, len(items))),
    )
    with bar("decode", sum(len(p.numbers) for p in todo), "utt") as progress, user_error():
        for row in dataset.iter_rows():
            job = todo[row["number"]]
            progress.advance(len(job.numbers))
            progress.note(f"{job.model}: {job.set}, {job.condition}")
    if mirror is not None:
        mirror.fetch_path(folder)


class _Decoder:
    """One actor. It keeps the last model and the material in memory."""

    def __init__(self, work: Any, folder: Path, use_gpu: bool, mirror: Mirror | None):
        use_threads()
        self._device: Device = usable_device(use_gpu)
        self._jobs, self._material = cast("tuple[list[DecodeJob], Material]", ray.get(work))
        self._folder, self._mirror = folder, mirror
        self._reference: str | None = None
        self._system: AsrSystem | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        job = self._jobs[row["number"]]
        if self._system is None or job.reference != self._reference:
            if self._mirror is not None:
                self._mirror.fetch_path(Path(job.reference))
            self._system = open_system(job.reference, device=self._device)
            self._reference = job.reference
        run_decode_job(job, self._system, self._material, self._folder)
        if self._mirror is not None:
            self._mirror.upload([job.file(self._folder).relative_to(self._mirror.folder).as_posix()])
        return row
