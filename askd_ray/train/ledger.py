"""Which utterance was in which step: what a run says it has done with its data, and the sums that prove it.

Each rank writes down its own micro-batches, and before each checkpoint a part of them to disk: a run that goes on from
a checkpoint drops the parts after it, as it drops the steps.
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
        ("outcome", pa.string()),  # TRAINED, or why the step changed nothing
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
        """Write down the utterances of this rank's share of a step."""
        self._rows += [{"step": step, "epoch": epoch, "id": i, "outcome": outcome} for i in ids]

    def write(self, step: int) -> None:
        """Write what was noted since the last time, for the checkpoint after ``step``."""
        path = self._folder / f"step-{step:08d}-rank-{self._rank:03d}.parquet"
        if self._rows:
            write_table(path, pa.Table.from_pylist(self._rows, schema=_SCHEMA))
        self._rows = []


def read_ledger(folder: Path) -> pa.Table:
    """Return step, epoch, id and outcome of all that was noted up to the last checkpoint, sorted by step and id."""
    parts = sorted(folder.glob("step-*.parquet"))
    if not parts:
        return _SCHEMA.empty_table()
    table = pyarrow.dataset.dataset([str(part) for part in parts], schema=_SCHEMA).to_table()
    return table.sort_by([("step", "ascending"), ("id", "ascending")])


def account(
    ledger: pa.Table, n_labelled: int, prepared: Mapping[str, Any] | None, labelled: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return where every utterance that was read went.

    ``prepared`` and ``labelled`` are the results of those stages, where they are known: what they set aside comes with
    the reason. ``trained`` are the train utterances that were in at least one step, ``not_reached`` those that were in
    none; ``unaccounted`` is what `askd prepare` has read and none of the fates explains: 0, or something was lost.
    ``steps_of`` counts utterances times epochs by outcome.
    """
    trained = len(set(ledger.filter(pc.field("outcome") == TRAINED).column("id").to_pylist()))
    fates: dict[str, Any] = {"trained": trained, "not_reached": n_labelled - trained}
    if labelled is not None:
        fates["left_out"] = labelled["left_out"]
    if prepared is not None:
        fates |= {split: prepared["utterances"][split] for split in ("dev", "test")}
        fates["quarantined"] = prepared["quarantined"]
    read = prepared["read"] if prepared is not None else n_labelled
    outcomes = Counter(ledger.column("outcome").to_pylist())
    return {"read": read, **fates, "unaccounted": read - _total(fates), "steps_of": dict(outcomes)}


def _total(counts: Mapping[str, Any]) -> int:
    return sum(_total(n) if isinstance(n, Mapping) else n for n in counts.values())
