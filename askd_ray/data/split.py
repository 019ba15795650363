"""Assign rows to splits: the split that the source names, or else one by a hash."""

import re
from dataclasses import dataclass
from typing import cast

from askd_ray.config.data import Data
from askd_ray.data.schema import Split
from askd_ray.files import hash_fraction

_PUNCTUATION = re.compile(r"[^\w']+")  # "Goodbye." and "goodbye" are the same text: one split


@dataclass(frozen=True)
class SplitAssignment:
    """The split of a row. ``marked``: its source names this split; otherwise a hash decided.

    ``spare``: its source says train, but the hash says ``split``. The row goes to ``split`` if no row of the data is
    marked with that split, and to train otherwise. This is known only at the end of the data.
    """

    split: Split
    marked: bool = False
    spare: bool = False


def assign_split(mark: str, speaker: str, text: str, data: Data) -> SplitAssignment:
    """Return the split of a row; ``mark`` is the split in its source: "train", "dev", "test", or "" for none."""
    hashed = hash_split(speaker, text, data)
    if mark == "train" and hashed != "train":
        return SplitAssignment(hashed, spare=True)
    return SplitAssignment(cast(Split, mark), marked=True) if mark else SplitAssignment(hashed)


def hash_split(speaker: str, text: str, data: Data) -> Split:
    """Return the split by a hash of the speaker, or of the text if ``data.split_by`` is ``text`` or no speaker is
    named. An utterance with neither is train data.

    Stable across runs, machines and sources: a speaker is in one split only, and so is a text.
    """
    if not split_key(speaker, text, data):
        return "train"
    fraction = hash_fraction(split_key(speaker, text, data))
    if fraction < data.test_share:
        return "test"
    return "dev" if fraction < data.test_share + data.dev_share else "train"


def split_key(speaker: str, text: str, data: Data) -> str:
    """Return the string to hash, the same for all rows that must share a split; case and white space do not matter.

    The first letter separates a speaker from a text of the same letters.
    """
    if speaker and data.split_by == "speaker":
        return f"s{normalize_speaker(speaker)}"
    words = " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())
    return f"t{words}" if text else ""


def normalize_speaker(speaker: str) -> str:
    """Return a speaker's name in lower case with single spaces: "Alice " is "alice"."""
    return " ".join(speaker.casefold().split())


def dev_fraction(utterance_id: str) -> float:
    """Return a number in [0, 1) from an id: dev beyond its limit keeps the utterances below the share that is allowed.

    So every utterance has the same chance, and a smaller limit keeps a part of what a larger one keeps.
    """
    return hash_fraction(f"dev {utterance_id}")
