"""The ledger: which utterance was in which step of a run, and the totals that prove that no utterance got lost.

Each rank records its own micro-batches and writes them to disk before each checkpoint, one part at a time. A run that
resumes from a checkpoint drops the later parts, because it repeats their steps.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from askd_ray.data.schema import Batch
from askd_ray.data.shards import write_table

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),  # from 1
        ("epoch", pa.int32()),
        ("number", pa.int64()),  # of the utterance, in the row index
        ("id", pa.string()),
        ("outcome", pa.string()),  # TRAINED, or the reason why the step was skipped
    ]
)

TRAINED = "trained"


class Ledger:
    """The ledger of one rank; all ranks of a run write into the same folder."""

    def __init__(self, folder: Path, rank: int, resumed_at: int):
        self._folder, self._rank = folder, rank
        self._parts: list[pa.RecordBatch] = []
        if rank == 0:
            for part in folder.glob("step-*.parquet"):
                if int(part.name.split("-")[1]) > resumed_at:
                    part.unlink()

    def note(self, step: int, epoch: int, batches: Sequence[Batch], outcome: str) -> None:
        """Record the utterances of this rank's micro-batches of a step."""
        for batch in batches:
            n = len(batch.ids)
            columns = [[step] * n, [epoch] * n, batch.numbers, batch.ids, [outcome] * n]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._parts.append(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))

    def write(self, step: int) -> Path | None:
        """Write the records since the last call, for the checkpoint after ``step``; return the file, if any."""
        path = self._folder / f"step-{step:08d}-rank-{self._rank:03d}.parquet"
        parts, self._parts = self._parts, []
        if not any(part.num_rows for part in parts):
            return None
        write_table(path, pa.Table.from_batches(parts))
        return path


def read_ledger(folder: Path) -> pa.Table:
    """Return all records up to the last checkpoint, sorted by step and id."""
    return _records(folder).to_table().sort_by([("step", "ascending"), ("id", "ascending")])


def account(
    folder: Path, n_labelled: int, prepared: Mapping[str, Any] | None, labelled: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what happened to every utterance that `askd prepare` has read, from the ledger in ``folder``.

    ``prepared`` and ``labelled`` are the results of those stages, where known; they give excluded utterances with the
    reason. ``trained`` counts the train utterances that were in at least one step, ``not_reached`` those in no step.
    ``unaccounted`` counts the utterances that no other count explains: anything but 0 means that utterances got lost.
    ``steps_of`` counts utterances times epochs by outcome.

    The ledger is read a part at a time: memory is a byte for each labelled utterance.
    """
    is_trained, outcomes = np.zeros(n_labelled, np.bool_), Counter[str]()
    for part in _records(folder).to_batches(columns=["number", "outcome"]):
        outcomes.update({pair["values"]: pair["counts"] for pair in part.column("outcome").value_counts().to_pylist()})
        is_trained[part.filter(pc.field("outcome") == TRAINED).column("number").to_numpy()] = True
    trained = int(is_trained.sum())
    fates: dict[str, Any] = {"trained": trained, "not_reached": n_labelled - trained}
    if labelled is not None:
        fates["left_out"] = labelled["left_out"]
    if prepared is not None:
        fates |= {split: prepared["utterances"][split] for split in ("dev", "test")}
        fates["quarantined"] = prepared["quarantined"]
    read = n_labelled
    if prepared is not None:
        read = prepared["read"] + sum(prepared.get("derived", {}).get("train", {}).values())
    return {"read": read, **fates, "unaccounted": read - _total(fates), "steps_of": dict(outcomes)}


def _total(counts: Mapping[str, Any]) -> int:
    return sum(_total(n) if isinstance(n, Mapping) else n for n in counts.values())


def _records(folder: Path) -> pyarrow.dataset.Dataset:
    parts = sorted(folder.glob("step-*.parquet"))
    if not parts:
        return pyarrow.dataset.dataset(_SCHEMA.empty_table())
    return pyarrow.dataset.dataset([str(part) for part in parts], schema=_SCHEMA)
