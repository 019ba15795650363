"""The checkpoints of a run on an object store: uploaded while the training goes on, and fetched to resume."""

import json
from collections.abc import Set
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch.distributed as dist

from askd_ray.errors import AskdError
from askd_ray.files import to_json
from askd_ray.location import Location
from askd_ray.mirror import Mirror, Stamps
from askd_ray.train.checkpoint import TrainState

_MANIFEST = "checkpoint.json"
_KEPT = frozenset({_MANIFEST, "mlflow.json"})  # on the store, and not part of a checkpoint


class CheckpointStore:
    """The training's folder on a store; each rank has one, and it does nothing without a ``mirror``.

    On the store, checkpoint.json names the files of the last complete checkpoint: those of rank 0's folder, and all
    ranks' parts of ``ledger``. It is written after these files, and files that it no longer names are deleted after it.
    So a training that is killed at any time resumes from a complete checkpoint. What a machine's own folder holds
    beyond it is lost, also a newer checkpoint: the ranks of other machines do not have that.
    """

    def __init__(self, mirror: Mirror | None, rank: int, world_size: int, ledger: str):
        self._mirror, self._rank, self._world_size, self._ledger = mirror, rank, world_size, ledger
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._upload: Future[None] | None = None
        self._committed: Set[str] = frozenset()

    def __enter__(self) -> "CheckpointStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()  # after an error of the training, let the upload end

    def restore(self) -> None:
        """Make this machine's folder as the last complete checkpoint on the store; rank 0 deletes all else there."""
        if self._mirror is None:
            return
        files, stored = set(read_manifest(self._mirror.store).get("files", ())), self._mirror.stored()
        if missing := files - stored.keys():
            raise AskdError(f"{self._mirror.store / min(missing)} is missing: --force starts the run again")
        self._mirror.restore({name: stored[name] for name in files}, "")
        if self._rank == 0:
            self._mirror.delete(stored.keys() - files - _KEPT)
        self._committed = files

    def add(self, part: Path | None) -> None:
        """Send this rank's part of the ledger, before the checkpoint that it belongs to."""
        if self._mirror is not None and part is not None:
            self._mirror.upload([part.relative_to(self._mirror.folder).as_posix()])

    def wait(self) -> None:
        """Wait for the upload of the last checkpoint, before files that it reads are deleted.

        Raises :class:`AskdError` when it has failed; the checkpoint before it is then still on the store.
        """
        upload, self._upload = self._upload, None
        try:
            if upload is not None:
                upload.result()
        except (AskdError, OSError) as error:
            raise AskdError(
                f"cannot write a checkpoint to the store: {error}; the previous checkpoint there is intact: run the "
                "same command again, it resumes from there"
            ) from None

    def commit(self, train_state: TrainState) -> None:
        """Begin to upload the folder as the checkpoint of ``train_state``; rank 0 calls it, all parts being there."""
        if self._mirror is None:
            return
        self.wait()
        files = self._mirror.local()
        names = files.keys() | self._mirror.stored(self._ledger).keys()
        manifest = {"key": train_state.key, "step": train_state.step, "files": sorted(names)}
        self._upload = self._thread.submit(self._commit, self._mirror, files, manifest)

    def finish(self, train_state: TrainState) -> None:
        """Upload the folder of a finished training, and fetch the ledger of all ranks; rank 0 calls it."""
        self.commit(train_state)
        self.wait()
        if self._mirror is not None:
            self._mirror.fetch(self._ledger)

    def share(self, folder: Path) -> None:
        """Fetch a folder of the last checkpoint on the machines that lack it; all ranks call it together."""
        if self._mirror is None or self._world_size == 1:
            return
        self.wait()  # rank 0 uploads
        dist.barrier()
        self._mirror.fetch_path(folder)

    def _commit(self, mirror: Mirror, files: Stamps, manifest: dict[str, Any]) -> None:
        stored = mirror.stored()
        mirror.upload(name for name, stamp in files.items() if stored.get(name) != stamp)
        (mirror.store / _MANIFEST).write_bytes(to_json(manifest).encode())
        names = set(manifest["files"])
        mirror.delete(self._committed - names)
        self._committed = names


def read_manifest(folder: Location) -> dict[str, Any]:
    """Return the description of the last complete checkpoint of a training's folder on a store; {} without one."""
    file = folder / _MANIFEST
    return json.loads(file.read_bytes()) if file.is_file() else {}
