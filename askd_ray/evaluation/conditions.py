"""Robustness: changes the audio of clips before they are scored, in the same way for every model (docs/evaluation.md).

The effects are those of the augmentation. Only the noise, the room and the voices are random here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch

from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import add_noise, cut_peaks, fit_length, reverberate, sped_up, telephone, within_one
from askd_ray.audio.sounds import draw_noise, draw_room, synthetic_noises
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.randomness import draw_seed

N_BABBLE = 4  # voices at a time: more sound like plain noise; with fewer, single words can be understood
_MAX_VOICES = 32  # clips of a set that make up the babble: 20 MB for clips of 10 s
_RT60_S = (0.3, 0.9)  # from an office to a hall


@dataclass(frozen=True)
class Condition:
    """A change of the audio. ``value`` is in dB for noises and clipping, and a factor for the speed."""

    kind: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a condition of the recipe, such as ``white@10`` or ``telephone`` (config/evaluate.py checked it)."""
        kind, _, value = text.partition("@")
        return cls(kind, float(value or 0.0))


@dataclass(frozen=True)
class Voice:
    """A clip that is mixed into babble, shape ``(n_samples,)``, scaled to an RMS of 1, and its speaker."""

    speaker: str
    waveform: torch.Tensor


@dataclass(frozen=True)
class Sounds:
    """The sounds for the conditions of a set. Where a pattern is None, noises and rooms are synthetic."""

    noise_files: str | None = None
    room_files: str | None = None
    voices: tuple[Voice, ...] = ()


def voices_of(name: str, utterances: Sequence[Utterance], seed: int) -> tuple[Voice, ...]:
    """Return the voices for the babble behind the clips of a set: a few clips, from as many speakers as possible.

    The choice depends on the utterances' ids and the seed, not on their order.

    Raises :class:`AskdError` when the set has only one speaker, or an utterance has no speaker label.
    """
    if any(not u.speaker for u in utterances):
        raise AskdError(
            f"babble behind set {name}: an utterance has no speaker label, so its speaker might also be in the babble"
        )
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda u: draw_seed(seed, 0, u.id, "voice")):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    if len(by_speaker) < 2:
        raise AskdError(f"babble behind set {name}: babble needs other speakers, and the set has only one")
    speakers_in_turn = sorted(
        ((turn, u) for clips in by_speaker.values() for turn, u in enumerate(clips)), key=lambda pair: pair[0]
    )
    clips = ((u.speaker, torch.from_numpy(waveform_of(u))) for _, u in speakers_in_turn)
    with_level = ((speaker, clip, clip.square().mean().sqrt()) for speaker, clip in clips)
    return tuple(islice((Voice(speaker, clip / rms) for speaker, clip, rms in with_level if rms > 0.0), _MAX_VOICES))


def apply(
    condition: Condition, waveform: Waveform, *, utterance_id: str, speaker: str, seed: int, sounds: Sounds
) -> Waveform:
    """Return a clip ``(n_samples,)`` under a condition: a pure function of its arguments.

    The noise is the same at every level, so that a curve over levels shows only the effect of the level. The
    signal-to-noise ratio is that of the whole clip, pauses included. Only ``speed`` changes the length, to
    :func:`~askd_ray.audio.effects.sped_up_samples`; it may then exceed 30 s. A clip with a peak above 1 is scaled down.

    Raises :class:`AskdError` when a sound cannot be read, or when the voices have no other speaker.
    """
    clip = torch.from_numpy(waveform)
    rng = Random(draw_seed(seed, 0, utterance_id, condition.kind))
    match condition.kind:
        case "white":
            changed = add_noise(clip, fit_length(synthetic_noises()[0], len(clip), rng), condition.value)
        case "noise":
            changed = add_noise(clip, fit_length(draw_noise(sounds.noise_files, rng), len(clip), rng), condition.value)
        case "babble":
            changed = add_noise(clip, _babble(sounds.voices, speaker, len(clip), rng), condition.value)
        case "room":
            changed = reverberate(clip, draw_room(sounds.room_files, _RT60_S, rng))
        case "telephone":
            changed = telephone(clip)
        case "speed":
            changed = sped_up(clip, condition.value)
        case "clip":
            changed = cut_peaks(clip, condition.value)
        case _:
            raise ValueError(f"no condition is called {condition.kind}")
    return within_one(changed).numpy()


def _babble(voices: Sequence[Voice], speaker: str, n_samples: int, rng: Random) -> torch.Tensor:
    others = [voice.waveform for voice in voices if voice.speaker != speaker]
    if not others:
        raise AskdError(f"babble behind {speaker}: there is no voice of another speaker")
    drawn = rng.sample(others, min(N_BABBLE, len(others)))
    return torch.stack([fit_length(voice, n_samples, rng) for voice in drawn]).sum(0)
