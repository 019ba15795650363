"""The pages of an Ogg file (RFC 3533)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class OggPage:
    """A page: its bytes, the serial number of its stream, its number in the stream, and whether it is first or last."""

    start: int
    end: int
    serial: bytes
    number: int
    is_first: bool
    is_last: bool


def ogg_pages(audio: bytes) -> Iterator[OggPage]:
    """Yield the pages; bytes between pages are skipped. The last page may end after the end of the file."""
    pos = 0
    while pos >= 0:
        n_segments, flags = (
            audio[pos + 26] if pos + 26 < len(audio) else 0,
            audio[pos + 5] if pos + 5 < len(audio) else 0,
        )
        end = pos + 27 + n_segments + sum(audio[pos + 27 : pos + 27 + n_segments])
        number = int.from_bytes(audio[pos + 18 : pos + 22], "little")
        yield OggPage(pos, end, audio[pos + 14 : pos + 18], number, flags & 2 > 0, flags & 4 > 0)
        pos = end if audio[end : end + 4] == b"OggS" else audio.find(b"OggS", pos + 4)
