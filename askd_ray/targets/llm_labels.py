"""The labels of an LLM student: its LLM reads the transcript in place of the audio, and is forced along it.

It does so after an example turn (:mod:`askd_ray.text.chat`): SmolLM2-135M then gives the transcript 0.15 nats a token,
in place of 0.47.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch.nn import functional

from askd_ray.config.schema import Recipe
from askd_ray.data.labels import SoftLabels
from askd_ray.data.schema import Utterance
from askd_ray.models.llm import Llm, llm_dtype, load_chat_tokens, load_llm
from askd_ray.targets.soft_labels import draft_labels, kept_tokens, with_soft_labels
from askd_ray.text.chat import ChatTokens
from askd_ray.torch_setup import usable_device


def load_teacher_llm(recipe: Recipe) -> Llm:
    """Load the LLM of a recipe's student, on the device of its stages and in the precision of the training.

    Raises :class:`AskdError` when there is no such model, its files are damaged, or there is no GPU.
    """
    llm = load_llm(recipe.student.llm.model, llm_dtype(recipe))
    cast(torch.nn.Module, llm.model).to(usable_device(recipe.train.workers.gpu))
    return llm


def llm_tokenizer(recipe: Recipe) -> str:
    """Return the tokenizer.json of the LLM of a recipe's student."""
    return load_chat_tokens(recipe.student.llm.model).tokenizer.to_str()


@torch.no_grad()
def label_with_llm(llm: Llm, recipe: Recipe, utterances: Sequence[Utterance]) -> list[SoftLabels]:
    """Return the LLM's soft labels of utterances, in their order; batches of ``teacher.batch_size``.

    An utterance without a reference text is excluded, with the reason.
    """
    labels = [_draft(llm.tokens, utterance, recipe) for utterance in utterances]
    todo = [i for i, label in enumerate(labels) if label.has_teacher and not label.left_out]
    todo.sort(key=lambda i: len(labels[i].target_ids))  # texts of similar length have less padding
    for start in range(0, len(todo), recipe.teacher.batch_size):
        rows = todo[start : start + recipe.teacher.batch_size]
        for i, logits in zip(rows, _forced_logits(llm, [labels[i] for i in rows]), strict=True):
            labels[i] = with_soft_labels(labels[i], logits, recipe)
    return labels


def _draft(tokens: ChatTokens, utterance: Utterance, recipe: Recipe) -> SoftLabels:
    text = utterance.text.strip()
    left_out = "" if text else "no reference"
    target_ids = [*tokens.encode(text), tokens.end]
    return draft_labels(utterance, tokens.closing, target_ids, (left_out, text), kept_tokens(recipe))


def _forced_logits(llm: Llm, labels: Sequence[SoftLabels]) -> list[torch.Tensor]:
    """Return the logits ``(n_tokens, n_vocab)``, in float32, along the targets of each label."""
    prompts = [llm.tokens.reading(label.text) for label in labels]
    inputs = [[*prompt, *label.target_ids[:-1].tolist()] for prompt, label in zip(prompts, labels, strict=True)]
    length = max(map(len, inputs))
    device = llm.model.device
    # The LLM is causal: padding at the end does not change earlier positions.
    ids = torch.tensor([row + [0] * (length - len(row)) for row in inputs], device=device)
    hidden = llm.model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits: list[torch.Tensor] = []
    for row, prompt, label in zip(hidden, prompts, labels, strict=True):
        first = len(prompt) - 1  # the last prompt token predicts the first target
        logits.append(functional.linear(row[first : first + len(label.target_ids)], llm.model.lm_head.weight).float())
    return logits
