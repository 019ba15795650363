"""Which split a row goes to: the one that its source says, and one that a hash decides where it says none."""

import re
from dataclasses import dataclass
from typing import cast

from askd_ray.config.data import Data
from askd_ray.data.schema import Split
from askd_ray.files import hash_fraction

_PUNCTUATION = re.compile(r"[^\w']+")  # "Goodbye." and "goodbye" are the same prompt: one split


@dataclass(frozen=True)
class SplitAssignment:
    """Where a row goes, and whether it is ``marked`` so by its source; otherwise a hash decided.

    ``spare``: its source says train, and the hash would have it in ``split``. That holds only if no row at all is
    marked with that split; otherwise it is train data. Only the end of the data tells.
    """

    split: Split
    marked: bool = False
    spare: bool = False


def assign_split(mark: str, speaker: str, text: str, data: Data) -> SplitAssignment:
    """Return where a row goes whose source says ``mark``: "train", "dev", "test", or "" where it says nothing."""
    hashed = hash_split(speaker, text, data)
    if mark == "train" and hashed != "train":
        return SplitAssignment(hashed, spare=True)
    return SplitAssignment(cast(Split, mark), marked=True) if mark else SplitAssignment(hashed)


def hash_split(speaker: str, text: str, data: Data) -> Split:
    """Return the split that a hash gives: of the speaker, or of the text where ``data.split_by`` says so or no speaker
    is named. An utterance with nothing that a hash could decide on is train data.

    Stable across runs, machines and sources: a speaker is in one split only, and so are the same words.
    """
    if not split_key(speaker, text, data):
        return "train"
    fraction = hash_fraction(split_key(speaker, text, data))
    if fraction < data.test_share:
        return "test"
    return "dev" if fraction < data.test_share + data.dev_share else "train"


def split_key(speaker: str, text: str, data: Data) -> str:
    """Return what the hash is one of: alike for what must stay together, whatever its case and white space.

    The first letter keeps a speaker apart from the text of the same letters.
    """
    if speaker and data.split_by == "speaker":
        return f"s{normalize_speaker(speaker)}"
    words = " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())
    return f"t{words}" if text else ""


def normalize_speaker(speaker: str) -> str:
    """Return what two spellings of one speaker have in common: "Alice " is "alice"."""
    return " ".join(speaker.casefold().split())
