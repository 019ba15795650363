"""The files of checked parts: usable utterances, and the facts about each row.

The files of a part are complete or not trusted, so an interrupted `askd prepare` continues with the remaining parts.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.data.placement import SET_ASIDE, group_of
from askd_ray.data.row_check import Rejected
from askd_ray.data.schema import SHARD_SCHEMA, Utterance
from askd_ray.data.shards import read_table, to_table, write_table
from askd_ray.data.sources import SplitNames
from askd_ray.data.split import SplitAssignment, dev_fraction, normalize_speaker
from askd_ray.location import Location

_BATCH_ROWS = 16  # utterances with audio in memory at a time, for each group
_ROWS_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("reason", pa.string()),  # of a row that is set aside, else ""
        ("detail", pa.string()),
        ("id_high", pa.uint64()),  # the halves of a 128-bit hash
        ("id_low", pa.uint64()),
        ("audio_high", pa.uint64()),
        ("audio_low", pa.uint64()),
        ("group", pa.int8()),  # of placement.GROUPS; the rest is of usable rows only
        ("marked", pa.bool_()),
        ("n_samples", pa.int64()),
        ("n_bytes", pa.int64()),
        ("has_text", pa.bool_()),
        ("language", pa.string()),
        ("speaker", pa.uint64()),  # a hash of the name; 0: unnamed
        ("dev_fraction", pa.float64()),  # of split.dev_fraction
        ("batch", pa.int32()),  # of the part's file of utterances, and the row in it
        ("batch_row", pa.int32()),
    ]
)
_UNUSABLE: dict[str, Any] = {
    "audio_high": 0,
    "audio_low": 0,
    "group": SET_ASIDE,
    "marked": False,
    "n_samples": 0,
    "n_bytes": 0,
    "has_text": False,
    "language": "",
    "speaker": 0,
    "dev_fraction": 0.0,
    "batch": -1,
    "batch_row": -1,
}
_SUMMARY = b"askd_summary"

Outcome = tuple[Utterance, SplitAssignment] | Rejected
"""The result for one row."""


@dataclass(frozen=True)
class PartSummary:
    """What a part holds. ``languages`` has the id of the first usable row of each language."""

    key: str
    n_rows: int
    n_set_aside: int
    names: SplitNames
    languages: dict[str, str]


@dataclass(frozen=True)
class CheckedParts:
    """The folder with the files of checked parts."""

    folder: Location

    def rows(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the facts about the rows of a part, in their order."""
        return read_table(self._rows_file(key), columns)

    def utterances(self, key: str, batches: Sequence[int], batch_rows: Sequence[int]) -> pa.Table:
        """Return usable rows of a part in the given order, each by the number of its batch and the row in it."""
        by_batch: dict[int, list[int]] = defaultdict(list)
        for position, batch in enumerate(batches):
            by_batch[batch].append(position)
        file = self._audio_file(key)
        with file.explain("is damaged"), file.open() as opened:
            reader = pa.ipc.open_file(opened)
            taken = [
                reader.get_batch(batch).take(pa.array([batch_rows[position] for position in positions]))
                for batch, positions in by_batch.items()
            ]
        order = np.argsort([position for positions in by_batch.values() for position in positions])
        table = pa.Table.from_batches(taken, schema=SHARD_SCHEMA)
        return table if np.all(np.diff(order) == 1) else table.combine_chunks().take(pa.array(order))

    def summary(self, key: str) -> PartSummary | None:
        """Return the summary of a part, or None if it has not been checked."""
        if not self._rows_file(key).is_file():
            return None
        values: dict[str, Any] = json.loads(self.rows(key, []).schema.metadata[_SUMMARY])
        values["names"] = SplitNames(**values["names"])
        return PartSummary(**values)

    def _rows_file(self, key: str) -> Location:
        return self.folder / f"{key}.parquet"

    def _audio_file(self, key: str) -> Location:
        return self.folder / f"{key}.arrow"

    def write(self, key: str, names: SplitNames, outcomes: Iterable[tuple[str, Outcome]]) -> None:
        """Write the outcomes of a part's rows, each with the row's position in the source.

        ``names`` is complete at the end of ``outcomes``.
        """
        rows, languages, n_set_aside = list[dict[str, Any]](), dict[str, str](), 0
        with self._audio_file(key).atomic_output() as file, pa.ipc.new_file(file, SHARD_SCHEMA) as writer:
            batches = _Batches(writer)
            for source, outcome in outcomes:
                if isinstance(outcome, Rejected):
                    rows.append(_UNUSABLE | {name: _storable(text) for name, text in vars(outcome).items()})
                    rows[-1] |= _hashed("id", outcome.id.encode(errors="surrogatepass"))
                    n_set_aside += 1
                    continue
                utterance, assignment = outcome
                rows.append(_facts(utterance, assignment, source))
                batches.add(rows[-1], utterance)
                languages.setdefault(utterance.language, utterance.id)
            batches.flush()
        summary = PartSummary(key, len(rows), n_set_aside, names, languages)
        table = pa.Table.from_pylist(rows, schema=_ROWS_SCHEMA)
        described = table.replace_schema_metadata({_SUMMARY: json.dumps(asdict(summary))})
        write_table(self._rows_file(key), described, row_group_size=1 << 20)  # last: it says that the part is complete


class _Batches:
    """Writes utterances in batches, each of one group: a shard reads only batches of its split."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter):
        self._writer, self._n_written = writer, 0
        self._waiting: dict[int, list[tuple[dict[str, Any], Utterance]]] = defaultdict(list)

    def add(self, facts: dict[str, Any], utterance: Utterance) -> None:
        """Add an utterance. Its facts get the place when the batch is written."""
        waiting = self._waiting[facts["group"]]
        waiting.append((facts, utterance))
        if len(waiting) == _BATCH_ROWS:
            self._write(facts["group"])

    def flush(self) -> None:
        """Write the remaining utterances."""
        for group in sorted(self._waiting):
            self._write(group)

    def _write(self, group: int) -> None:
        waiting = self._waiting.pop(group)
        self._writer.write_table(to_table([utterance for _, utterance in waiting]).combine_chunks())
        for row, (facts, _) in enumerate(waiting):
            facts |= {"batch": self._n_written, "batch_row": row}
        self._n_written += 1


def _facts(utterance: Utterance, assignment: SplitAssignment, source: str) -> dict[str, Any]:
    """Return the facts about a usable row; its place in a batch is not known yet."""
    speaker = normalize_speaker(utterance.speaker)
    return {
        "id": utterance.id,
        "source": source,
        "reason": "",
        "detail": "",
        **_hashed("id", utterance.id.encode(errors="surrogatepass")),
        **_hashed("audio", utterance.audio),
        "group": group_of(assignment, bool(utterance.text)),
        "marked": assignment.marked,
        "n_samples": round(utterance.duration_s * SAMPLE_RATE_HZ),
        "n_bytes": len(utterance.audio),
        "has_text": bool(utterance.text),
        "language": utterance.language,
        "speaker": _hashed("speaker", speaker.encode())["speaker_high"] if speaker else 0,
        "dev_fraction": dev_fraction(utterance.id),
    }


def _hashed(name: str, content: bytes) -> dict[str, int]:
    """Return the halves of a 128-bit hash, which stands for the content: that two contents share it is impossible."""
    hashed = hashlib.blake2b(content, digest_size=16).digest()
    return {f"{name}_high": int.from_bytes(hashed[:8], "big"), f"{name}_low": int.from_bytes(hashed[8:], "big")}


def _storable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
