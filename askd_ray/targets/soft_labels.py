"""The teacher's top-k log-probabilities for every target token, and the mass of the rest.

The teacher hears the clean clip in its padded 30 s window and is forced along the target: the reference text, or what
it heard itself. The temperature is baked in: what is kept is ``log_softmax(logits / T)``.
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
from askd_ray.models.engine import Engine
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.models.windows import encode
from askd_ray.targets.buckets import to_buckets
from askd_ray.targets.pseudo_label import Target, pseudo_label, teacher_engine
from askd_ray.text.tokens import Tokens


def label_key(recipe: Recipe) -> LabelKey:
    """Return what the labels of a recipe hang on, besides the utterance itself (that is its content hash)."""
    targets = recipe.targets
    pseudo = targets.model_dump(mode="json", exclude={"kind", "prompt"}) if targets.kind == "pseudo" else {}
    prompt = Tokens(resolve(recipe.teacher.model)).prompt(prompt=targets.prompt, timestamps=targets.timestamps)
    return {
        "format": 3,
        "teacher": fingerprint(recipe.teacher.model),
        "targets": targets.kind,
        **pseudo,
        "prompt": " ".join(targets.prompt.split()),
        "prompt_ids": list(prompt),  # these count; the text before them is what a message can show
        "temperature": recipe.objective.temperature.start if not recipe.teacher.online else None,
        "top_k": kept_tokens(recipe),
    }


def kept_tokens(recipe: Recipe) -> int:
    """Return how many of the teacher's log-probabilities are kept a token: none of an online teacher's."""
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

    An utterance is left out where its target needs more positions than the model has, where it has no text to be a
    reference, and where a filter drops its pseudo-label: its labels are empty and say why. For an online teacher only
    the targets are written. ``engine`` is what writes pseudo-labels, by default :func:`teacher_engine` of the recipe.

    Raises :class:`AskdError` when the audio of a shard cannot be decoded.
    """
    if recipe.targets.kind == "pseudo":
        said = pseudo_label(engine or teacher_engine(recipe), utterances, recipe)
    else:
        said = [Target(tuple(tokens.encode(u.text)), "" if u.text else "no reference") for u in utterances]
    n_positions = model.config.max_target_positions
    labels = [_draft(tokens, u, s, recipe, n_positions) for u, s in zip(utterances, said, strict=True)]
    wanted = [] if recipe.teacher.online else [i for i, made in enumerate(labels) if not made.left_out]
    wanted.sort(key=lambda i: len(labels[i].target_ids))  # targets alike in length: less padding
    for start in range(0, len(wanted), recipe.teacher.batch_size):
        rows = wanted[start : start + recipe.teacher.batch_size]
        waveforms = [waveform_of(utterances[i]) for i in rows]
        logits = forced_logits(model, waveforms, [PADDED_SAMPLES] * len(rows), [labels[i] for i in rows])
        for i, of_one in zip(rows, logits, strict=True):
            labels[i] = _with_soft_labels(labels[i], of_one, recipe)
    return labels


def forced_logits(
    model: WhisperForConditionalGeneration,
    waveforms: Sequence[Waveform],
    windows: Sequence[int],
    labels: Sequence[SoftLabels],
) -> Iterator[torch.Tensor]:
    """Yield a model's logits ``(n_tokens, n_vocab)`` along the targets of each clip, heard in windows of these samples.

    One clip at a time, since they are large; encoder and decoder run on all clips at once.
    """
    inputs = [[*made.prompt_ids, *made.target_ids[:-1].tolist()] for made in labels]
    length = max(len(row) for row in inputs)
    ids = torch.tensor([row + [0] * (length - len(row)) for row in inputs], device=model.device)  # later: not seen
    log_mel = log_mel_windows(waveforms, windows, model.config.num_mel_bins)
    states = encode(model, log_mel.to(model.device)).states
    hidden = model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=False).last_hidden_state
    for i, made in enumerate(labels):
        first = len(made.prompt_ids) - 1  # the last prompt token predicts the first target
        yield model.proj_out(hidden[i, first : first + len(made.target_ids)]).float()


def _draft(tokens: Tokens, utterance: Utterance, said: Target, recipe: Recipe, n_positions: int) -> SoftLabels:
    """Return the targets of an utterance, without what the teacher says of them."""
    prompt = tokens.prompt(utterance.language, recipe.targets.prompt, recipe.targets.timestamps)
    target = [*said.token_ids, tokens.end]
    too_long = len(prompt) + len(target) > n_positions
    left_out = said.left_out or ("too long" if too_long else "")
    n_tokens = 0 if left_out else len(target)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=prompt,
        target_ids=np.asarray(target[:n_tokens], np.int32),
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
    wanted = torch.from_numpy(draft.target_ids.astype(np.int64)).to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    return dataclasses.replace(
        draft,
        top_ids=top.cpu().numpy().astype(np.uint16),
        top_log_probs=buckets[:, :-1],
        rest_log_prob=buckets[:, -1],
        token_loss=loss.half().cpu().numpy(),
    )
