"""Derived clips: short, long and silent clips that are made of the stored utterances, without a copy of their audio.

A derived shard lies beside the shard that it was made of. Its rows refer to parts of that shard's audio, or of the file
of sounds. The same data and settings give the same clips.
"""

import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from random import Random

import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray

from askd_ray.audio.chunking import quietest
from askd_ray.audio.decode import Waveform, duration_s
from askd_ray.audio.non_speech import SOUND_DB, sounds_without_speech
from askd_ray.audio.units import SAMPLE_RATE_HZ, samples_of
from askd_ray.audio.vad import FRAME_SAMPLES, Vad, shared_vad
from askd_ray.config.derive import Crops, Derive, NonSpeechClips, Stitched
from askd_ray.data.schema import DERIVED_SCHEMA, SOUND_SCHEMA, DerivedKind, Piece, Split, Utterance
from askd_ray.data.shards import BLOCK_ROWS, DERIVED, read_shard, read_table, to_table, waveform_of, write_table
from askd_ray.data.task_runner import TaskRunner
from askd_ray.location import Location
from askd_ray.progress import bar
from askd_ray.randomness import Draw
from askd_ray.torch_setup import n_cores

SOUNDS = "sounds.parquet"
"""The file beside the shards with the sounds of the clips without speech."""

NON_SPEECH_DOMAIN = "non_speech"

_DEV_CROPS_S = (0.4, 1.0)
_MAX_DEV: dict[str, int] = {"crop": 192, "stitched": 12, "non_speech": 32}  # a third of the crops get a reference
_MAX_DEV_PER_UTTERANCE: dict[str, float] = {"crop": 2.0, "stitched": 0.2, "non_speech": 0.5}
_DRAWS = 5  # attempts to find a part with (or without) speech
_SPEECH_PROB, _SILENCE_PROB = 0.5, 0.1  # of the voice activity detection: in between, nobody knows
_MIN_SPEECH_S = 0.15  # in a crop
_MARGIN_S = 0.1  # between a pause and the speech beside it
_SNAP_S = 0.15  # crops of references move up to this far to a quiet point
_LEVELS_DB = (-60.0, -12.0)  # RMS of sounds: from the noise floor of a room to a loud street
_FLOOR_DB = -80.0  # quieter pauses have no sound that could be made louder
_SOUNDS_SEED = 1


@dataclass(frozen=True)
class _Part:
    """A part of the row ``row`` of a file of stored clips; ``pause_s``: silence before it."""

    shard: str
    row: int
    start_s: float
    end_s: float
    pause_s: float = 0.0
    gain_db: float = 0.0


@dataclass(frozen=True)
class _Clip:
    """A derived clip; ``like`` is the utterance that gives speaker, language, domain and licence."""

    id: str
    kind: DerivedKind
    text: str
    like: Utterance
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Sounds:
    """The stored sounds: their lengths in seconds, by row, and their audio."""

    lengths_s: tuple[float, ...]
    audio: tuple[bytes, ...]


def derive(folder: Location, settings: Derive, runner: TaskRunner) -> dict[str, dict[str, int]]:
    """Write the derived shards of a folder of shards; return the number of clips by split and kind.

    Raises :class:`~askd_ray.errors.AskdError` when a recording of ``non_speech.files`` cannot be read.
    """
    by_split: dict[Split, Derive] = {"train": settings}
    if settings.dev:
        by_split["dev"] = _dev_settings(folder)
    shards: list[tuple[Location, Split]] = [
        (path, split) for split in by_split for path in folder.files(f"{split}-*.parquet")
    ]
    work = partial(_derive_shard, by_split, _write_sounds(folder / SOUNDS, settings.non_speech.files))
    counts: dict[str, dict[str, int]] = {split: {} for split in by_split}
    with bar("Deriving clips", len(shards), "shards") as progress:
        made = runner.map(work, shards, memory_mb=1024, local_threads=n_cores())
        for (_, split), kinds in zip(shards, made, strict=True):
            counts[split] = dict(Counter(counts[split]) + kinds)
            progress.advance()
    return counts


def _dev_settings(folder: Location) -> Derive:
    """Return the settings for dev: few clips, and crops of under a second that need a reference."""
    n = max(1, sum(read_table(path, ["id"]).num_rows for path in folder.files("dev-*.parquet")))
    rates = {kind: min(_MAX_DEV_PER_UTTERANCE[kind], max_clips / n) for kind, max_clips in _MAX_DEV.items()}
    return Derive(
        crops=Crops(per_utterance=rates["crop"], duration_s=_DEV_CROPS_S, text="reference"),
        stitched=Stitched(per_utterance=rates["stitched"]),
        non_speech=NonSpeechClips(per_utterance=rates["non_speech"]),
    )


def _write_sounds(path: Location, files: str | None) -> _Sounds:
    """Write the sounds as FLAC, one row each."""
    names, audio, lengths_s = list[str](), list[bytes](), list[float]()
    for sound in sounds_without_speech(files, _SOUNDS_SEED):
        file = io.BytesIO()
        soundfile.write(file, sound.waveform, SAMPLE_RATE_HZ, format="FLAC")
        names.append(sound.name)
        audio.append(file.getvalue())
        lengths_s.append(duration_s(sound.waveform))
    rows = [{"id": n, "audio": {"bytes": a, "path": f"{n}.flac"}} for n, a in zip(names, audio, strict=True)]
    write_table(path, pa.Table.from_pylist(rows, schema=SOUND_SCHEMA), BLOCK_ROWS)
    return _Sounds(tuple(lengths_s), tuple(audio))


def _derive_shard(settings: Mapping[Split, Derive], sounds: _Sounds, shard: tuple[Location, Split]) -> Counter[str]:
    """Write the derived shard of a shard, which is given with its split; return the number of clips by kind."""
    path, rates = shard[0], settings[shard[1]]
    stored = _Shard(path.name, read_shard(path), sounds, shared_vad())
    crops = [clip for row in range(len(stored.utterances)) for clip in stored.crops(row, rates.crops)]
    clips = [*crops, *stored.stitched(rates.stitched), *stored.non_speech(rates.non_speech)]
    if clips:
        table = pa.Table.from_pylist([stored.row(clip) for clip in clips], schema=DERIVED_SCHEMA)
        write_table(path.parent / f"{DERIVED}{path.name}", table, BLOCK_ROWS)
    return Counter(clip.kind for clip in clips)


class _Shard:
    """Derives clips of one shard."""

    def __init__(self, name: str, utterances: Sequence[Utterance], sounds: _Sounds, vad: Vad):
        self.name, self.utterances = name, utterances
        self._sounds, self._vad = sounds, vad
        self._analysed: dict[int, tuple[Waveform, NDArray[np.float32]]] = {}

    def crops(self, row: int, settings: Crops) -> Iterator[_Clip]:
        """Yield the crops of an utterance; parts without speech are not used."""
        utterance = self.utterances[row]
        for number in range(_count(settings.per_utterance, Draw(0, 0, utterance.id).rng("crops"))):
            rng = Draw(0, 0, utterance.id, number).rng("crop")
            low_s, high_s = settings.duration_s[0], min(settings.duration_s[1], utterance.duration_s)
            if high_s < low_s:
                return
            length_s = _log_uniform(rng, low_s, high_s)
            spans = (self._crop(row, length_s, settings.text == "reference", rng) for _ in range(_DRAWS))
            span = next((s for s in spans if self._speech_s(row, *s) >= _MIN_SPEECH_S), None)
            if span is not None:
                text = utterance.text if settings.text == "reference" else ""
                yield _Clip(f"{utterance.id}#crop{number}", "crop", text, utterance, (_Part(self.name, row, *span),))

    def stitched(self, settings: Stitched) -> Iterator[_Clip]:
        """Yield clips that join utterances of one language, in random order, with pauses between them."""
        rng = Draw(0, 0, self.name).rng("stitched")
        for number in range(_count(settings.per_utterance * len(self.utterances), rng)):
            first, max_s = rng.randrange(len(self.utterances)), rng.uniform(*settings.duration_s)
            like, mixed = self.utterances[first], rng.random() < settings.mixed_speakers
            others = [
                row
                for row, u in enumerate(self.utterances)
                if row != first and u.language == like.language and (mixed or u.speaker == like.speaker)
            ]
            rows, parts, total_s = list[int](), list[_Part](), 0.0
            for row in [first, *rng.sample(others, len(others))]:
                pause_s = rng.uniform(*settings.pause_s) if parts else 0.0
                length_s = self.utterances[row].duration_s
                if total_s + pause_s + length_s <= max_s:
                    rows.append(row)
                    parts.append(_Part(self.name, row, 0.0, length_s, pause_s))
                    total_s += pause_s + length_s
            if len(parts) > 1:
                texts = [self.utterances[row].text for row in rows]
                text = " ".join(texts) if all(texts) else ""
                yield _Clip(f"{self.name}#stitched{number}", "stitched", text, like, tuple(parts))

    def non_speech(self, settings: NonSpeechClips) -> Iterator[_Clip]:
        """Yield clips without speech: pauses of the utterances and stored sounds, in turn.

        Every second pause is made as loud as the sounds are: it is the only recorded noise that all data have.
        """
        rng = Draw(0, 0, self.name).rng("non_speech")
        for number in range(_count(settings.per_utterance * len(self.utterances), rng)):
            row, length_s = rng.randrange(len(self.utterances)), _log_uniform(rng, *settings.duration_s)
            pause = self._pause(row, settings.duration_s[0], length_s, rng) if number % 2 else None
            if pause is not None and number % 4 == 1:
                pause = self._loud(pause, rng)
            part = pause or self._sound(length_s, rng)
            yield _Clip(f"{self.name}#non_speech{number}", "non_speech", "", self.utterances[row], (part,))

    def row(self, clip: _Clip) -> dict[str, object]:
        """Return a clip as a row of :data:`~askd_ray.data.schema.DERIVED_SCHEMA`."""
        like, silent = clip.like, clip.kind == "non_speech"
        utterance = Utterance(
            id=clip.id,
            audio=b"",
            path="",
            text=clip.text,
            duration_s=sum(p.pause_s + p.end_s - p.start_s for p in clip.parts),
            speaker="" if silent else like.speaker,
            language=like.language,
            domain=NON_SPEECH_DOMAIN if silent else like.domain,
            split=like.split,
            licence=like.licence,
            derived=clip.kind,
            pieces=tuple(Piece(self._audio(p), p.start_s, p.end_s, p.pause_s, p.gain_db) for p in clip.parts),
        )
        (row,) = to_table([utterance]).drop_columns(["audio"]).to_pylist()
        return {**row, "kind": clip.kind, "pieces": [asdict(part) for part in clip.parts]}

    def _audio(self, part: _Part) -> bytes:
        return self._sounds.audio[part.row] if part.shard == SOUNDS else self.utterances[part.row].audio

    def _crop(self, row: int, length_s: float, at_quiet_points: bool, rng: Random) -> tuple[float, float]:
        """Draw a part of an utterance, in seconds."""
        start_s = rng.uniform(0.0, self.utterances[row].duration_s - length_s)
        ends = start_s, start_s + length_s
        if not at_quiet_points:
            return ends
        waveform, _ = self._analyse(row)
        return self._quiet_point(waveform, ends[0]), self._quiet_point(waveform, ends[1])

    @staticmethod
    def _quiet_point(waveform: Waveform, near_s: float) -> float:
        """Return the quietest point near a time; the ends of the clip are quiet."""
        first, last = samples_of(near_s - _SNAP_S), samples_of(near_s + _SNAP_S)
        if first <= 0:
            return 0.0
        return duration_s(waveform) if last >= len(waveform) else quietest(waveform, first, last) / SAMPLE_RATE_HZ

    def _pause(self, row: int, min_s: float, max_s: float, rng: Random) -> _Part | None:
        """Return a part of an utterance without speech, or None if there is none of ``min_s``."""
        waveform, probs = self._analyse(row)
        is_silent = np.concatenate([[False], probs < _SILENCE_PROB, [False]]).astype(np.int8)
        starts, ends = (np.flatnonzero(np.diff(is_silent) == step) for step in (1, -1))
        frame_s = FRAME_SAMPLES / SAMPLE_RATE_HZ
        pauses = [
            (start * frame_s + _MARGIN_S, min(end * frame_s, duration_s(waveform)) - _MARGIN_S)
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        long_enough = [(start_s, end_s) for start_s, end_s in pauses if end_s - start_s >= min_s]
        if not long_enough:
            return None
        start_s, end_s = rng.choice(long_enough)
        length_s = min(max_s, end_s - start_s)
        start_s = rng.uniform(start_s, end_s - length_s)
        return _Part(self.name, row, start_s, start_s + length_s)

    def _loud(self, pause: _Part, rng: Random) -> _Part:
        """Return a pause at a random level, unless it is digital silence."""
        waveform, _ = self._analyse(pause.row)
        part = waveform[samples_of(pause.start_s) : samples_of(pause.end_s)]
        level_db = 10.0 * math.log10(float(np.mean(np.square(part))) + 1e-12)
        if level_db < _FLOOR_DB:
            return pause
        return replace(pause, gain_db=max(0.0, rng.uniform(*_LEVELS_DB) - level_db))

    def _sound(self, max_s: float, rng: Random) -> _Part:
        row = rng.randrange(len(self._sounds.lengths_s))
        length_s = min(max_s, self._sounds.lengths_s[row])
        start_s = rng.uniform(0.0, self._sounds.lengths_s[row] - length_s)
        return _Part(SOUNDS, row, start_s, start_s + length_s, gain_db=rng.uniform(*_LEVELS_DB) - SOUND_DB)

    def _speech_s(self, row: int, start_s: float, end_s: float) -> float:
        """Return the seconds of speech in a part of an utterance."""
        frame_s = FRAME_SAMPLES / SAMPLE_RATE_HZ
        _, probs = self._analyse(row)
        frames = probs[math.floor(start_s / frame_s) : math.ceil(end_s / frame_s)]
        return float((frames >= _SPEECH_PROB).sum()) * frame_s

    def _analyse(self, row: int) -> tuple[Waveform, NDArray[np.float32]]:
        """Return the waveform of an utterance and its speech probabilities."""
        if row not in self._analysed:
            if len(self._analysed) == 64:  # a large shard would fill the memory
                self._analysed.clear()
            waveform = waveform_of(self.utterances[row])
            self._analysed[row] = waveform, self._vad.probs(waveform)
        return self._analysed[row]


def _count(expected: float, rng: Random) -> int:
    """Draw a whole number with this mean: the two nearest are possible."""
    return math.floor(expected + rng.random())


def _log_uniform(rng: Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
