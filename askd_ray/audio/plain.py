"""Read plain WAV, FLAC and Ogg with libsndfile: exactly, and faster than with FFmpeg."""

import io

import numpy as np
import soundfile

from askd_ray.audio.endings import wav_chunks
from askd_ray.audio.ogg import ogg_pages
from askd_ray.audio.waveform import WaveformBuilder

_BLOCK_SAMPLES = 1 << 20  # of all channels, in memory at a time
_WAV_KINDS = frozenset({1, 3, 6, 7, 0xFFFE})  # PCM, float, A-law, mu-law, and the extensible format
_FLAC_TAIL_BYTES = 1 << 16  # the last frame begins in these bytes


def read_plain(audio: bytes, max_s: float | None, begin_s: float = 0.0) -> WaveformBuilder | None:
    """Return the sound of a complete WAV, FLAC or Ogg file whose headers are correct; None for any other file.

    Raises :class:`~askd_ray.audio.waveform.AudioError` as the builder does.
    """
    is_plain = {b"RIFF": _is_plain_wav, b"fLaC": _is_plain_flac, b"OggS": _is_plain_ogg}.get(audio[:4])
    return _read_exactly(audio, max_s, begin_s) if is_plain is not None and is_plain(audio) else None


def _read_exactly(audio: bytes, max_s: float | None, begin_s: float) -> WaveformBuilder | None:
    """Return what libsndfile reads if its length is the declared one, else None."""
    builder = WaveformBuilder(max_s, begin_s)
    try:
        with soundfile.SoundFile(io.BytesIO(audio)) as file:
            n_remaining, rate_hz = file.frames, file.samplerate
            builder.is_float = file.subtype in ("FLOAT", "DOUBLE")
            block = max(1, _BLOCK_SAMPLES // file.channels)
            if max_s is not None:
                block = min(block, int(max_s * rate_hz) + 1)
            while n_remaining > 0:
                samples = np.asarray(file.read(min(block, n_remaining), dtype="float32", always_2d=True), np.float32)
                if not len(samples):
                    return None
                builder.add(samples, rate_hz)
                n_remaining -= len(samples)
    except soundfile.LibsndfileError:
        return None
    return builder


def _is_plain_wav(audio: bytes) -> bool:
    """Whether a file consists of complete chunks from the first byte to the last, with exactly one data chunk."""
    if audio[8:12] != b"WAVE":
        return False
    chunks = wav_chunks(audio)
    kinds = [int.from_bytes(audio[c.start : c.start + 2], "little") for c in chunks if c.name == b"fmt "]
    n_data = sum(chunk.name == b"data" for chunk in chunks)
    is_whole = bool(chunks) and len(audio) - chunks[-1].end in (0, 1)
    size = int.from_bytes(audio[4:8], "little") + 8
    return is_whole and n_data == 1 and len(kinds) == 1 and kinds[0] in _WAV_KINDS and abs(size - len(audio)) <= 1


def _is_plain_flac(audio: bytes) -> bool:
    """Whether the last frame of a FLAC file is the last that its header declares, and no other file follows."""
    if len(audio) < 42:
        return False
    min_block, max_block = int.from_bytes(audio[8:10], "big"), int.from_bytes(audio[10:12], "big")
    n_samples = int.from_bytes(audio[21:26], "big") & 0xF_FFFF_FFFF
    if not n_samples or not max_block or min_block != max_block:
        return False  # the header of a stream, or variable block size
    last = (n_samples - 1) // max_block
    return _last_flac_frame(audio[-_FLAC_TAIL_BYTES:]) == last and audio.rfind(b"fLaC") == 0


def _is_plain_ogg(audio: bytes) -> bool:
    """Whether a file is one complete stream of Vorbis, or of Opus that libsndfile decodes at a low rate."""
    pages = list(ogg_pages(audio))
    first, last = pages[0], pages[-1]
    ends = [0, *(page.end for page in pages)]
    is_one_stream = all(
        page.start == end and page.serial == first.serial and page.number == number and page.is_first == (number == 0)
        for number, (page, end) in enumerate(zip(pages, ends, strict=False))
    )
    head = audio[first.start + 28 : first.end]
    is_low = head[:8] == b"OpusHead" and int.from_bytes(head[12:16], "little") in (8_000, 12_000, 16_000, 24_000)
    return is_one_stream and last.is_last and last.end == len(audio) and (is_low or head[:7] == b"\x01vorbis")


def _last_flac_frame(tail: bytes) -> int | None:
    """Return the number of the last frame, from its header (RFC 9639, 9.1), which its CRC-8 confirms."""
    pos = len(tail)
    while (pos := tail.rfind(b"\xff\xf8", 0, pos)) >= 0:
        header = tail[pos : pos + 16].ljust(16, b"\0")
        n_bits = (header[4] ^ 0xFF).bit_length()  # leading ones give the length of the number, as in UTF-8
        n_bytes = max(1, 8 - n_bits)
        end = 4 + n_bytes + {6: 1, 7: 2}.get(header[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
        if _crc8(header[:end]) == header[end]:
            number = header[4] & (0x7F if n_bytes == 1 else 0x7F >> n_bytes)
            for byte in header[5 : 4 + n_bytes]:
                number = number << 6 | byte & 0x3F
            return number
    return None


def _crc8(header: bytes) -> int:
    crc = 0
    for byte in header:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc
