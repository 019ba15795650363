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
    at = 0
    while at >= 0:
        n_segments, flags = audio[at + 26] if at + 26 < len(audio) else 0, audio[at + 5] if at + 5 < len(audio) else 0
        end = at + 27 + n_segments + sum(audio[at + 27 : at + 27 + n_segments])
        number = int.from_bytes(audio[at + 18 : at + 22], "little")
        yield OggPage(at, end, audio[at + 14 : at + 18], number, flags & 2 > 0, flags & 4 > 0)
        at = end if audio[end : end + 4] == b"OggS" else audio.find(b"OggS", at + 4)
