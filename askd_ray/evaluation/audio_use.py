"""What the audio tells an LLM student: nats a reference token with its own audio, with other audio, without audio."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import DynamicCache

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import DecodingWindow, samples_of
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.llm_student import LlmStudent
from askd_ray.models.student import EncoderOutput
from askd_ray.progress import bar

CONDITIONS = ("right", "wrong", "none")
"""The audio that a student reads: that of the clip, that of another clip of nearly the same length, or none."""

_BATCH_SIZE = {"cpu": 8, "cuda": 64}
_CHUNK_TOKENS = 256  # whose logits are in memory


@dataclass(frozen=True)
class ClipScores:
    """The scores of clips, in their order: ``nats`` (n_clips, 3) of their references in :data:`CONDITIONS`.

    ``tokens`` (n_clips,) counts the tokens of the references, with the end token, and ``states`` what the LLM reads.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]
    states: NDArray[np.int64]


@torch.no_grad()
def score_clips(student: LlmStudent, clips: Sequence[Utterance], window: DecodingWindow) -> ClipScores:
    """Return the scores of at least two clips.

    The wrong audio of a clip is that of the next longer clip with another text: its length tells nothing.
    """
    audio = embedded_clips(student, clips, window)
    order = sorted(range(len(clips)), key=lambda i: (clips[i].duration_s, clips[i].id))
    wrong: dict[int, int] = {}
    for place, i in enumerate(order):
        following = (order[(place + n) % len(order)] for n in range(1, len(order)))
        wrong[i] = next((j for j in following if clips[j].text != clips[i].text), order[place - 1])
    targets = [target_ids(student, clip) for clip in clips]
    nats = np.zeros((len(clips), len(CONDITIONS)))
    size = _BATCH_SIZE[student.opening.device.type]
    for rows in (order[start : start + size] for start in range(0, len(order), size)):
        of_rows = [targets[i] for i in rows]
        nats[rows, 0] = text_nats(student, [audio[i] for i in rows], of_rows)
        nats[rows, 1] = text_nats(student, [audio[wrong[i]] for i in rows], of_rows)
        nats[rows, 2] = text_nats(student, None, of_rows)
    return ClipScores(nats, np.array([len(ids) for ids in targets]), np.array([len(states) for states in audio]))


@torch.no_grad()
def retrieve(student: LlmStudent, clips: Sequence[Utterance], window: DecodingWindow) -> NDArray[np.bool_]:
    """Return for each clip whether its transcript, among those of all clips, is the most likely one: (n_clips, 2).

    First by its log-probability given the audio, then by this minus its log-probability without audio.
    """
    audio = embedded_clips(student, clips, window)
    targets = [target_ids(student, clip) for clip in clips]
    order = sorted(range(len(clips)), key=lambda i: len(targets[i]))
    groups = [order[start : start + 20] for start in range(0, len(order), 20)]  # of like length: little padding
    found = np.zeros((len(clips), 2), dtype=bool)
    without = _nats_after(student, None, targets, groups)
    with bar("retrieve", len(clips), "clip") as progress:
        for i, states in enumerate(audio):
            given = _nats_after(student, states, targets, groups)
            found[i] = given.argmin() == i, (given - without).argmin() == i
            progress.advance()
    return found


def target_ids(student: LlmStudent, clip: Utterance) -> list[int]:
    """Return the tokens of a clip's reference, with the end token."""
    return [*student.tokens.encode(clip.text.strip()), student.tokens.end]


def embedded_clips(student: LlmStudent, clips: Sequence[Utterance], window: DecodingWindow) -> list[torch.Tensor]:
    """Return what the LLM reads of each clip in its decoding window: ``(n_states, width of the LLM)``."""
    device, dtype = student.opening.device, student.embedder.map.weight.dtype

    def n_samples(i: int) -> int:
        return window.samples(samples_of(clips[i].duration_s), student.n_mels)

    audio: dict[int, torch.Tensor] = {}
    for length, of_length in groupby(sorted(range(len(clips)), key=n_samples), key=n_samples):
        rows = list(of_length)
        for some in (rows[start : start + 8] for start in range(0, len(rows), 8)):
            waveforms = [waveform_of(clips[i]) for i in some]
            log_mel = log_mel_windows(waveforms, [length] * len(some), student.n_mels)
            embedded = student.audio(log_mel.to(device, dtype))
            read = zip(embedded.states, embedded.positions_inside, strict=True)
            audio.update(zip(some, (states[inside] for states, inside in read), strict=True))
    return [audio[i] for i in range(len(clips))]


def text_nats(
    student: LlmStudent, audio: Sequence[torch.Tensor] | None, targets: Sequence[Sequence[int]]
) -> list[float]:
    """Return the nats of each text, summed over its tokens, given audio ``(n_states, width)`` or none."""
    device, closing = student.opening.device, list(student.tokens.closing)
    rows = [[*closing, *ids[:-1]] for ids in targets]
    hidden = student.read(None if audio is None else _padded(audio), _stacked(rows, device))
    first = len(closing) - 1  # the last token of the prompt predicts the first of the text
    of_texts = (states[first : first + len(ids)] for states, ids in zip(hidden, targets, strict=True))
    return [float(nats.sum()) for nats in _token_nats(student, of_texts, targets)]


def _nats_after(
    student: LlmStudent, states: torch.Tensor | None, targets: Sequence[Sequence[int]], groups: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Return the nats of each text given one clip's states ``(n_states, width)``, or no audio; it is read once."""
    device = student.opening.device
    closing = torch.tensor([student.tokens.closing], device=device)
    nats = np.zeros(len(targets))
    for rows in groups:
        cache = DynamicCache(config=student.llm.config)
        before = student.read(None if states is None else _padded([states]), closing, cache)[:, -1:]
        cache.batch_repeat_interleave(len(rows))
        ids = _stacked([targets[i][:-1] or [0] for i in rows], device)
        after = student.llm(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        hidden = torch.cat([before.expand(len(rows), -1, -1), after], dim=1)
        of_texts = (row[: len(targets[i])] for row, i in zip(hidden, rows, strict=True))
        nats[rows] = [float(n.sum()) for n in _token_nats(student, of_texts, [targets[i] for i in rows])]
    return nats


def _token_nats(
    student: LlmStudent, hidden: Iterator[torch.Tensor], targets: Sequence[Sequence[int]]
) -> Iterator[torch.Tensor]:
    """Yield the nats ``(n_tokens,)`` of each text, from the hidden states that predict its tokens."""
    all_hidden = torch.cat(list(hidden))
    all_ids = torch.tensor([i for ids in targets for i in ids], device=all_hidden.device)
    parts = zip(all_hidden.split(_CHUNK_TOKENS), all_ids.split(_CHUNK_TOKENS), strict=True)
    logits = ((functional.linear(states, student.projection).float(), ids) for states, ids in parts)
    nats = torch.cat([functional.cross_entropy(of_part, ids, reduction="none") for of_part, ids in logits])
    yield from nats.double().split([len(ids) for ids in targets])


def _padded(audio: Sequence[torch.Tensor]) -> EncoderOutput:
    lengths = torch.tensor([len(states) for states in audio], device=audio[0].device)
    states = torch.nn.utils.rnn.pad_sequence(list(audio), batch_first=True)
    inside = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
    return EncoderOutput(states, inside=None if bool(inside.all()) else inside)


def _stacked(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    length = max(map(len, rows))  # the LLM is causal: padding at the end changes no earlier position
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)
