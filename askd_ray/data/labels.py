"""Soft labels on disk: one label shard for each shard, row for row, with a key of all settings that decide them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from askd_ray.data.schema import LABEL_SCHEMA
from askd_ray.data.shards import BLOCK_ROWS, Block, read_rows, read_table, write_table
from askd_ray.errors import AskdError
from askd_ray.location import Location, PathOrUri

_METADATA = b"askd.label_key"

LabelKey = dict[str, Any]
"""The settings of the labels: teacher (SHA-256 of its weights), prompt, targets, temperature, top_k, and states if they
hold any."""

StatesShape = tuple[int, int]
"""The number of layers and the width of decoder states; ``(0, 0)`` for none."""


@dataclass(frozen=True)
class SoftLabels:
    """The teacher's labels for one utterance.

    ``prompt_ids``: the decoder's prompt. ``target_ids`` int32 (n_tokens,): the text and the end token; empty if the
    utterance is left out, with the reason in ``left_out``; ``text`` is their text. ``top_ids`` uint16 and
    ``top_log_probs`` float16 (n_tokens, k), k = 0 for an online teacher; ``rest_log_prob`` float16 (n_tokens,): log of
    the probability outside the top k; ``token_loss`` float16 (n_tokens,): cross-entropy of the target tokens at
    temperature 1, in nats; ``states`` float16 (n_tokens, n_layers, d_model): the decoder states that predict the target
    tokens, those of the last layer after the final layer norm. ``has_teacher``: False for a target that does not come
    from the teacher; its soft labels and states are zeros, and count in no term of the objective. ``continues`` bool
    (n_tokens,), if given, marks tokens that continue one of the teacher's tokens (:mod:`askd_ray.data.student_labels`):
    the teacher's labels of that token are those of its first piece.
    """

    content_hash: str
    prompt_ids: tuple[int, ...]
    target_ids: NDArray[np.int32]
    left_out: str
    text: str
    top_ids: NDArray[np.uint16]
    top_log_probs: NDArray[np.float16]
    rest_log_prob: NDArray[np.float16]
    token_loss: NDArray[np.float16]
    states: NDArray[np.float16]
    has_teacher: bool = True
    continues: NDArray[np.bool_] | None = None

    @property
    def teacher_loss(self) -> float:
        """The teacher's mean cross-entropy on the utterance, in nats per token; 0 if the utterance is left out."""
        of_tokens = self.token_loss if self.continues is None else self.token_loss[~self.continues]
        return float(of_tokens.astype(np.float64).mean()) if len(of_tokens) else 0.0

    @property
    def taught(self) -> NDArray[np.bool_]:
        """The target tokens that have the teacher's labels: ``(n_tokens,)``."""
        taught = np.full(len(self.target_ids), self.has_teacher)
        return taught if self.continues is None else taught & ~self.continues


ARRAYS = {"top_ids": "<u2", "top_log_probs": "<f2", "rest_log_prob": "<f2", "token_loss": "<f2", "states": "<f2"}
"""The arrays of :class:`SoftLabels` that the teacher fills, with their types in a label shard."""


def bytes_per_token(top_k: int, states_shape: StatesShape) -> float:
    """Return the size of the arrays of a target token, before compression."""
    sizes = {name: np.dtype(dtype).itemsize for name, dtype in ARRAYS.items()}
    n_layers, width = states_shape
    counts = {"top_ids": top_k, "top_log_probs": top_k, "states": n_layers * width}
    return float(sum(size * counts.get(name, 1) for name, size in sizes.items()))


def write_labels(path: PathOrUri, labels: Sequence[SoftLabels], key: LabelKey) -> None:
    """Write a label shard atomically, with its key in the file's metadata."""
    rows = [
        {
            "content_hash": label.content_hash,
            "prompt_ids": list(label.prompt_ids),
            "target_ids": label.target_ids.tolist(),
            "left_out": label.left_out,
            "text": label.text,
            "teacher_loss": label.teacher_loss if label.has_teacher else None,
            **{name: getattr(label, name).astype(dtype).tobytes() for name, dtype in ARRAYS.items()},
        }
        for label in labels
    ]
    table = pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)
    keyed = table.replace_schema_metadata({_METADATA: json.dumps(key, sort_keys=True)})
    write_table(path, keyed, BLOCK_ROWS)


def labels_match(path: PathOrUri, shard: PathOrUri, key: LabelKey) -> bool:
    """Whether a complete label shard with this key exists for the utterances of this shard."""
    try:
        check_labels(path, shard, key)
    except AskdError:
        return False
    return True


def check_labels(path: PathOrUri, shard: PathOrUri, key: LabelKey) -> None:
    """Check a label shard against its shard and the recipe's key, without reading the labels.

    Raises :class:`AskdError` when it is missing, damaged or stale; the message names the difference.
    """
    path, shard = Location.of(path), Location.of(shard)
    if not path.is_file():
        raise AskdError(f"{path} does not exist: run `askd label` first")
    with path.explain("is damaged, run `askd label` again"), path.open() as file:
        metadata = pq.read_schema(file).metadata or {}
    made_with: LabelKey = json.loads(metadata.get(_METADATA, b"{}"))
    for name, expected in key.items():
        if made_with.get(name) != expected and not (name == "states" and made_with.get(name) == "all"):
            raise AskdError(
                f"stale soft labels in {path.parent}: made with {name} {made_with.get(name)}, the recipe asks for "
                f"{expected}: run `askd label` again"
            )
    if not read_table(path, ["content_hash"]).equals(read_table(shard, ["content_hash"])):
        raise AskdError(f"stale soft labels in {path}: {shard.name} has other utterances now: run `askd label` again")


def read_labels(
    path: PathOrUri, top_k: int, states_shape: StatesShape = (0, 0), block: Block | None = None
) -> list[SoftLabels]:
    """Read a label shard, or the labels of one of its blocks; call :func:`check_labels` first.

    ``states_shape``: the decoder states to read; if the shard has more layers, the last ones are read.
    """
    labels: list[SoftLabels] = []
    n_layers, width = states_shape
    columns = [name for name in LABEL_SCHEMA.names if name != "states" or n_layers]
    table = read_table(path, columns) if block is None else read_rows(Location.of(path), block.rows, columns)
    for row in table.to_pylist():
        arrays = {name: np.frombuffer(row.get(name, b""), dtype) for name, dtype in ARRAYS.items()}
        target_ids = np.asarray(row["target_ids"], np.int32)
        for name in ("top_ids", "top_log_probs"):
            arrays[name] = arrays[name].reshape(len(target_ids), top_k)
        n_stored = arrays["states"].size // max(1, len(target_ids) * width)
        states = arrays["states"].reshape(len(target_ids), n_stored or n_layers, width)
        arrays["states"] = states[:, states.shape[1] - n_layers :]
        labels.append(
            SoftLabels(
                content_hash=row["content_hash"],
                prompt_ids=tuple(row["prompt_ids"]),
                target_ids=target_ids,
                left_out=row["left_out"],
                text=row["text"],
                has_teacher=row["teacher_loss"] is not None,
                **arrays,
            )
        )
    return labels


def read_label_texts(path: PathOrUri) -> list[str | None]:
    """Return the texts of a label shard's targets; None for an utterance that is left out."""
    rows = read_table(path, ["left_out", "text"]).to_pylist()
    return [None if row["left_out"] else row["text"] for row in rows]
