"""The teacher's top-k log-probabilities for every target token, and the mass of the rest.

The teacher hears the clean clip in its padded 30 s window and is forced along the reference text. The temperature is
baked in: what is kept is ``log_softmax(logits / T)``.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, SoftLabels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.models.load import fingerprint, resolve
from askd_ray.models.windows import encode
from askd_ray.text.tokens import Tokens


def label_key(recipe: Recipe) -> LabelKey:
    """Return what the labels of a recipe hang on, besides the utterance itself (that is its content hash)."""
    return {
        "format": 2,
        "teacher": fingerprint(recipe.teacher.model),
        "prompt": list(Tokens(resolve(recipe.teacher.model)).prompt()),
        "temperature": recipe.objective.temperature.start if not recipe.teacher.online else None,
        "top_k": kept_tokens(recipe),
    }


def kept_tokens(recipe: Recipe) -> int:
    """Return how many of the teacher's log-probabilities are kept a token: none of an online teacher's."""
    return 0 if recipe.teacher.online else recipe.teacher.top_k


@torch.no_grad()
def label(
    model: WhisperForConditionalGeneration, tokens: Tokens, utterances: Sequence[Utterance], recipe: Recipe
) -> list[SoftLabels]:
    """Return the teacher's soft labels of utterances, in their order; batches of ``teacher.batch_size``.

    An utterance whose text needs more positions than the model has is left out: its labels are empty and say why.
    For an online teacher only the targets are written, and the model does not run.

    Raises :class:`AskdError` when the audio of a shard cannot be decoded.
    """
    labels: dict[int, SoftLabels] = {}
    order = sorted(range(len(utterances)), key=lambda i: len(utterances[i].text))  # texts alike in length: less padding
    for start in range(0, len(order), recipe.teacher.batch_size):
        rows = order[start : start + recipe.teacher.batch_size]
        for i, made in zip(rows, _label_batch(model, tokens, [utterances[i] for i in rows], recipe), strict=True):
            labels[i] = made
    return [labels[i] for i in range(len(utterances))]


def _label_batch(
    model: WhisperForConditionalGeneration, tokens: Tokens, utterances: Sequence[Utterance], recipe: Recipe
) -> list[SoftLabels]:
    drafts = [_draft(model, tokens, utterance) for utterance in utterances]
    if recipe.teacher.online:
        return drafts
    inputs = [[*d.prompt_ids, *d.target_ids[:-1].tolist()] for d in drafts]
    length = max(len(row) for row in inputs)
    ids = torch.tensor([row + [tokens.end] * (length - len(row)) for row in inputs], device=model.device)
    waveforms = [waveform_of(u) for u in utterances]
    log_mel = log_mel_windows(waveforms, [PADDED_SAMPLES] * len(waveforms), model.config.num_mel_bins)
    states = encode(model, log_mel.to(model.device)).states
    hidden = model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    made: list[SoftLabels] = []
    for i, draft in enumerate(drafts):
        at = slice(len(draft.prompt_ids) - 1, len(draft.prompt_ids) - 1 + len(draft.target_ids))
        logits = model.proj_out(hidden[i, at]).float()  # (n_tokens, n_vocab), one utterance at a time: it is large
        made.append(_with_soft_labels(draft, logits, recipe))
    return made


def _draft(model: WhisperForConditionalGeneration, tokens: Tokens, utterance: Utterance) -> SoftLabels:
    """Return the targets of an utterance, without what the teacher says of them."""
    prompt = tokens.prompt(utterance.language)
    target = [*tokens.encode(utterance.text), tokens.end]
    too_long = len(prompt) + len(target) > model.config.max_target_positions
    n_tokens = 0 if too_long else len(target)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=prompt,
        target_ids=np.asarray(target[:n_tokens], np.int32),
        left_out="too long" if too_long else "",
        top_ids=np.zeros((n_tokens, 0), np.uint16),
        top_log_probs=np.zeros((n_tokens, 0), np.float16),
        rest_log_prob=np.zeros(n_tokens, np.float16),
        token_loss=np.zeros(n_tokens, np.float16),
    )


def _with_soft_labels(draft: SoftLabels, logits: torch.Tensor, recipe: Recipe) -> SoftLabels:
    log_probs = torch.log_softmax(logits / recipe.objective.temperature.start, dim=-1)
    top = log_probs.topk(recipe.teacher.top_k, dim=-1)
    rest = log_probs.scatter(1, top.indices, -torch.inf).logsumexp(dim=-1)
    wanted = torch.from_numpy(draft.target_ids.astype(np.int64)).to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return dataclasses.replace(
        draft,
        top_ids=top.indices.cpu().numpy().astype(np.uint16),
        top_log_probs=top.values.half().cpu().numpy(),
        rest_log_prob=rest.half().cpu().numpy(),
        token_loss=loss.half().cpu().numpy(),
    )
