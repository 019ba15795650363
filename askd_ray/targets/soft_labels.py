"""Soft labels: the teacher's top-k log-probabilities for every target token, and the probability of the rest.

The teacher gets the clean clip in its padded 30 s window and is forced along the target: the reference text, or its
own transcript. Labels hold ``log_softmax(logits / T)``, so they are valid for one temperature. With ``targets.states``
they also hold its decoder states.

On a GPU the teacher runs in float16. Its log-probabilities are computed in float32 from the last states.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.config.schema import Recipe
from askd_ray.data.labels import LabelKey, SoftLabels, StatesShape
from askd_ray.data.prefetch import prefetch
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.divergence.buckets import to_buckets
from askd_ray.errors import AskdError
from askd_ray.models.engine import Engine
from askd_ray.models.llm import load_chat_tokens
from askd_ray.models.load import load_config, load_whisper
from askd_ray.models.reference import fingerprint, resolve
from askd_ray.models.windows import encode
from askd_ray.targets.pseudo_label import Target, is_pseudo_labelled, pseudo_target, teacher_engine, text_target
from askd_ray.text.tokens import Tokens
from askd_ray.torch_setup import inference_dtype, usable_device

_THREADS = {"cpu": 1, "cuda": 4}  # that make the next batches: a GPU is faster than one of them


def label_key(recipe: Recipe) -> LabelKey:
    """Return the settings that decide the labels of a recipe, besides the utterances (they have a content hash)."""
    if recipe.student.reader == "llm":
        return _llm_label_key(recipe)
    targets = recipe.targets
    other = {"kind", "prompt", "states"}
    pseudo = targets.model_dump(mode="json", exclude=other) if recipe.has_pseudo_labels else {}
    prompt = Tokens(resolve(recipe.teacher.model)).prompt(prompt=targets.prompt, timestamps=targets.timestamps)
    return {
        "format": 5,
        "teacher": fingerprint(recipe.teacher.model),
        "targets": targets.kind,
        **pseudo,
        "prompt": " ".join(targets.prompt.split()),
        "prompt_ids": list(prompt),  # the ids decide the labels; the prompt's text is for messages
        "temperature": recipe.objective.temperature.start if not recipe.teacher.online else None,
        "top_k": kept_tokens(recipe),
        # Not "none": labels with states also serve a recipe that reads none.
        **({"states": targets.states} if targets.states != "none" else {}),
    }


def _llm_label_key(recipe: Recipe) -> LabelKey:
    """Return the key of the labels of a student's LLM; its prompt includes the turns before the transcript."""
    llm = recipe.student.llm.model
    return {
        "format": 5,
        "teacher": fingerprint(llm),
        "targets": recipe.targets.kind,
        "prompt": "",
        "prompt_ids": list(load_chat_tokens(llm).reading("")),
        "temperature": recipe.objective.temperature.start,
        "top_k": kept_tokens(recipe),
    }


def kept_tokens(recipe: Recipe) -> int:
    """Return the number of the teacher's log-probabilities that labels keep per token; 0 for an online teacher."""
    return 0 if recipe.teacher.online else recipe.teacher.top_k


def kept_states(recipe: Recipe) -> StatesShape:
    """Return the shape of the decoder states that labels keep per token."""
    if recipe.targets.states == "none":
        return 0, 0
    config = load_config(recipe.teacher.model)
    return config.decoder_layers if recipe.targets.states == "all" else 1, config.d_model


def load_teacher(recipe: Recipe) -> tuple[WhisperForConditionalGeneration, Tokens]:
    """Load the teacher with its tokens: in float32 on the CPU, or in float16 on the GPU of this process.

    Raises :class:`AskdError` when there is no such model, its files are damaged, or there is no GPU.
    """
    model, tokens = load_whisper(recipe.teacher.model)
    for_inference(model, recipe)
    return model, tokens


def for_inference(model: WhisperForConditionalGeneration, recipe: Recipe) -> None:
    """Move a model to the device of the recipe's stages, in the precision in which that runs models."""
    device = torch.device(usable_device(recipe.train.workers.gpu))
    cast(torch.nn.Module, model).to(device, inference_dtype(device))


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

    Raises :class:`AskdError` when the audio of a shard cannot be decoded, or when a decoder state is too large for
    float16.
    """
    engine = engine or (teacher_engine(recipe) if recipe.has_pseudo_labels else None)
    sizes = model.config.max_target_positions, kept_states(recipe)
    labels = [_draft(tokens, u, text_target(u, tokens), recipe, *sizes) for u in utterances]
    todo = [i for i, u in enumerate(utterances) if is_pseudo_labelled(u, recipe) or _is_taught(labels[i], recipe)]
    todo.sort(key=lambda i: utterances[i].duration_s)  # texts of similar length have less padding
    batches = [
        todo[start : start + recipe.teacher.batch_size] for start in range(0, len(todo), recipe.teacher.batch_size)
    ]
    projection = model.proj_out.weight.float()

    def log_mel_of(rows: Sequence[int]) -> torch.Tensor:
        return log_mel_padded([waveform_of(utterances[i]) for i in rows], model.config.num_mel_bins)

    threads = _THREADS[model.device.type]
    log_mels = prefetch([partial(log_mel_of, rows) for rows in batches], threads + 1, threads)
    for rows, log_mel in zip(batches, log_mels, strict=True):
        encoded = encode(model.model.encoder, log_mel.to(model.device, model.dtype)).states
        if engine is not None:
            for i, target in _pseudo_targets(rows, utterances, encoded, recipe, tokens, engine):
                labels[i] = _draft(tokens, utterances[i], target, recipe, *sizes)
        taught = [n for n, i in enumerate(rows) if _is_taught(labels[i], recipe)]
        states = forced_states(model, encoded[taught], [labels[rows[n]] for n in taught])
        for i, clip_states in zip((rows[n] for n in taught), states, strict=True):
            labels[i] = with_soft_labels(labels[i], functional.linear(clip_states[-1].float(), projection), recipe)
            if n_layers := sizes[1][0]:
                kept = _in_float16(clip_states[-n_layers:], utterances[i].id, recipe)
                labels[i] = dataclasses.replace(labels[i], states=kept)
    return labels


def _is_taught(label: SoftLabels, recipe: Recipe) -> bool:
    """Whether the labels get the teacher's probabilities."""
    return label.has_teacher and not label.left_out and not recipe.teacher.online


def _pseudo_targets(
    rows: Sequence[int],
    utterances: Sequence[Utterance],
    encoded: torch.Tensor,
    recipe: Recipe,
    tokens: Tokens,
    engine: Engine,
) -> Iterator[tuple[int, Target]]:
    """Yield the rows that the teacher transcribes, with its filtered transcripts, by their encoder states."""
    pseudo = [(n, i) for n, i in enumerate(rows) if is_pseudo_labelled(utterances[i], recipe)]
    if not pseudo:
        return
    states = encoded[[n for n, _ in pseudo]].float().cpu().numpy()
    transcripts = engine.transcribe_states(states, [utterances[i].language for _, i in pseudo])
    for (_, i), transcript in zip(pseudo, transcripts, strict=True):
        yield i, pseudo_target(utterances[i], transcript, recipe, tokens)


def forced_logits(
    model: WhisperForConditionalGeneration, log_mel: torch.Tensor, labels: Sequence[SoftLabels]
) -> Iterator[torch.Tensor]:
    """Yield a model's logits ``(n_tokens, n_vocab)`` along the targets of each window ``(batch, n_mels, n_frames)``."""
    projection = model.proj_out.weight.float()
    for states in forced_states(
        model, encode(model.model.encoder, log_mel.to(model.device, model.dtype)).states, labels
    ):
        yield functional.linear(states[-1].float(), projection)


def forced_states(
    model: WhisperForConditionalGeneration, encoded: torch.Tensor, labels: Sequence[SoftLabels]
) -> Iterator[torch.Tensor]:
    """Yield a model's decoder states ``(n_layers, n_tokens, d_model)`` along the targets of each clip.

    ``encoded`` (batch, positions, d_model): the encoder states. The last layer's states are those after the final layer
    norm, which the projection turns into logits. The decoder runs on all clips at once; logits are large, so the caller
    computes them clip by clip.
    """
    if not labels:
        return
    inputs = [[*label.prompt_ids, *label.target_ids[:-1].tolist()] for label in labels]
    length = max(len(row) for row in inputs)
    # The decoder is causal: padding at the end does not change earlier positions.
    ids = torch.tensor([row + [0] * (length - len(row)) for row in inputs], device=model.device)
    decoded = model.model.decoder(
        input_ids=ids, encoder_hidden_states=encoded, use_cache=False, output_hidden_states=True
    )
    assert decoded.hidden_states is not None
    for i, label in enumerate(labels):
        first = len(label.prompt_ids) - 1  # the last prompt token predicts the first target
        positions = slice(first, first + len(label.target_ids))
        yield torch.stack([states[i, positions] for states in decoded.hidden_states[1:]])


def _draft(
    tokens: Tokens, utterance: Utterance, target: Target, recipe: Recipe, n_positions: int, states_shape: StatesShape
) -> SoftLabels:
    """Return the labels of an utterance with its targets, still without the teacher's probabilities and states."""
    prompt = tokens.prompt(utterance.language, recipe.targets.prompt, recipe.targets.timestamps)
    target_ids = [*target.token_ids, tokens.end]
    too_long = len(prompt) + len(target_ids) > n_positions
    left_out = target.left_out or ("too long" if too_long else "")
    text = tokens.decode(list(target.token_ids))
    return draft_labels(utterance, prompt, target_ids, (left_out, text), kept_tokens(recipe), states_shape)


def draft_labels(
    utterance: Utterance,
    prompt: tuple[int, ...],
    target_ids: Sequence[int],
    why_and_text: tuple[str, str],
    top_k: int,
    states_shape: StatesShape = (0, 0),
) -> SoftLabels:
    """Return labels with targets, still without the teacher's probabilities and states.

    ``why_and_text``: the reason for which the utterance is left out, or "", and the text of its targets.
    """
    left_out, text = why_and_text
    n_tokens = 0 if left_out else len(target_ids)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=prompt,
        target_ids=np.asarray(target_ids[:n_tokens], np.int32),
        left_out=left_out,
        text="" if left_out else text,
        top_ids=np.zeros((n_tokens, top_k), np.uint16),
        top_log_probs=np.zeros((n_tokens, top_k), np.float16),
        rest_log_prob=np.zeros(n_tokens, np.float16),
        token_loss=np.zeros(n_tokens, np.float16),
        states=np.zeros((n_tokens, *states_shape), np.float16),
        # Where nobody speaks, the teacher invents words; dev needs texts only.
        has_teacher=utterance.derived != "non_speech" and utterance.split != "dev",
    )


def with_soft_labels(draft: SoftLabels, logits: torch.Tensor, recipe: Recipe) -> SoftLabels:
    """Return labels with the teacher's probabilities; ``logits`` (n_tokens, n_vocab) float32 along the targets."""
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


def _in_float16(states: torch.Tensor, utterance: str, recipe: Recipe) -> NDArray[np.float16]:
    """Return decoder states ``(n_layers, n_tokens, d_model)`` as labels keep them: (n_tokens, n_layers, d_model)."""
    kept = states.transpose(0, 1).half().cpu().numpy()
    if not np.isfinite(kept).all():
        raise AskdError(
            f"utterance {utterance}: a decoder state of {recipe.teacher.model} is not finite in float16 (largest: "
            f"{states.abs().max().item():g}, float16 ends at 65504): set targets.states=last, or teacher.online=true"
        )
    return kept
