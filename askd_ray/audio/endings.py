"""Check from the structure of a file whether its end is missing, and whether another file follows.

Only bytes are read: no sound is decoded, and durations in headers are ignored. Placeholder sizes, which encoders write
to a pipe, count as unknown.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from askd_ray.audio.ogg import ogg_pages

_UNKNOWN_BYTES = 0x7F00_0000  # placeholder sizes of encoders that write to a pipe (sox, FFmpeg, ...) are larger, or 0
_SLACK_S = 0.05  # this much less sound than declared is no truncation: some encoders count their own header
_MAX_JOINED_FILES = 1_000  # the search for joined files stops here
_EBML, _SEGMENT, _CLUSTER = 0x1A45_DFA3, 0x1853_8067, 0x1F43_B675
_HEADER_BYTES = {b"caff": 12, b"riff": 16, b".snd": 8, b"TTA1": 10, b"NIST": 16}  # length of the fixed file header
_MP4_BOXES = frozenset(
    {
        b"ftyp",
        b"moov",
        b"mdat",
        b"moof",
        b"mfra",
        b"free",
        b"skip",
        b"wide",
        b"styp",
        b"sidx",
        b"uuid",
        b"meta",
        b"udta",
        b"emsg",
        b"prft",
        b"pdin",
    }
)


@dataclass(frozen=True)
class RiffChunk:
    """A chunk of RIFF, AIFF, CAF or W64: its content from ``start`` to ``end``, as its own size field declares."""

    name: bytes
    start: int
    end: int


@dataclass(frozen=True)
class _ChunkKind:
    """The chunk layout of a format: the type of the size field, the length of the name, and the alignment."""

    size: str
    name_bytes: int = 4
    align: int = 2
    counts_itself: bool = False


_RIFF, _RIFX, _CAF, _W64 = _ChunkKind("<I"), _ChunkKind(">I"), _ChunkKind(">q", align=1), _ChunkKind("<Q", 16, 8, True)


def missing_end(audio: bytes) -> str | None:
    """Return the reason why the end of a file is missing, or None if no sign of that is found."""
    head = audio[:12]
    for signature, check_end in _END_CHECKS:
        if head[signature.offset :].startswith(signature.magic):
            return check_end(audio)
    return _cut_mp3(audio)


def split_joined(audio: bytes) -> list[bytes]:
    """Split joined files, of which decoders would read only the first or mix up the timestamps."""
    if audio[:4] in (b"RIFF", b"FORM"):
        begins = _riff_begins(audio)
    elif audio[4:8] == b"ftyp":
        begins = [start for name, start, _ in _mp4_boxes(audio) if name == b"ftyp"]
    elif audio[:4] == b"OggS":
        pages = list(ogg_pages(audio))
        begins = [0] + [page.start for before, page in pairwise(pages) if page.is_first and not before.is_first]
    elif audio[:4] == b"fLaC":
        begins = [match.start() for match in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", audio)] or [0]
    elif (n := _HEADER_BYTES.get(audio[:4])) is not None:
        begins = [match.start() for match in re.finditer(re.escape(audio[:n]), audio)]
    else:
        begins = [0]
    return [audio[start:end] for start, end in zip(begins, [*begins[1:], len(audio)], strict=True)]


def _riff_begins(audio: bytes) -> list[int]:
    order: Literal["little", "big"] = "little" if audio[:4] == b"RIFF" else "big"
    begins = [0]
    while len(begins) < _MAX_JOINED_FILES:
        size = int.from_bytes(audio[begins[-1] + 4 : begins[-1] + 8], order)
        end = begins[-1] + 8 + size
        following = next((pos for pos in (end, end + size % 2) if audio[pos : pos + 4] == audio[:4]), None)
        if following is None or not size:
            break
        begins.append(following)
    return begins


def wav_chunks(audio: bytes) -> list[RiffChunk]:
    """Return the chunks of a RIFF file, as far as they can be followed."""
    return list(_chunks(audio, 12, _RIFF))


def _chunks(audio: bytes, pos: int, kind: _ChunkKind) -> Iterator[RiffChunk]:
    """Yield the chunks from the offset ``pos`` on; a name that is not printable ends them."""
    size_bytes = struct.calcsize(kind.size)
    while pos + kind.name_bytes + size_bytes <= len(audio):
        name, start = audio[pos : pos + kind.name_bytes], pos + kind.name_bytes + size_bytes
        size = int(struct.unpack_from(kind.size, audio, pos + kind.name_bytes)[0])
        end = pos + size if kind.counts_itself else start + size
        if end < start or not all(32 <= byte < 127 for byte in name[:4]):
            return
        yield RiffChunk(name, start, end)
        pos = end + -end % kind.align


def _too_short(name: str, declared: int, actual: int, slack: float = 0.0) -> str | None:
    if declared - actual <= slack or declared >= _UNKNOWN_BYTES > actual:
        return None
    return f"{name} declares {declared} bytes, and {actual} are there"


def _cut_riff(audio: bytes) -> str | None:
    if audio[8:12] != b"WAVE":  # AVI
        return _too_short("the RIFF header", struct.unpack_from("<I", audio.ljust(8, b"\0"), 4)[0], len(audio) - 8, 1)
    kind = _RIFX if audio[:4] == b"RIFX" else _RIFF
    bytes_per_s, size_64 = 0, 0
    for chunk in _chunks(audio, 12, kind):
        actual = len(audio) - chunk.start
        if chunk.name == b"fmt " and actual >= 12:
            bytes_per_s = struct.unpack_from(kind.size, audio, chunk.start + 8)[0]
        if chunk.name == b"ds64" and actual >= 16:
            size_64 = struct.unpack_from("<Q", audio, chunk.start + 8)[0]
        if chunk.name == b"data":
            declared = chunk.end - chunk.start
            declared = size_64 if declared == 0xFFFF_FFFF and size_64 else declared
            slack = _SLACK_S * bytes_per_s
            return _too_short("the data chunk", declared, actual, slack) or _after_data(audio, chunk, kind, slack)
    return None


def _after_data(audio: bytes, data: RiffChunk, kind: _ChunkKind, slack: float) -> str | None:
    """Report bytes after the data chunk that are in no chunk: sound of a recorder that never updated its header."""
    if data.end == data.start:  # size 0 of a stream: the data reach to the end of the file
        return None
    end = data.end + data.end % 2
    for chunk in _chunks(audio, end, kind):
        end = chunk.end + chunk.end % 2
    n_bytes = len(audio[end:].strip(b"\0"))
    if n_bytes <= max(slack, 128):
        return None
    return f"the data chunk declares {data.end - data.start} bytes, and {n_bytes} bytes behind it are in no chunk"


def _cut_aiff(audio: bytes) -> str | None:
    for chunk in _chunks(audio, 12, _RIFX):
        if chunk.name == b"SSND":
            return _too_short("the chunk of samples", chunk.end - chunk.start, len(audio) - chunk.start, 16)
    return None


def _cut_caf(audio: bytes) -> str | None:
    for chunk in _chunks(audio, 8, _CAF):  # the data chunk of a stream has size -1, which ends the loop
        if chunk.name == b"data":
            return _too_short("the data chunk", chunk.end - chunk.start, len(audio) - chunk.start)
    return None


def _cut_w64(audio: bytes) -> str | None:
    for chunk in _chunks(audio, 40, _W64):
        if chunk.name[:4] == b"data":
            return _too_short("the data chunk", chunk.end - chunk.start, len(audio) - chunk.start)
    return None


def _cut_au(audio: bytes) -> str | None:
    if len(audio) < 12:
        return None
    start, size = struct.unpack_from(">II", audio, 4)
    return _too_short("the header", size, len(audio) - start)


def _cut_nist(audio: bytes) -> str | None:
    fields = dict(re.findall(rb"\n(\w+) -i (\d+)", audio[:1024]))
    n_bytes = 1
    for name in (b"sample_count", b"channel_count", b"sample_n_bytes"):
        n_bytes *= int(fields.get(name, b"0"))
    return _too_short("the header", n_bytes, len(audio) - 1024)


def _cut_ogg(audio: bytes) -> str | None:
    """Check that each Ogg stream that begins has a last page."""
    running = set[bytes]()
    for page in ogg_pages(audio):
        if page.end > len(audio):
            return "its last Ogg page is cut"
        if page.is_first:
            running.add(page.serial)
        if page.is_last:
            running.discard(page.serial)
    return "no Ogg page ends its stream" if running else None


def _cut_matroska(audio: bytes) -> str | None:
    """Follow the elements; segments and clusters of unknown size, as in live streams, are entered."""
    pos = 0
    while pos < len(audio):
        name, pos = _vint(audio, pos, keep_marker=True)
        size, start = _vint(audio, pos, keep_marker=False)
        if name is None or size is None:
            return None
        if size == -1:
            if name not in (_EBML, _SEGMENT, _CLUSTER):
                return None
            pos = start
            continue
        if start + size > len(audio):
            element = {_SEGMENT: "the Matroska segment", _CLUSTER: "a Matroska cluster"}.get(name, "a Matroska element")
            return _too_short(element, size, len(audio) - start)
        pos = start + size
    return None


def _vint(audio: bytes, pos: int, keep_marker: bool) -> tuple[int | None, int]:
    """Return an EBML variable-length integer (None: not valid, -1: unknown size) and the offset after it."""
    n = 9 - audio[pos].bit_length() if pos < len(audio) else 9
    if n > (4 if keep_marker else 8) or pos + n > len(audio):
        return None, pos
    value = int.from_bytes(audio[pos : pos + n], "big")
    if not keep_marker:
        value &= (1 << 7 * n) - 1
        if value == (1 << 7 * n) - 1:
            value = -1
    return value, pos + n


def _cut_mp4(audio: bytes) -> str | None:
    for name, start, end in _mp4_boxes(audio):
        if end > len(audio) and name in (b"mdat", b"moov", b"moof"):
            return _too_short(f"the box {name.decode()!r}", end - start, len(audio) - start)
    return None


def _mp4_boxes(audio: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each box of a file, up to the first bytes that are no known box."""
    pos = 0
    while pos + 8 <= len(audio) and (name := audio[pos + 4 : pos + 8]) in _MP4_BOXES:
        size = int.from_bytes(audio[pos : pos + 4], "big")
        if size == 1:
            size = int.from_bytes(audio[pos + 8 : pos + 16], "big")
        if 0 < size < 8:
            return
        end = pos + size if size else len(audio)
        yield name, pos, end
        pos = end


def _cut_mp3(audio: bytes) -> str | None:
    """Compare the size in a Xing, Info or VBRI header with the size of the file."""
    pos = 0
    if audio[:3] == b"ID3" and len(audio) > 10:
        pos = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(audio[6:10], (21, 14, 7, 0), strict=True))
    first = audio[pos : pos + 64]
    if len(first) < 64 or first[0] != 0xFF or first[1] & 0xE0 != 0xE0:
        return None
    n_frames, n_bytes = 0, 0
    if first[36:40] == b"VBRI":
        n_bytes, n_frames = struct.unpack_from(">II", first, 46)
    elif (header := max(first.find(b"Xing"), first.find(b"Info"))) > 0 and audio[pos + header + 7] & 3 == 3:
        n_frames, n_bytes = struct.unpack_from(">II", audio.ljust(pos + header + 16, b"\0"), pos + header + 8)
    slack = 2 * n_bytes / n_frames if n_frames else 0  # some encoders do not count the header's own frame
    return _too_short("the MP3 header", n_bytes, len(audio) - pos, slack)


@dataclass(frozen=True)
class _Signature:
    magic: bytes
    offset: int = 0


_END_CHECKS: tuple[tuple[_Signature, Callable[[bytes], str | None]], ...] = (
    (_Signature(b"RIFF"), _cut_riff),
    (_Signature(b"RIFX"), _cut_riff),
    (_Signature(b"RF64"), _cut_riff),
    (_Signature(b"riff"), _cut_w64),
    (_Signature(b"FORM"), _cut_aiff),
    (_Signature(b"caff"), _cut_caf),
    (_Signature(b".snd"), _cut_au),
    (_Signature(b"NIST_1A\n"), _cut_nist),
    (_Signature(b"OggS"), _cut_ogg),
    (_Signature(b"\x1a\x45\xdf\xa3"), _cut_matroska),
    (_Signature(b"ftyp", 4), _cut_mp4),
)
