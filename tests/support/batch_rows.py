"""Some rows of a batch, as a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from askd_ray.data.schema import Batch

OF_TOKENS = (
    "targets",
    "target_positions",
    "rows",
    "has_teacher",
    "top_ids",
    "top_log_probs",
    "rest_log_prob",
    "token_loss",
    "states",
)
"""The arrays of a batch with one entry for each target token."""


def some_rows(batch: Batch, chosen: Sequence[int]) -> Batch:
    """Some utterances of a batch, in windows and texts of the same lengths."""
    tokens = np.concatenate([np.flatnonzero(batch.rows == row) for row in chosen])
    length = batch.decoder_ids.shape[1]
    arrays: dict[str, Any] = {
        name: value[tokens if name in OF_TOKENS else list(chosen)]
        for name, value in vars(batch).items()
        if name != "ids"
    }
    rows = np.repeat(np.arange(len(chosen)), arrays["n_targets"])
    arrays["target_positions"] = arrays["target_positions"] % length + length * rows
    return Batch(ids=tuple(batch.ids[row] for row in chosen), **arrays | {"rows": rows})


def at_targets(batch: Batch, row: int) -> np.ndarray:
    """The positions of an utterance's target tokens in its text."""
    return batch.target_positions[batch.rows == row] % batch.decoder_ids.shape[1]
