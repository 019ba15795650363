"""Reader of LibriSpeech's layout: SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt holds lines of an ID and its text."""

from collections.abc import Iterator

from askd_ray.config.source import Source
from askd_ray.data.sources.files import SourceFile
from askd_ray.data.sources.manifest import open_text
from askd_ray.data.sources.record import SourceRecord


def read_librispeech(source: Source, file: SourceFile, needs_text: bool) -> Iterator[SourceRecord]:
    """Yield the rows of a .trans.txt file; the audio files ID.flac are in the same folder."""
    with open_text(file.location) as lines:
        for number, line in enumerate(lines, start=1):
            name, _, text = line.strip().partition(" ")
            if name:
                values = {"text": text, "speaker": name.partition("-")[0]}
                yield SourceRecord(values, f"{file.location}:{number}", f"{name}.flac")
