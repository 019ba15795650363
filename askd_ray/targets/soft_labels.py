"""Soft labels: the teacher's top-k log-probabilities for every target token, and the probability of the rest.

The teacher gets the clean clip in its padded 30 s window and is forced along the target: the reference text, or its
own transcript. Labels hold ``log_softmax(logits / T)``, so they are valid for one temperature.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.decode import Waveform
from askd_ray.audio.logmel import log_mel_windows
from askd_ray.audio.units import PADDED_SAMPLES
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, SoftLabels
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.divergence.buckets import to_buckets
from askd_ray.models.engine import Engine
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.models.windows import encode
from askd_ray.targets.pseudo_label import Target, targets_of
from askd_ray.text.tokens import Tokens


def label_key(recipe: Recipe) -> LabelKey:
    """Return the settings that decide the labels of a recipe, besides the utterances (they have a content hash)."""
    targets = recipe.targets
    pseudo = targets.model_dump(mode="json", exclude={"kind", "prompt"}) if recipe.has_pseudo_labels else {}
    prompt = Tokens(resolve(recipe.teacher.model)).prompt(prompt=targets.prompt, timestamps=targets.timestamps)
    return {
        "format": 3,
        "teacher": fingerprint(recipe.teacher.model),
        "targets": targets.kind,
        **pseudo,
        "prompt": " ".join(targets.prompt.split()),
        "prompt_ids": list(prompt),  # the ids decide the labels; the prompt's text is for messages
        "temperature": recipe.objective.temperature.start if not recipe.teacher.online else None,
        "top_k": kept_tokens(recipe),
    }


def kept_tokens(recipe: Recipe) -> int:
    """Return the number of the teacher's log-probabilities that labels keep per token; 0 for an online teacher."""
    return 0 if recipe.teacher.online else recipe.teacher.top_k


@torch.no_grad()
def label(
    model: WhisperForConditionalGeneration,
    tokens: Tokens,
    utterances: Sequence[Utterance],
    recipe: Recipe,
    engine: Engine | None = None,
) -> list[SoftLabels]:
    """Return the teacher's soft labels of utterances, in their order; batches of ``teacher.batch_size``.

    An utterance is excluded if its target needs more positions than the model has, if it has no reference text, or if a
    filter drops its pseudo-label: its labels are then empty and have the reason. With an online teacher, labels hold
    only the targets. ``engine`` makes the pseudo-labels, by default :func:`teacher_engine` of the recipe.

    Raises :class:`AskdError` when the audio of a shard cannot be decoded.
    """
    targets = targets_of(utterances, recipe, tokens, engine)
    n_positions = model.config.max_target_positions
    labels = [_draft(tokens, u, t, recipe, n_positions) for u, t in zip(utterances, targets, strict=True)]
    todo = [] if recipe.teacher.online else [i for i, u in enumerate(utterances) if _has_soft_labels(u, labels[i])]
    todo.sort(key=lambda i: len(labels[i].target_ids))  # batches of similar length have less padding
    for start in range(0, len(todo), recipe.teacher.batch_size):
        rows = todo[start : start + recipe.teacher.batch_size]
        waveforms = [waveform_of(utterances[i]) for i in rows]
        logits = forced_logits(model, waveforms, [PADDED_SAMPLES] * len(rows), [labels[i] for i in rows])
        for i, clip_logits in zip(rows, logits, strict=True):
            labels[i] = _with_soft_labels(labels[i], clip_logits, recipe)
    return labels


def _has_soft_labels(utterance: Utterance, label: SoftLabels) -> bool:
    """Whether the teacher is asked: not for clips without speech, where it invents words, and not for dev."""
    return not label.left_out and utterance.derived != "non_speech" and utterance.split == "train"


def forced_logits(
    model: WhisperForConditionalGeneration,
    waveforms: Sequence[Waveform],
    windows: Sequence[int],
    labels: Sequence[SoftLabels],
) -> Iterator[torch.Tensor]:
    """Yield a model's logits ``(n_tokens, n_vocab)`` along the targets of each clip. ``windows`` are in samples.

    Encoder and decoder run on all clips at once, but logits are large and come one clip at a time.
    """
    inputs = [[*label.prompt_ids, *label.target_ids[:-1].tolist()] for label in labels]
    length = max(len(row) for row in inputs)
    # The decoder is causal: padding at the end does not change earlier positions.
    ids = torch.tensor([row + [0] * (length - len(row)) for row in inputs], device=model.device)
    log_mel = log_mel_windows(waveforms, windows, model.config.num_mel_bins)
    states = encode(model, log_mel.to(model.device)).states
    hidden = model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    for i, label in enumerate(labels):
        first = len(label.prompt_ids) - 1  # the last prompt token predicts the first target
        yield model.proj_out(hidden[i, first : first + len(label.target_ids)]).float()


def _draft(tokens: Tokens, utterance: Utterance, target: Target, recipe: Recipe, n_positions: int) -> SoftLabels:
    """Return the labels of an utterance with its targets, still without the teacher's probabilities."""
    prompt = tokens.prompt(utterance.language, recipe.targets.prompt, recipe.targets.timestamps)
    target_ids = [*target.token_ids, tokens.end]
    too_long = len(prompt) + len(target_ids) > n_positions
    left_out = target.left_out or ("too long" if too_long else "")
    n_tokens = 0 if left_out else len(target_ids)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=prompt,
        target_ids=np.asarray(target_ids[:n_tokens], np.int32),
        left_out=left_out,
        top_ids=np.zeros((n_tokens, kept_tokens(recipe)), np.uint16),
        top_log_probs=np.zeros((n_tokens, kept_tokens(recipe)), np.float16),
        rest_log_prob=np.zeros(n_tokens, np.float16),
        token_loss=np.zeros(n_tokens, np.float16),
    )


def _with_soft_labels(draft: SoftLabels, logits: torch.Tensor, recipe: Recipe) -> SoftLabels:
    log_probs = torch.log_softmax(logits / recipe.objective.temperature.start, dim=-1)
    top = log_probs.topk(recipe.teacher.top_k, dim=-1).indices
    buckets = to_buckets(log_probs, top).half().cpu().numpy()
    target_ids = torch.from_numpy(draft.target_ids.astype(np.int64)).to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits, target_ids, reduction="none")
    return dataclasses.replace(
        draft,
        top_ids=top.cpu().numpy().astype(np.uint16),
        top_log_probs=buckets[:, :-1],
        rest_log_prob=buckets[:, -1],
        token_loss=loss.half().cpu().numpy(),
    )
