"""Find the files of a source, and read split and column values from their paths."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from urllib.parse import unquote

import bracex
from wcmatch import glob

from askd_ray.config.source import Source, SourceKind
from askd_ray.data.sources.splits import split_in_path, split_of_folder
from askd_ray.errors import AskdError
from askd_ray.fetch.speech import speech_folder
from askd_ray.location import Location

_WILD = re.compile(r"[*?\[{]")
_HIVE = re.compile(r"([A-Za-z_]\w*)=(.+)")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# Files that may hold rows: if a source skipped them silently, it would have fewer rows than the user expects.
_HOLDS_ROWS = re.compile(
    r".*\.(zip|7z|rar|tar(\.\w+)?|t[gx]z|tbz2?|zst|parquet(\.\w+)?|parq|pq|arrow|feather|orc|tfrecord)"
)


@dataclass(frozen=True)
class _FileNames:
    """File names of a source kind: which files of a folder are read, which a path may name, and both in words."""

    in_folder: re.Pattern[str]
    allowed: re.Pattern[str]
    words: str


_TABLE = re.compile(r".*\.(jsonl|json|tsv|csv)(\.gz)?")
_PARQUET = re.compile(r".*\.(parquet|parq|pq)")
_TAR = re.compile(r".*\.(tar(\.(gz|xz|bz2))?|tgz|txz|tbz2?)")

_FILE_NAMES: dict[SourceKind, _FileNames] = {
    "manifest": _FileNames(
        re.compile(r"manifest\.(jsonl|json|tsv|csv)(\.gz)?"), _TABLE, ".jsonl, .json, .tsv or .csv (also with .gz)"
    ),
    "parquet": _FileNames(_PARQUET, _PARQUET, ".parquet, .parq or .pq"),
    "webdataset": _FileNames(_TAR, _TAR, ".tar, .tar.gz, .tgz, .tar.xz, .txz, .tar.bz2 or .tbz2"),
    "nemo": _FileNames(
        re.compile(r".*\.jsonl?(\.gz)?"), re.compile(r".*\.jsonl?(\.gz)?"), ".json or .jsonl (also with .gz)"
    ),
    "lhotse": _FileNames(
        re.compile(r".*cuts.*\.jsonl(\.gz)?"), re.compile(r".*\.jsonl(\.gz)?"), "cuts .jsonl or .jsonl.gz"
    ),
    "common_voice": _FileNames(
        re.compile(r"(train|dev|test)\.tsv"), re.compile(r".*\.tsv"), "train.tsv, dev.tsv or test.tsv (or another .tsv)"
    ),
    "audiofolder": _FileNames(
        re.compile(r"metadata\.(csv|jsonl)"), re.compile(r".*\.(csv|jsonl)"), "metadata.csv or metadata.jsonl"
    ),
    "ljspeech": _FileNames(re.compile(r"metadata\.csv"), re.compile(r".*\.(csv|txt)"), "metadata.csv"),
    "librispeech": _FileNames(re.compile(r".*\.trans\.txt"), re.compile(r".*\.trans\.txt"), ".trans.txt"),
    "kaldi": _FileNames(re.compile(r"wav\.scp"), re.compile(r"wav\.scp"), "wav.scp"),
}


@dataclass(frozen=True)
class SourceFile:
    """A file of a source.

    ``label`` is its name in the recipe, which default ids start with. ``split`` is the split's name in the path, and
    ``values`` come from folders like ``language=de``. ``row_groups`` are those of a Parquet file to read; (): all.
    """

    location: Location
    label: str
    split: str = ""
    values: dict[str, str] = field(default_factory=dict[str, str])
    row_groups: tuple[int, ...] = ()

    def resolve(self, path: str) -> Location:
        """Return the location of a path in a row: relative to the file's folder, absolute, or a URI."""
        return Location.of(path) if "://" in path else self._folder / path

    def label_of(self, path: str) -> str:
        """Return the label of a path in a row, which the row's default id starts with."""
        return path if "://" in path else join_label(self._folder_label, path)

    @cached_property
    def _folder(self) -> Location:
        return self.location.parent

    @cached_property
    def _folder_label(self) -> str:
        return self.label.removesuffix(self.location.name)


def source_files(source: Source) -> list[SourceFile]:
    """Return the files of a source in their order.

    Raises :class:`AskdError`: no such files, a file name that the kind does not read, or a folder that also has files
    with rows that the kind does not read.
    """
    root, pattern = _root(source)
    name = _root_label(source, root, pattern)
    if pattern:
        files = _matching(source, root, pattern)
    elif root.is_file():
        files = [root]
    else:
        return [_source_file(source, root, name, file) for file in _in_folder(source, root)]
    for file in files:
        _check_name(source, file)
    return [_source_file(source, root, name, file) for file in files]


def stamped(folder: Location, recursive: bool = False) -> dict[Location, tuple[int, int]]:
    """Return the files of a folder with their sizes and times, as :meth:`Location.stamped` does.

    Raises :class:`AskdError` for a file name that is not UTF-8, since Arrow and manifests cannot hold it.
    """
    try:
        return folder.stamped(recursive)
    except UnicodeEncodeError as error:
        raise AskdError(f"{folder}: the name of a file in it is not UTF-8: {error.object!a}: rename it") from None


def join_label(name: str, path: str) -> str:
    """Join a label, which may be a URI, and a path below it."""
    scheme, slashes, plain = name.rpartition("://")
    return scheme + slashes + str(PurePath(plain) / path)


def _root(source: Source) -> tuple[Location, str]:
    """Return the file or folder of the source's path, and the pattern of files below it ("" for none)."""
    if source.path.startswith("cache:"):
        return Location.of(speech_folder(source.path.removeprefix("cache:"))), ""
    path, pattern = source.path, ""
    scheme, is_uri, plain = path.rpartition("://")
    plain, question_mark, options = plain.partition("?") if is_uri else (plain, "", "")
    if _WILD.search(plain) and (is_uri or not Location.of(path).exists()):
        parts = plain.split("/")
        first = next(i for i, part in enumerate(parts) if _WILD.search(part))
        pattern = "/".join(parts[first:])
        folder = "/".join(parts[:first]) or ("/" if plain.startswith("/") else ".")
        path = scheme + is_uri + folder + question_mark + options
    root = Location.of(path)
    if not root.exists():
        raise AskdError(f"source {root} does not exist")
    return root, pattern


def _root_label(source: Source, root: Location, pattern: str) -> str:
    if root.root:
        return str(root)
    return source.path.removeprefix("cache:").removesuffix(pattern) or "."


def _matching(source: Source, root: Location, pattern: str) -> list[Location]:
    """Return the files that match a pattern; each name from its braces must match a file."""
    files = list(stamped(root, recursive="/" in pattern or "**" in pattern))
    all_matches: dict[Location, None] = {}
    for expanded in bracex.iexpand(pattern):
        matches = [f for f in files if glob.globmatch(_path_below(root, f), expanded, flags=glob.GLOBSTAR)]
        if not matches:
            raise AskdError(f"source {root}: no file in it matches {expanded}")
        all_matches |= dict.fromkeys(matches)
    return list(all_matches)


def _in_folder(source: Source, root: Location) -> list[Location]:
    names = _FILE_NAMES[source.kind]
    files = list(stamped(root, recursive=source.kind != "manifest"))
    read = [file for file in files if names.in_folder.fullmatch(file.name.lower())]
    if source.kind == "manifest" and len(read) != 1:
        raise AskdError(
            f"source {root}: {len(read)} manifests in it, and exactly one manifest is needed: {names.words}"
        )
    if not read:
        raise AskdError(f"source {root}: no {names.words} file in it, as kind: {source.kind} needs")
    if source.kind in ("parquet", "webdataset"):
        others = [
            f for f in files if f not in read and _HOLDS_ROWS.fullmatch(f.name.lower()) and not _is_hidden(f.name)
        ]
        if others:
            raise AskdError(
                f"source {root}: kind: {source.kind} does not read {others[0].name} and {len(others) - 1} more files: "
                f"move them elsewhere, or name the files to read by a pattern, as in path: FOLDER/*{read[0].suffix}"
            )
    return [file for file in read if not _is_hidden(file.name)]


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _check_name(source: Source, file: Location) -> None:
    names = _FILE_NAMES[source.kind]
    if not names.allowed.fullmatch(file.name.lower()):
        raise AskdError(f"source {file}: kind: {source.kind} reads {names.words} files, or a folder with such files")


def _source_file(source: Source, root: Location, name: str, file: Location) -> SourceFile:
    path = _path_below(root, file)
    *folders, file_name = PurePath(path or file.name).parts
    split = ""
    if source.kind != "manifest":
        split = split_in_path(folders, file_name) or split_of_folder(root.name if path else root.parent.name)
    return SourceFile(file, join_label(name, path), split, dict(_hive_values(file.path)))


def _hive_values(path: str) -> Iterator[tuple[str, str]]:
    for folder in path.split("/")[:-1]:
        match = _HIVE.fullmatch(folder)
        if match and match.group(2) != _HIVE_NULL:
            yield match.group(1), unquote(match.group(2))


def _path_below(root: Location, file: Location) -> str:
    """Return the path of a file relative to the root ("" for the root itself)."""
    return file.path.removeprefix(root.path).lstrip("/")
