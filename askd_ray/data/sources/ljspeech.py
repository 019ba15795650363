"""Reader of LJSpeech's layout: metadata.csv holds ID|TEXT|NORMALISED TEXT, and the audio files are wavs/ID.wav."""

from collections.abc import Iterator

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.manifest import open_text
from askd_ray.data.sources.record import SourceRecord
from askd_ray.errors import AskdError

_COLUMNS: tuple[str, ...] = ("id", "text", "normalized_text")


def read_ljspeech(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the rows of a metadata.csv, which has no header and no quoting.

    Raises :class:`AskdError` for malformed lines.
    """
    with open_text(file.location) as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip("\r\n").split("|")
            where = f"{file.location}:{number}"
            if not line.strip():
                continue
            if len(cells) not in (2, 3) or not cells[0]:
                raise AskdError(f"{where}: {len(cells)} cells, and ID|TEXT or ID|TEXT|NORMALISED TEXT is needed")
            values = dict(zip(_COLUMNS, cells, strict=False))
            name = values.pop("id")  # unique in one corpus only; the row's id also names the source
            yield SourceRecord(values, where, f"wavs/{name}.wav")
