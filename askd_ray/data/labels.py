"""Soft labels on disk: a label shard beside each shard, row for row, keyed on what the teacher's answer hangs on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from askd_ray.data.schema import LABEL_SCHEMA
from askd_ray.data.shards import read_table, write_table
from askd_ray.errors import AskdError

_METADATA = b"askd.label_key"

LabelKey = dict[str, Any]
"""What the labels were made with: teacher (SHA-256 of its weights), prompt, temperature, top_k."""


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's answer for one utterance.

    ``target_ids`` int32 (n_tokens,): the text and the end token; empty when the text has more tokens than the model
    has positions. ``top_ids`` int32 and ``top_log_probs`` float16 (n_tokens, k); ``rest_log_prob`` float16
    (n_tokens,): the log of the mass outside the top k. ``teacher_loss``: mean cross-entropy in nats.
    """

    content_hash: str
    target_ids: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_log_probs: NDArray[np.float16]
    rest_log_prob: NDArray[np.float16]
    teacher_loss: float


def write_labels(path: Path, labels: Sequence[SoftLabels], key: LabelKey) -> None:
    """Write a label shard, atomically, with its key in the file's metadata."""
    rows = [
        {
            "content_hash": label.content_hash,
            "target_ids": label.target_ids.tolist(),
            "top_ids": label.top_ids.astype("<i4").tobytes(),
            "top_log_probs": label.top_log_probs.astype("<f2").tobytes(),
            "rest_log_prob": label.rest_log_prob.astype("<f2").tobytes(),
            "teacher_loss": label.teacher_loss,
        }
        for label in labels
    ]
    table = pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)
    write_table(path, table.replace_schema_metadata({_METADATA: json.dumps(key, sort_keys=True)}))


def labels_match(path: Path, shard: Path, key: LabelKey) -> bool:
    """Whether a label shard is there, whole, made with this key, and for these very utterances."""
    try:
        check_labels(path, shard, key)
    except AskdError:
        return False
    return True


def check_labels(path: Path, shard: Path, key: LabelKey) -> None:
    """Check a label shard against its shard and the key that the recipe asks for, without reading the labels.

    Raises :class:`AskdError` when it is missing, damaged or stale; the message says what differs.
    """
    if not path.is_file():
        raise AskdError(f"{path} does not exist: run `askd label` first")
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise AskdError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): run `askd label` again") from None
    made_with: LabelKey = json.loads(metadata.get(_METADATA, b"{}"))
    for name, wanted in key.items():
        if made_with.get(name) != wanted:
            raise AskdError(
                f"stale soft labels in {path.parent}: made with {name} {made_with.get(name)}, the recipe asks for "
                f"{wanted}: run `askd label` again"
            )
    if not read_table(path, ["content_hash"]).equals(read_table(shard, ["content_hash"])):
        raise AskdError(f"stale soft labels in {path}: {shard.name} has other utterances now: run `askd label` again")


def read_labels(path: Path, top_k: int) -> list[SoftLabels]:
    """Read a label shard that :func:`check_labels` has passed."""
    return [
        SoftLabels(
            content_hash=row["content_hash"],
            target_ids=np.asarray(row["target_ids"], np.int32),
            top_ids=np.frombuffer(row["top_ids"], "<i4").reshape(-1, top_k),
            top_log_probs=np.frombuffer(row["top_log_probs"], "<f2").reshape(-1, top_k),
            rest_log_prob=np.frombuffer(row["rest_log_prob"], "<f2"),
            teacher_loss=row["teacher_loss"],
        )
        for row in read_table(path).to_pylist()
    ]
