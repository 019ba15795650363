"""Reader of WebDataset tars: members whose names are equal up to the first dot form a sample."""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from typing import Any, BinaryIO, cast

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.manifest import json_object
from askd_ray.data.sources.record import SourceRecord, names_of
from askd_ray.data.sources.row import MAX_BYTES
from askd_ray.errors import AskdError

_AUDIO = {"wav", "flac", "ogg", "opus", "mp3", "m4a", "mp4", "aac", "webm", "wma", "aiff", "aif", "amr"}
_TEXT = "txt"
_MAX_NAMED = 3


@dataclass(frozen=True)
class _Member:
    """A file in a tar. ``data`` is None for a link or a file that is too large."""

    name: str
    extension: str
    data: bytes | None


def read_webdataset(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the samples of a tar in order; nothing is unpacked to disk, and one sample at a time is in memory.

    Raises :class:`AskdError` for a damaged tar.
    """
    key: str | None = None
    members: list[_Member] = []
    with file.location.explain("is damaged or no tar file", tarfile.TarError, EOFError, zlib.error, LZMAError):
        with tarfile.open(fileobj=cast(BinaryIO, file.location.stream()), mode="r|*") as tar:
            for info in tar:
                folder, slash, name = info.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if info.isdir() or not stem:
                    continue
                if key not in (None, folder + slash + stem):
                    yield from _records(source, file, key, members)
                    members = []
                key = folder + slash + stem
                members.append(_Member(info.name, extension.lower(), _data(tar, info)))
        if key is not None:
            yield from _records(source, file, key, members)


def _data(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes | None:
    is_read = info.name.rpartition(".")[2].lower() in _AUDIO | {_TEXT, "json"}
    handle = tar.extractfile(info) if is_read and info.isreg() and info.size <= MAX_BYTES else None
    return None if handle is None else handle.read()


def _records(source: Source, file: SourceFile, key: str, members: list[_Member]) -> Iterator[SourceRecord]:
    """Yield a sample's row; if several samples share the key, yield one row with a problem for each of them."""
    by_kind = [[m for m in members if m.extension.rpartition(".")[2] in ends] for ends in (_AUDIO, {_TEXT}, {"json"})]
    n_samples = max(map(len, by_kind))
    if n_samples > 1:
        clashing = max(by_kind, key=len)
        names = ", ".join(member.name for member in clashing[:_MAX_NAMED])
        problem = f"several samples under one key: {names}: the key of a sample is its name up to the first dot"
        for number, member in enumerate(clashing):
            where = f"{file.location}:{member.name}"
            yield SourceRecord({}, where, b"", member.name, f"{file.label}/{member.name}#{number}", problem)
        return
    audio, text, metadata = (members_of_kind[0] if members_of_kind else None for members_of_kind in by_kind)
    where = f"{file.location}:{key}"
    values: dict[str, Any] = {}
    problem = "" if audio else f"no audio: the sample is {', '.join(m.name for m in members[:_MAX_NAMED])}"
    if metadata is not None and metadata.data is not None:
        try:
            values = json_object(metadata.data, metadata.name)
        except AskdError as error:
            problem = f"unreadable json: {error}"
    if text is not None and text.data is not None:
        values |= dict.fromkeys(names_of(source, "text"), text.data.removeprefix(b"\xef\xbb\xbf"))
    path, data = (audio.name, audio.data) if audio else ("", b"")
    if data is None:
        problem = f"unreadable audio: {path} is a link, or over {MAX_BYTES >> 20} MiB"
    yield SourceRecord(values, where, data or b"", path, f"{file.label}/{key}", problem)
