"""What models said, as Parquet: raw texts, normalised only when they are scored, so that scores can be made again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from askd_ray.data.shards import read_table, write_table

CLEAN = "clean"
NON_SPEECH = "non_speech"
"""The set of clips in which nobody speaks: references are empty, and conditions are kinds of sound."""
STUDENT, TEACHER = "student", "teacher"
HYPOTHESES, SCORES = "hypotheses.parquet", "scores.json"

SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("set", pa.string()),
        ("in_domain", pa.bool_()),
        ("condition", pa.string()),  # clean, or what was done to the audio
        ("id", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("duration_s", pa.float64()),
        ("reference", pa.string()),
        ("hypothesis", pa.string()),
        ("token_texts", pa.list_(pa.string())),  # together they are the hypothesis; null where the model tells no more
        ("token_probs", pa.list_(pa.float32())),  # the probability that the model gave each of them
        ("ended", pa.bool_()),  # false: it did not stop by itself; null where the model does not tell
    ]
)
"""One row for each model, condition and utterance."""


@dataclass(frozen=True)
class Hypothesis:
    """What a model said of an utterance; the fields are those of :data:`SCHEMA`."""

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


def write_hypotheses(path: Path, rows: Sequence[Hypothesis]) -> None:
    """Write rows atomically."""
    write_table(path, to_table(rows))


def to_table(rows: Sequence[Hypothesis]) -> pa.Table:
    """Return rows as a table of :data:`SCHEMA`."""
    return pa.Table.from_pylist([vars(row) for row in rows], schema=SCHEMA)


def read_hypotheses(path: Path) -> list[Hypothesis]:
    """Read what :func:`write_hypotheses` wrote."""
    rows = read_table(path, SCHEMA.names).to_pylist()
    for row in rows:
        for name in ("token_texts", "token_probs"):
            row[name] = None if row[name] is None else tuple(row[name])
    return [Hypothesis(**row) for row in rows]
