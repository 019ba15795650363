"""The hypotheses of models as Parquet: raw texts, normalised only for scoring, so that they can be scored again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

from askd_ray.data.shards import read_table, write_table

CLEAN = "clean"
NON_SPEECH = "non_speech"
"""The set of clips without speech: the references are empty, and the conditions are kinds of sound."""
DecodingPath = Literal["served", "raw"]
"""As the service decodes (:mod:`askd_ray.models.served`), or the clip decoded once, greedily."""
SERVED: DecodingPath = "served"
RAW: DecodingPath = "raw"
STUDENT, TEACHER = "student", "teacher"
HYPOTHESES, SCORES = "hypotheses.parquet", "scores.json"

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("set", pa.string()),
        ("in_domain", pa.bool_()),
        ("condition", pa.string()),  # clean, or the change of the audio
        ("id", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("duration_s", pa.float64()),
        ("reference", pa.string()),
        ("hypothesis", pa.string()),
        ("token_texts", pa.list_(pa.string())),  # joined they give the hypothesis; null if the model returns no tokens
        ("token_probs", pa.list_(pa.float32())),  # the model's probability of each token
        ("ended", pa.bool_()),  # false: the length limit ended the output; null if unknown
        ("path", pa.string()),  # served or raw; a file without this column has raw rows
    ]
)
"""One row for each model, condition, utterance and decoding path; servers have no raw rows."""


@dataclass(frozen=True)
class Hypothesis:
    """A model's output for an utterance; the fields are those of :data:`SCHEMA`."""

    model: str
    set: str
    in_domain: bool
    condition: str
    id: str
    speaker: str
    language: str
    duration_s: float
    reference: str
    hypothesis: str
    token_texts: tuple[str, ...] | None = None
    token_probs: tuple[float, ...] | None = None
    ended: bool | None = None
    path: DecodingPath = SERVED


def write_hypotheses(path: Path, rows: Sequence[Hypothesis]) -> None:
    """Write rows to a file, atomically."""
    write_table(path, to_table(rows))


def to_table(rows: Sequence[Hypothesis]) -> pa.Table:
    """Return rows as a table with :data:`SCHEMA`."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA)


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read a file of :func:`write_hypotheses`. The rows of an earlier version, which had no served ones, are raw."""
    rows = read_table(path).to_pylist()
    for row in rows:
        row.setdefault("path", RAW)
        for name in ("token_texts", "token_probs"):
            row[name] = None if row[name] is None else tuple(row[name])
    return [Hypothesis(**row) for row in rows]
