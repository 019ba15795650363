"""The teacher's top-k log-probabilities for every target token, and the mass of the rest.

The teacher hears the clean clip in its padded 30 s window and is forced along the reference text. The temperature is
baked in: what is kept is ``log_softmax(logits / T)``.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES
from askd_ray.config.schema import Teacher
from askd_ray.data.labels import LabelKey, SoftLabels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.load import fingerprint, resolve
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens


def label_key(teacher: Teacher) -> LabelKey:
    """Return what the labels of a teacher hang on, besides the utterance itself (that is its content hash)."""
    return {
        "teacher": fingerprint(teacher.model),
        "prompt": list(Tokens(resolve(teacher.model)).prompt()),
        "temperature": teacher.temperature,
        "top_k": teacher.top_k,
    }


@torch.no_grad()
def label(
    model: WhisperForConditionalGeneration, tokens: Tokens, utterances: Sequence[Utterance], settings: Teacher
) -> list[SoftLabels]:
    """Return the teacher's soft labels of utterances, in their order; batches of ``settings.batch_size``.

    An utterance whose text needs more positions than the model has gets empty labels: the caller counts them.

    Raises :class:`AskdError` when the audio of a shard cannot be decoded.
    """
    labels: dict[int, SoftLabels] = {}
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].text))  # texts alike in length: less padding
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        for i, made in zip(rows, _label_batch(model, tokens, [utterances[i] for i in rows], settings), strict=True):
            labels[i] = made
    return [labels[i] for i in range(len(utterances))]


def _label_batch(
    model: WhisperForConditionalGeneration, tokens: Tokens, utterances: Sequence[Utterance], settings: Teacher
) -> list[SoftLabels]:
    prompts = [tokens.prompt(u.language) for u in utterances]
    targets = [[*tokens.encode(u.text), tokens.end] for u in utterances]
    for prompt, target in zip(prompts, targets, strict=True):
        if len(prompt) + len(target) > model.config.max_target_positions:
            target.clear()
    inputs = [[*p, *t[:-1]] for p, t in zip(prompts, targets, strict=True)]
    length = max(len(row) for row in inputs)
    ids = torch.tensor([row + [tokens.end] * (length - len(row)) for row in inputs], device=model.device)
    waveforms = [waveform_of(u) for u in utterances]
    log_mel = log_mel_windows(waveforms, [PADDED_SAMPLES] * len(waveforms), model.config.num_mel_bins)
    states = encode(model, log_mel.to(model.device))
    hidden = model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    made: list[SoftLabels] = []
    for i, (utterance, prompt, target) in enumerate(zip(utterances, prompts, targets, strict=True)):
        at = slice(len(prompt) - 1, len(prompt) - 1 + len(target))
        logits = model.proj_out(hidden[i, at]).float()  # (n_tokens, n_vocab), one utterance at a time: it is large
        made.append(_soft_labels(utterance, logits, target, settings))
    return made


def _soft_labels(utterance: Utterance, logits: torch.Tensor, target: list[int], settings: Teacher) -> SoftLabels:
    log_probs = torch.log_softmax(logits / settings.temperature, dim=-1)
    top = log_probs.topk(settings.top_k, dim=-1)
    rest = log_probs.scatter(1, top.indices, -torch.inf).logsumexp(dim=-1)
    wanted = torch.tensor(target, dtype=torch.long, device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits, wanted).item() if target else 0.0
    return SoftLabels(
        content_hash=utterance.content_hash,
        target_ids=np.asarray(target, np.int32),
        top_ids=top.indices.int().cpu().numpy(),
        top_log_probs=top.values.half().cpu().numpy(),
        rest_log_prob=rest.half().cpu().numpy(),
        teacher_loss=loss,
    )
