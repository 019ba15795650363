from dataclasses import replace
from pathlib import Path

import numpy as np

from askd_ray.data.collate import empty_batch
from askd_ray.data.schema import Batch
from askd_ray.train.ledger import TRAINED, Ledger, account, read_ledger


def batch_of(*ids: str) -> Batch:
    """A micro-batch of utterances that are named by their numbers in the row index, as letters or digits."""
    return replace(
        empty_batch(80, 1), ids=ids, numbers=np.array([int(i[1:]) if i[1:] else "abcd".index(i) for i in ids])
    )


def written(folder: Path) -> list[tuple[int, str, str]]:
    return [(row["step"], row["id"], row["outcome"]) for row in read_ledger(folder).to_pylist()]


def test_resume_drops_rows_after_the_checkpoint(tmp_path: Path):
    ranks = [Ledger(tmp_path, rank, 0) for rank in range(2)]
    for step in (1, 2, 3):
        for rank, ledger in enumerate(ranks):
            ledger.note(step, 0, [batch_of(f"u{step}{rank}")], TRAINED)
            if step != 1:
                ledger.write(step)
    assert [step for step, _, _ in written(tmp_path)] == [1, 1, 2, 2, 3, 3]
    again = Ledger(tmp_path, 0, 2)  # alone now
    assert written(tmp_path) == [(1, "u10", TRAINED), (1, "u11", TRAINED), (2, "u20", TRAINED), (2, "u21", TRAINED)]
    again.note(3, 0, [batch_of("u30"), batch_of("u31")], "skipped: not finite")
    again.write(3)
    assert written(tmp_path)[-1] == (3, "u31", "skipped: not finite")


def test_every_utterance_has_one_fate_and_missing_ones_are_counted(tmp_path: Path):
    ledger = Ledger(tmp_path, 0, 0)
    ledger.note(1, 0, [batch_of("a", "b"), batch_of()], TRAINED)
    ledger.note(2, 0, [batch_of("c")], "skipped: not finite")
    ledger.note(3, 1, [batch_of("a")], TRAINED)
    ledger.write(3)
    prepared = {"read": 12, "utterances": {"train": 6, "dev": 2, "test": 1}, "quarantined": {"silence": 2}}
    found = account(tmp_path, 4, prepared, {"left_out": {"too long": 2}})
    assert found == {
        "read": 12,
        "trained": 2,
        "not_reached": 2,
        "left_out": {"too long": 2},
        "dev": 2,
        "test": 1,
        "quarantined": {"silence": 2},
        "unaccounted": 1,
        "steps_of": {TRAINED: 3, "skipped: not finite": 1},
    }


def test_run_without_a_step_has_an_empty_ledger(tmp_path: Path):
    assert read_ledger(tmp_path).num_rows == 0
