"""Read the split of a row from a column, a file name or a folder name."""

import re
from typing import Literal

from askd_ray.config.source import Source
from askd_ray.data.schema import Split

_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "eval": "dev",
    "test": "test",
    "testing": "test",
}
_SUFFIXES = re.compile(r"(\.(parquet|parq|pq|tar|tgz|txz|tbz2?|gz|xz|bz2|jsonl?|tsv|csv))+$", re.IGNORECASE)
_SHARD_NUMBER = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$", re.IGNORECASE)  # train-00000-of-00004, train_12
_WORDS = re.compile(r"[^a-z0-9]+")
_FOLDER = re.compile(r"([a-z]+)([-_.](clean|other))?([-_.]?\d+)?", re.IGNORECASE)  # dev, test-clean, train-clean-100


def known_split(name: str) -> Split | None:
    """Return the split that a name means (``validation``, ``train-clean-100``), or None if it names none or several."""
    splits = _splits_in(name)
    return splits.pop() if len(splits) == 1 else None


def split_in_path(folders: list[str], file_name: str) -> str:
    """Return the file name or else the innermost folder name that names a split, or ""."""
    stem = _SHARD_NUMBER.sub("", _SUFFIXES.sub("", file_name))
    return next((name for name in (stem, *reversed(folders)) if _splits_in(name)), "")


def split_of_folder(name: str) -> str:
    """Return the name of a folder if it names a split and nothing else, or ""."""
    match = _FOLDER.fullmatch(name)
    return name if match and match.group(1).lower() in _SPLITS else ""


def is_selected(source: Source, name: str) -> bool:
    """Whether a source's ``split`` selects rows of the split ``name``."""
    if source.split is None or name == source.split:
        return True
    selected = _SPLITS.get(source.split.lower())
    return selected is not None and selected == source.splits.get(name, known_split(name))


def split_to_keep(source: Source, name: str) -> Split | Literal[""]:
    """Return the split of rows marked with ``name``, or "" if the recipe's hash decides.

    Raises :class:`ValueError` for an unknown name, unless the source selects its rows by that name.
    """
    if name in source.splits:
        chosen = source.splits[name]
        return "" if chosen == "hash" else chosen
    split = known_split(name)
    if split is None and name not in ("", source.split):
        raise ValueError(
            f"{name!r} is none of train, dev (or validation, valid, val, eval) and test: in the source, splits: "
            f"{{{name}: test}} says what it means (train, dev, test, or hash), and split: {name} reads only such rows"
        )
    return split or ""


def _splits_in(name: str) -> set[Split]:
    return {_SPLITS[word] for word in _WORDS.split(name.lower()) if word in _SPLITS}
