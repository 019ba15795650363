"""The results of `askd prepare`: counts, notes for the user, and the problems that make the shards useless."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from askd_ray.config.data import Data
from askd_ray.config.schema import Recipe
from askd_ray.data.row_check import DEV_IS_FULL, NO_REFERENCE
from askd_ray.data.schema import SPLITS, Split
from askd_ray.progress import Table

_USED_BY: dict[Split, str] = {
    "train": "`askd distill` needs train rows",
    "dev": "`askd distill` chooses the student on dev",
    "test": "evaluate.split is test",
}


_KINDS: dict[str, str] = {"crop": "crops", "stitched": "stitched", "non_speech": "without speech"}


def _no_speakers() -> NDArray[np.uint64]:
    return np.empty(0, np.uint64)


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split; ``marked`` is the number of utterances whose source names the split.

    ``speakers`` are hashes of the different names.
    """

    utterances: int = 0
    seconds: float = 0.0
    marked: int = 0
    without_text: int = 0
    speakers: NDArray[np.uint64] = field(default_factory=_no_speakers)


@dataclass
class PrepareCounts:
    """Counts of the rows read, of the quarantined ones by reason, and of the utterances by split and language."""

    read: int = 0
    quarantined: Counter[str] = field(default_factory=Counter[str])
    by_split: Mapping[Split, SplitCounts] = field(default_factory=dict[Split, SplitCounts])
    languages: Counter[str] = field(default_factory=Counter[str])

    def result(self) -> dict[str, Any]:
        """Return the record of the stage: see :func:`~askd_ray.data.prepare.prepare`."""
        speakers = np.concatenate([_no_speakers(), *(counts.speakers for counts in self.by_split.values())])
        splits_of_speaker = np.unique(speakers, return_counts=True)[1]
        return {
            "read": self.read,
            "utterances": {split: counts.utterances for split, counts in self.by_split.items()},
            "minutes": {split: round(counts.seconds / 60, 2) for split, counts in self.by_split.items()},
            "speakers": {split: len(counts.speakers) for split, counts in self.by_split.items()},
            "marked": {split: counts.marked for split, counts in self.by_split.items()},
            "languages": dict(self.languages.most_common()),
            "speakers_in_several_splits": int((splits_of_speaker > 1).sum()),
            "quarantined": dict(self.quarantined.most_common()),
            "without_text": self.by_split["train"].without_text,
            "derived": {},
        }


def rows_problem(result: Mapping[str, Any], data: Data) -> str | None:
    """Return the problem if too few of the rows can be used, else None."""
    read, reasons = result["read"], Counter[str](result["quarantined"])
    if read == 0:
        return "the sources hold no rows"
    top = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(3))
    if reasons.total() == read:
        return f"none of {read} rows can be used ({top})"
    # Rows that only their split cannot use do not count as bad.
    bad = reasons.total() - sum(reasons[reason] for reason in (*NO_REFERENCE.values(), DEV_IS_FULL))
    if bad > data.max_quarantine_share * read:
        allowed = f"data.max_quarantine_share = {data.max_quarantine_share:g}"
        return f"{bad} of {read} rows can't be used ({top}), and {allowed} allows fewer"
    return None


def splits_problem(result: Mapping[str, Any], recipe: Recipe) -> str | None:
    """Return the problem if a split is empty that has a share in the recipe and that a later stage needs, else None."""
    for split in _needed(recipe):
        if not result["utterances"][split] and _share(split, recipe.data) > 0.0:
            return (
                f"no {split} rows among {_amount(result)}, and {_USED_BY[split]}: {_remedy(split, result, recipe.data)}"
            )
    return None


def notes(result: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return notes on the shards for the user, one line each."""
    lines: list[str] = []
    for split in _needed(recipe):
        if not result["utterances"][split] and _share(split, recipe.data) == 0.0:
            lines.append(f"No {split} rows, since data.{split}_share = 0, and {_USED_BY[split]}")
    if n := result["speakers_in_several_splits"]:
        why = "the rows are split by text" if recipe.data.split_by == "text" else "the sources name these splits"
        lines.append(f"{n} speakers are in more than one split, since {why}")
    if n := result["without_text"]:
        lines.append(f"{n} train utterances have no text: the teacher transcribes them")
    for split, kinds in result["derived"].items():
        made = ", ".join(f"{n} {_KINDS[kind]}" for kind, n in kinds.items())
        lines.append(f"Derived clips of {split}: {made or 'none'}")
    if n := result["quarantined"].get(DEV_IS_FULL):
        lines.append(_dev_note(n, result, recipe.data))
    if reasons := result["quarantined"]:
        lines.append(f"Set aside: {', '.join(f'{n} {reason}' for reason, n in reasons.items())}")
    return lines


def _dev_note(n_left_out: int, result: Mapping[str, Any], data: Data) -> str:
    """Return how many dev rows are not used; by a hash of fewer rows, they could have been train data."""
    note = f"{n_left_out} dev utterances are not used, since data.max_dev_hours = {data.max_dev_hours:g}"
    if result["marked"]["dev"]:
        return note
    kept_share = result["utterances"]["dev"] / (result["utterances"]["dev"] + n_left_out)
    return f"{note}: with data.dev_share = {data.dev_share * kept_share:.2g} most of them become train data"


def table(result: Mapping[str, Any]) -> Table:
    """Return a table of the splits, with the rows marked in the data and the rows assigned by a hash."""
    shown = Table("split", title="Prepared", title_justify="left")
    for column in ("utterances", "minutes", "speakers", "marked in the data", "by hash"):
        shown.add_column(column, justify="right")
    for split in SPLITS:
        n, marked = result["utterances"][split], result["marked"][split]
        minutes, speakers = f"{result['minutes'][split]:.1f}", result["speakers"][split] or "-"
        shown.add_row(split, *map(str, (n, minutes, speakers, marked, n - marked)))
    return shown


def _needed(recipe: Recipe) -> list[Split]:
    return ["train", "dev", *(["test"] if recipe.evaluate.split == "test" else [])]


def _share(split: Split, data: Data) -> float:
    shares: dict[Split, float] = {"dev": data.dev_share, "test": data.test_share}
    return shares.get(split, 1.0)


def _amount(result: Mapping[str, Any]) -> str:
    n_speakers = sum(result["speakers"].values())
    return f"{sum(result['utterances'].values())} utterances" + (f" of {n_speakers} speakers" if n_speakers else "")


def _remedy(split: Split, result: Mapping[str, Any], data: Data) -> str:
    """Return the user's options for an empty split."""
    ways: list[str] = []
    if n := result["quarantined"].get(NO_REFERENCE[split]):
        ways.append(f"give a text to the {n} rows of it that have none")
    if split == "dev" and DEV_IS_FULL in result["quarantined"]:
        ways.append(f"raise data.max_dev_hours = {data.max_dev_hours:g}")
    if any(result["speakers"].values()) and data.split_by == "speaker":
        ways.append("--set data.split_by=text splits by text instead of speaker")
    ways.append(f"mark rows split: {split} in the data")
    if split != "train":
        ways.append(f"raise data.{split}_share = {_share(split, data):g}")
    if split == "test":
        ways.append("--set evaluate.split=dev")
    return " or ".join([", ".join(ways[:-1]), ways[-1]]) if len(ways) > 1 else ways[0]
