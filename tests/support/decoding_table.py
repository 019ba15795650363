"""The cases of the decoding tests, and the table of them in docs/serving.md.

python tests/support/decoding_table.py    # updates the table
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from audio_files import (
    Sound,
    by_ffmpeg,
    by_soundfile,
    damaged,
    flac_declaring,
    float_wav,
    mp3_in_wav,
    ogg_pages,
    sweep,
    vbr_mp3,
    wav_declaring,
    without_end,
)

from askd_ray.audio.decode import AudioError, read_audio

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
BEGIN, END = "<!-- decoding table -->\n", "<!-- end of the decoding table -->\n"
SECONDS = 4.0
WHOLE, NOTED, REFUSED = "read whole", "read with a note", "refused"


@dataclass(frozen=True)
class Case:
    """A kind of file, its deviation from a plain file, the expected result, and the seconds of sound in it."""

    file: str
    deviation: str
    make: Callable[[Sound], bytes]
    result: str
    reason: str = ""
    seconds: float = SECONDS

    def __str__(self) -> str:
        return f"{self.deviation}: {self.file}"

    def audio(self) -> bytes:
        """Return the bytes of such a file."""
        return self.make(_SOUND())


@dataclass(frozen=True)
class DecodeResult:
    """The result for a file: ``reason`` is the kind of the note or of the refusal."""

    result: str
    reason: str
    seconds: float


def decode_result(audio: bytes) -> DecodeResult:
    """Decode a file and return the result."""
    try:
        decoded = read_audio(audio)
    except AudioError as error:
        return DecodeResult(REFUSED, str(error).partition(":")[0], 0.0)
    remarks = (*decoded.missing, *decoded.notes)
    kinds = ", ".join(dict.fromkeys(remark.partition(":")[0] for remark in remarks))
    return DecodeResult(NOTED if remarks else WHOLE, kinds, len(decoded.waveform) / 16_000)


@lru_cache(maxsize=1)
def _SOUND() -> Sound:  # noqa: N802
    return sweep(SECONDS)


PLAIN: dict[str, Callable[[Sound], bytes]] = {
    "wav": lambda s: by_soundfile(s, "WAV", "PCM_16"),
    "wav (G.722)": lambda s: by_ffmpeg(s, "wav", "g722"),
    "wav (MP3)": lambda s: mp3_in_wav(vbr_mp3(s)),
    "flac": lambda s: by_soundfile(s, "FLAC"),
    "ogg (Opus)": lambda s: by_ffmpeg(s, "ogg", "libopus"),
    "ogg (Vorbis)": lambda s: by_soundfile(s, "OGG", "VORBIS"),
    "mp3": lambda s: by_soundfile(s, "MP3"),
    "mp3 without Xing header": lambda s: vbr_mp3(s),
    "webm (Opus)": lambda s: by_ffmpeg(s, "webm", "libopus"),
    "mkv (PCM)": lambda s: by_ffmpeg(s, "matroska", "pcm_s16le"),
    "mp4 (AAC)": lambda s: by_ffmpeg(s, "mp4", "aac"),
    "mp4 (ALAC)": lambda s: by_ffmpeg(s, "mp4", "alac"),
    "aac": lambda s: by_ffmpeg(s, "adts", "aac"),
    "ts (AAC)": lambda s: by_ffmpeg(s, "mpegts", "aac"),
    "aiff": lambda s: by_soundfile(s, "AIFF", "PCM_16"),
    "au": lambda s: by_soundfile(s, "AU", "PCM_16"),
    "caf": lambda s: by_soundfile(s, "CAF", "PCM_16"),
    "w64": lambda s: by_soundfile(s, "W64", "PCM_16"),
    "tta": lambda s: by_ffmpeg(s, "tta", "tta"),
    "nist (SPHERE)": lambda s: by_soundfile(s, "NIST", "PCM_16"),
}
PIPED: dict[str, Callable[[Sound], bytes]] = {
    "wav": lambda s: by_ffmpeg(s, "wav", "pcm_s16le", piped=True),
    "flac": lambda s: by_ffmpeg(s, "flac", "flac", piped=True),
    "mp3": lambda s: by_ffmpeg(s, "mp3", "libmp3lame", piped=True),
    "webm (Opus)": lambda s: by_ffmpeg(s, "webm", "libopus", piped=True),
    "mp4 (AAC)": lambda s: by_ffmpeg(s, "mp4", "aac", piped=True, options={"movflags": "frag_keyframe+empty_moov"}),
}
WAV_SIZES = {
    "data length 0": 0,
    "data length 0x7FFFFFFF": 0x7FFF_FFFF,
    "data length 0x7FFFF000": 0x7FFF_F000,
    "data length 0x80000000": 0x8000_0000,
    "data length 0xFFFFFFFE": 0xFFFF_FFFE,
    "data length 0xFFFFFFFF": 0xFFFF_FFFF,
    "data length 44 bytes too long": round(2 * 16_000 * SECONDS) + 44,
}
GAPPED = {"webm (Opus)": ("webm", "libopus"), "mkv (PCM)": ("matroska", "pcm_s16le"), "mp4 (AAC)": ("mp4", "aac")}
JOINED = (
    "mp3",
    "mp3 without Xing header",
    "ogg (Opus)",
    "ogg (Vorbis)",
    "flac",
    "wav",
    "aac",
    "webm (Opus)",
    "mp4 (AAC)",
)
ODD_RATES = (8_001, 11_127, 16_001, 44_101, 47_999)
NEVER_SHOWS = ("mp3 without Xing header", "wav (MP3)", "ts (AAC)")
CUT = (
    "wav",
    "wav (G.722)",
    "flac",
    "ogg (Opus)",
    "ogg (Vorbis)",
    "mp3",
    "webm (Opus)",
    "mp4 (AAC)",
    "aac",
    "aiff",
    "au",
    "caf",
    "w64",
    "tta",
    "nist (SPHERE)",
)


def _at_rate(rate_hz: int) -> Callable[[Sound], bytes]:
    return lambda s: by_soundfile(sweep(SECONDS, rate_hz), "WAV", "PCM_16", rate_hz)


def _gap(container: str, codec: str, at_s: float) -> Callable[[Sound], bytes]:
    return lambda s: by_ffmpeg(s, container, codec, gap_s=(at_s, 3.0))


def _cases() -> list[Case]:
    cases = [Case(name, "none", make, WHOLE) for name, make in PLAIN.items()]
    cases += [Case(name, "written to a pipe", make, WHOLE) for name, make in PIPED.items()]
    cases += [Case("wav", deviation, lambda s, n=n: wav_declaring(s, n), WHOLE) for deviation, n in WAV_SIZES.items()]
    cases += [
        Case("flac", "fewer samples declared than there are", lambda s: flac_declaring(PLAIN["flac"](s), 9_000), WHOLE),
        Case("mp4 (AAC)", "declared 0.2 s longer than its samples", _longer_mp4, WHOLE),
        Case("webm (Opus)", "declared 5 s longer than its samples", _longer_webm, WHOLE),
    ]
    cases += [
        Case(name, "two files joined", lambda s, m=PLAIN[name]: m(s) * 2, WHOLE, seconds=2 * SECONDS) for name in JOINED
    ]
    cases += [
        Case(
            "ogg (Opus, then Vorbis)",
            "two files joined",
            lambda s: PLAIN["ogg (Opus)"](s) + PLAIN["ogg (Vorbis)"](s),
            WHOLE,
            seconds=2 * SECONDS,
        ),
        Case(
            "mp3 (16, then 44.1 kHz)",
            "two files joined",
            lambda s: PLAIN["mp3"](s) + by_soundfile(sweep(SECONDS, 44_100), "MP3", None, 44_100),
            WHOLE,
            seconds=2 * SECONDS,
        ),
    ]
    for name, form in GAPPED.items():
        cases.append(Case(name, "a gap of 3 s in the times", _gap(*form, 2.0), NOTED, "gap", SECONDS + 3.0))
        cases.append(Case(name, "times that begin at 3 s", _gap(*form, -1.0), NOTED, "gap", SECONDS + 3.0))
    cases += [Case("wav", f"{rate_hz} Hz", _at_rate(rate_hz), WHOLE) for rate_hz in ODD_RATES]
    cases += [
        Case("wav (float)", f"values up to {scale}", lambda s, scale=scale: float_wav(s, 2.0 * scale), NOTED, "scaled")
        for scale in (32_767, 8_388_607)
    ]
    cases += [
        Case("wav (float)", "values up to 3", lambda s: float_wav(s, 6.0), WHOLE),
        Case("wav (float)", "values up to 1e30", lambda s: float_wav(s, 1e30), REFUSED, "unreadable audio"),
        Case(
            "wav (float)",
            "a value that is no number",
            lambda s: float_wav(np.where(np.arange(len(s)) == 7, np.nan, s), 1),
            REFUSED,
            "not finite",
        ),
    ]
    for name, make in {
        **{n: PLAIN[n] for n in ("aac", "mp3", "mp3 without Xing header", "ogg (Opus)", "flac")}
    }.items():
        cases.append(Case(name, "40 bytes in the middle damaged", lambda s, m=make: damaged(m(s)), NOTED, "damaged"))
    cases.append(Case("ogg (Opus)", "a page lost", _without_a_page, NOTED, "damaged"))
    cases += [
        Case(name, "its end is missing", lambda s, m=PLAIN[name]: without_end(m(s)), REFUSED, "truncated")
        for name in CUT
    ]
    cases += [
        Case(
            f"{name} from a pipe",
            "its end is missing",
            lambda s, m=PIPED[name]: without_end(m(s)),
            REFUSED,
            "truncated",
        )
        for name in ("flac", "webm (Opus)", "mp4 (AAC)")
    ]
    cases.append(
        Case("wav", "data length half of what there is", lambda s: wav_declaring(s, 64_000), REFUSED, "truncated")
    )
    cases.append(
        Case(
            "ogg (Opus)",
            "its last page is missing",
            lambda s: b"".join(ogg_pages(PLAIN["ogg (Opus)"](s))[:-1]),
            REFUSED,
            "truncated",
        )
    )
    cases += [
        Case(
            name,
            "its end is missing, which cannot be detected",
            lambda s, m=PLAIN[name]: without_end(m(s)),
            WHOLE,
            seconds=0.6 * SECONDS,
        )
        for name in ("mp3 without Xing header", "ts (AAC)")
    ]
    return cases


def _longer_mp4(sound: Sound) -> bytes:
    """Return an MP4 file whose header declares more than its samples, as recorders write it."""
    mp4 = bytearray(PLAIN["mp4 (AAC)"](sound))
    for box, at in ((b"mvhd", 20), (b"mdhd", 20)):
        start = mp4.index(box) + at
        scale = int.from_bytes(mp4[start - 4 : start], "big")
        mp4[start : start + 4] = (int.from_bytes(mp4[start : start + 4], "big") + scale // 5).to_bytes(4, "big")
    return bytes(mp4)


def _longer_webm(sound: Sound) -> bytes:
    webm = bytearray(PLAIN["webm (Opus)"](sound))
    start = webm.index(b"\x44\x89\x88") + 3
    webm[start : start + 8] = np.array(1000 * (SECONDS + 5.0), ">f8").tobytes()
    return bytes(webm)


def _without_a_page(sound: Sound) -> bytes:
    pages = ogg_pages(PLAIN["ogg (Opus)"](sound))
    return b"".join([*pages[:3], *pages[4:]])


CASES = _cases()


def table() -> str:
    """Return the table of deviations, files and results."""
    rows: dict[tuple[str, str], list[str]] = {}
    for case in CASES:
        decoded = decode_result(case.audio())
        result = f"{decoded.result} ({decoded.reason})" if decoded.reason else decoded.result
        rows.setdefault((case.deviation, result), []).append(case.file)
    lines = [f"| {deviation} | {', '.join(files)} | {result} |" for (deviation, result), files in rows.items()]
    return "\n".join(["| deviation | container (codec) | result |", "|---|---|---|", *lines]) + "\n"


def write() -> None:
    """Write the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    write()
