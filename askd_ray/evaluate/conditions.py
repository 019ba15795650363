"""Robustness: what is done to clips before they are scored, the same for every model (docs/evaluation.md).

The effects are those of the augmentation; here nothing but the noise itself, the room and the voices are drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch

from askd_ray.audio.augment import draw_seed
from askd_ray.audio.decode import Waveform
from askd_ray.audio.effects import add_noise, cut_peaks, fit_length, reverberate, sped_up, telephone, within_one
from askd_ray.audio.sounds import draw_noise, draw_room, synthetic_noises
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError

N_BABBLE = 4  # voices at once: more, and it is mere speech-shaped noise; fewer, and a word of theirs can be made out
_MAX_VOICES = 32  # clips of a set that babble is made of: 20 MB, where they are of 10 s each
_RT60_S = (0.3, 0.9)  # from an office to a hall


@dataclass(frozen=True)
class Condition:
    """What is done to a clip, and how much of it: dB for noises and clipping, a factor for the speed."""

    kind: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Condition":
        """Read a condition of the recipe, such as ``white@10`` or ``telephone`` (config/evaluate.py checked it)."""
        kind, _, value = text.partition("@")
        return cls(kind, float(value or 0.0))


@dataclass(frozen=True)
class Voice:
    """A clip that babble is made of, shape ``(n_samples,)``, at an effective value of 1, and who speaks in it."""

    speaker: str
    waveform: torch.Tensor


@dataclass(frozen=True)
class Sounds:
    """What the conditions of a set are made of. Patterns that are None stand for synthetic noises and rooms."""

    noise_files: str | None = None
    room_files: str | None = None
    voices: tuple[Voice, ...] = ()


def voices_of(name: str, utterances: Sequence[Utterance], seed: int) -> tuple[Voice, ...]:
    """Return the voices that babble behind the clips of a set is made of: a few clips of as many speakers as it has.

    Which ones depends on the utterances' ids and the seed, and not on their order.

    Raises :class:`AskdError` when the set has no second speaker, or does not say who speaks.
    """
    if any(not u.speaker for u in utterances):
        raise AskdError(f"babble behind set {name}: it does not say who speaks, so a voice might be the speaker's own")
    by_speaker: dict[str, list[Utterance]] = {}
    for utterance in sorted(utterances, key=lambda u: draw_seed(seed, 0, u.id, "voice")):
        by_speaker.setdefault(utterance.speaker, []).append(utterance)
    if len(by_speaker) < 2:
        raise AskdError(f"babble behind set {name}: it is made of other speakers, and the set has only one")
    first_of_each = sorted(
        ((turn, u) for clips in by_speaker.values() for turn, u in enumerate(clips)), key=lambda pair: pair[0]
    )
    heard = ((u.speaker, torch.from_numpy(waveform_of(u))) for _, u in first_of_each)
    audible = ((speaker, clip, clip.square().mean().sqrt()) for speaker, clip in heard)
    return tuple(islice((Voice(speaker, clip / rms) for speaker, clip, rms in audible if rms > 0.0), _MAX_VOICES))


def apply(
    condition: Condition, waveform: Waveform, *, utterance_id: str, speaker: str, seed: int, sounds: Sounds
) -> Waveform:
    """Return a clip ``(n_samples,)`` under a condition: a pure function of its arguments.

    A noise is the same at every level, so that a curve over levels shows nothing but the level. Its level is that of
    the speech over the whole clip, pauses included. Only the speed changes the length, to
    :func:`~askd_ray.audio.effects.sped_up_samples`, also beyond 30 s. What exceeds 1 is scaled down.

    Raises :class:`AskdError` when a sound cannot be read, or no other speaker is among the voices.
    """
    clip = torch.from_numpy(waveform)
    rng = Random(draw_seed(seed, 0, utterance_id, condition.kind))
    match condition.kind:
        case "white":
            heard = add_noise(clip, fit_length(synthetic_noises()[0], len(clip), rng), condition.value)
        case "noise":
            heard = add_noise(clip, fit_length(draw_noise(sounds.noise_files, rng), len(clip), rng), condition.value)
        case "babble":
            heard = add_noise(clip, _babble(sounds.voices, speaker, len(clip), rng), condition.value)
        case "room":
            heard = reverberate(clip, draw_room(sounds.room_files, _RT60_S, rng))
        case "telephone":
            heard = telephone(clip)
        case "speed":
            heard = sped_up(clip, condition.value)
        case "clip":
            heard = cut_peaks(clip, condition.value)
        case _:
            raise ValueError(f"no condition is called {condition.kind}")
    return within_one(heard).numpy()


def _babble(voices: Sequence[Voice], speaker: str, n_samples: int, rng: Random) -> torch.Tensor:
    others = [voice.waveform for voice in voices if voice.speaker != speaker]
    if not others:
        raise AskdError(f"babble behind {speaker}: no voice of another speaker was given")
    drawn = rng.sample(others, min(N_BABBLE, len(others)))
    return torch.stack([fit_length(voice, n_samples, rng) for voice in drawn]).sum(0)
