"""Write utterances to the shards of their splits.

The split of some rows, and how much of dev is kept, are known only at the end of the data.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from askd_ray.data.row_check import NO_REFERENCE, Rejected
from askd_ray.data.schema import SPLITS, Split, Utterance
from askd_ray.data.shards import BLOCK_ROWS, read_table, to_table, to_utterances, write_table
from askd_ray.data.split import SplitAssignment, normalize_speaker
from askd_ray.files import hash_fraction
from askd_ray.location import Location

DEV_IS_FULL = "more dev than data.max_dev_hours"
"""The quarantine reason of a usable dev row that the limit of dev leaves out."""


def in_capped_dev(utterance_id: str, kept_share: float) -> bool:
    """Whether a dev utterance stays, if about ``kept_share`` of dev is kept.

    A hash of the id decides: every utterance has the same chance, and a smaller share keeps a part of a larger one.
    """
    return hash_fraction(f"dev {utterance_id}") < kept_share


@dataclass
class SplitCounts:
    """Counts of one split; ``marked`` is the number of utterances whose source names the split."""

    utterances: int = 0
    seconds: float = 0.0
    marked: int = 0
    without_text: int = 0
    speakers: set[str] = field(default_factory=set[str])


class ShardWriter:
    """Writes the shards of a folder, ``utterances_per_shard`` in each, in the order of the utterances.

    Spare utterances (:class:`~askd_ray.data.split.SplitAssignment`) come last. ``max_dev_hours`` limits the speech of
    dev; None disables the limit.
    """

    def __init__(self, folder: Location, utterances_per_shard: int, max_dev_hours: float | None = None):
        self.counts: dict[Split, SplitCounts] = {split: SplitCounts() for split in SPLITS}
        self.languages: Counter[str] = Counter()
        size = utterances_per_shard
        self._max_dev_s = None if max_dev_hours is None else 3600.0 * max_dev_hours
        self._dev_marked = bytearray()  # for each dev utterance, in order: whether its source names the split
        self._files: dict[Split, _Files] = {split: _Files(folder, split, size) for split in SPLITS}
        self._spare: dict[Split, _Files] = {split: _Files(folder, f"spare-{split}", size) for split in SPLITS}

    def add(self, utterance: Utterance, assignment: SplitAssignment) -> None:
        """Add an utterance."""
        if assignment.spare:
            self._spare[assignment.split].add(utterance)
        else:
            self._put(utterance, assignment.split, assignment.marked)

    def finish(self) -> Iterator[Rejected]:
        """Write the remaining utterances, and assign the spare ones: to their split if no row is marked with that
        split, else to train. If dev is then longer than its limit, keep a random part of it.

        Yields the rows that are set aside: spare ones without text that would go to dev or test, and the rest of dev,
        which cannot be train data because its speakers are in dev. The shards are complete at the end of the iterator.
        """
        for split, files in self._spare.items():
            has_marked_rows = self.counts[split].marked > 0
            for utterance in files.drain():
                if has_marked_rows:
                    self._put(utterance, "train", marked=True)
                elif utterance.text:
                    self._put(utterance, split, marked=False)
                else:
                    yield Rejected(utterance.id, utterance.path, NO_REFERENCE[split], "")
        yield from self._cap_dev()
        for files in self._files.values():
            files.flush()

    def _cap_dev(self) -> Iterator[Rejected]:
        """Write dev again with about as much speech as is allowed, and yield the other rows."""
        dev_s = self.counts["dev"].seconds
        if self._max_dev_s is None or dev_s <= self._max_dev_s:
            return
        utterances, marked = self._files["dev"].drain(), self._dev_marked
        self._files["dev"], self.counts["dev"], self._dev_marked = (
            self._files["dev"].restarted(),
            SplitCounts(),
            bytearray(),
        )
        for utterance, is_marked in zip(utterances, marked, strict=True):
            self.languages[utterance.language] -= 1
            if in_capped_dev(utterance.id, self._max_dev_s / dev_s):
                self._put(utterance, "dev", bool(is_marked))
            else:
                yield Rejected(utterance.id, utterance.path, DEV_IS_FULL, "")
        for language in [language for language, n in self.languages.items() if not n]:
            del self.languages[language]

    def _put(self, utterance: Utterance, split: Split, marked: bool) -> None:
        self._files[split].add(replace(utterance, split=split))
        self.languages[utterance.language] += 1
        if split == "dev":
            self._dev_marked.append(marked)
        counts = self.counts[split]
        counts.utterances += 1
        counts.seconds += utterance.duration_s
        counts.marked += marked
        counts.without_text += not utterance.text
        if utterance.speaker:
            counts.speakers.add(normalize_speaker(utterance.speaker))


class _Files:
    """Numbered Parquet files of utterances; the last one stays in memory until it is full."""

    def __init__(self, folder: Location, name: str, size: int):
        self._folder, self._name, self._size = folder, name, size
        self._written: list[Location] = []
        self._waiting: list[Utterance] = []

    def add(self, utterance: Utterance) -> None:
        self._waiting.append(utterance)
        if len(self._waiting) == self._size:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._written.append(self._folder / f"{self._name}-{len(self._written):05d}.parquet")
            write_table(self._written[-1], to_table(self._waiting), BLOCK_ROWS)
            self._waiting = []

    def restarted(self) -> "_Files":
        """Return empty files of the same names.

        They may be written while :meth:`drain` is read: there are at most as many of them as drained ones.
        """
        return _Files(self._folder, self._name, self._size)

    def drain(self) -> Iterator[Utterance]:
        """Yield all utterances in order; each file is deleted before its first utterance."""
        for file in self._written:
            utterances = to_utterances(read_table(file))
            file.delete()
            yield from utterances
        yield from self._waiting
