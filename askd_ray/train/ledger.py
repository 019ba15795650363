"""The ledger: which utterance was in which step of a run, and the totals that prove that no utterance got lost.

Each rank records its own micro-batches and writes them to disk before each checkpoint, one part at a time. A run that
resumes from a checkpoint drops the later parts, because it repeats their steps.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset

from askd_ray.data.shards import write_table

_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),  # from 1
        ("epoch", pa.int32()),
        ("id", pa.string()),
        ("outcome", pa.string()),  # TRAINED, or the reason why the step was skipped
    ]
)

TRAINED = "trained"


class Ledger:
    """The ledger of one rank; all ranks of a run write into the same folder."""

    def __init__(self, folder: Path, rank: int, resumed_at: int):
        self._folder, self._rank = folder, rank
        self._rows: list[dict[str, Any]] = []
        if rank == 0:
            for part in folder.glob("step-*.parquet"):
                if int(part.name.split("-")[1]) > resumed_at:
                    part.unlink()

    def note(self, step: int, epoch: int, ids: list[str], outcome: str) -> None:
        """Record the utterances of this rank's micro-batches of a step."""
        self._rows += [{"step": step, "epoch": epoch, "id": i, "outcome": outcome} for i in ids]

    def write(self, step: int) -> Path | None:
        """Write the records since the last call, for the checkpoint after ``step``; return the file, if any."""
        path = self._folder / f"step-{step:08d}-rank-{self._rank:03d}.parquet"
        if not self._rows:
            return None
        write_table(path, pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows = []
        return path


def read_ledger(folder: Path) -> pa.Table:
    """Return step, epoch, id and outcome of all records up to the last checkpoint, sorted by step and id."""
    parts = sorted(folder.glob("step-*.parquet"))
    if not parts:
        return _SCHEMA.empty_table()
    table = pyarrow.dataset.dataset([str(part) for part in parts], schema=_SCHEMA).to_table()
    return table.sort_by([("step", "ascending"), ("id", "ascending")])


def account(
    ledger: pa.Table, n_labelled: int, prepared: Mapping[str, Any] | None, labelled: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what happened to every utterance that `askd prepare` has read.

    ``prepared`` and ``labelled`` are the results of those stages, where known; they give excluded utterances with the
    reason. ``trained`` counts the train utterances that were in at least one step, ``not_reached`` those in no step.
    ``unaccounted`` counts the utterances that no other count explains: anything but 0 means that utterances got lost.
    ``steps_of`` counts utterances times epochs by outcome.
    """
    trained = len(set(ledger.filter(pc.field("outcome") == TRAINED).column("id").to_pylist()))
    fates: dict[str, Any] = {"trained": trained, "not_reached": n_labelled - trained}
    if labelled is not None:
        fates["left_out"] = labelled["left_out"]
    if prepared is not None:
        fates |= {split: prepared["utterances"][split] for split in ("dev", "test")}
        fates["quarantined"] = prepared["quarantined"]
    read = n_labelled
    if prepared is not None:
        read = prepared["read"] + sum(prepared.get("derived", {}).get("train", {}).values())
    outcomes = Counter(ledger.column("outcome").to_pylist())
    return {"read": read, **fates, "unaccounted": read - _total(fates), "steps_of": dict(outcomes)}


def _total(counts: Mapping[str, Any]) -> int:
    return sum(_total(n) if isinstance(n, Mapping) else n for n in counts.values())
