"""Write utterances to the shards of their splits; the split of some rows is known only at the end of the data."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from askd_ray.data.schema import SPLITS, Split, Utterance
from askd_ray.data.shards import BLOCK_ROWS, read_table, to_table, to_utterances, write_table
from askd_ray.data.split import SplitAssignment, normalize_speaker
from askd_ray.location import Location


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

    Spare utterances (:class:`~askd_ray.data.split.SplitAssignment`) come last.
    """

    def __init__(self, folder: Location, utterances_per_shard: int):
        self.counts: dict[Split, SplitCounts] = {split: SplitCounts() for split in SPLITS}
        self.languages: Counter[str] = Counter()
        size = utterances_per_shard
        self._files: dict[Split, _Files] = {split: _Files(folder, split, size) for split in SPLITS}
        self._spare: dict[Split, _Files] = {split: _Files(folder, f"spare-{split}", size) for split in SPLITS}

    def add(self, utterance: Utterance, assignment: SplitAssignment) -> None:
        """Add an utterance."""
        if assignment.spare:
            self._spare[assignment.split].add(utterance)
        else:
            self._put(utterance, assignment.split, assignment.marked)

    def finish(self) -> list[Utterance]:
        """Write the remaining utterances, and assign the spare ones: to their split if no row is marked with that
        split, else to train.

        Returns the spare utterances that cannot be used: those without text that would go to dev or test.
        """
        unusable: list[Utterance] = []
        for split, files in self._spare.items():
            has_marked_rows = self.counts[split].marked > 0
            for utterance in files.drain():
                if has_marked_rows:
                    self._put(utterance, "train", marked=True)
                elif utterance.text:
                    self._put(utterance, split, marked=False)
                else:
                    unusable.append(utterance)
        for files in self._files.values():
            files.flush()
        return unusable

    def _put(self, utterance: Utterance, split: Split, marked: bool) -> None:
        self._files[split].add(replace(utterance, split=split))
        self.languages[utterance.language] += 1
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

    def drain(self) -> Iterator[Utterance]:
        """Yield all utterances in order, and delete the files."""
        for file in self._written:
            yield from to_utterances(read_table(file))
            file.delete()
        yield from self._waiting
