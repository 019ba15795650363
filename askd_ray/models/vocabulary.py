"""Removes tokens from a Whisper: rows of its embeddings, and all ids in its configs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.files import atomic_path, cache_root, digest, read_json
from askd_ray.models.empty import empty_whisper
from askd_ray.models.reference import resolve
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import PrunedVocabulary, shared_tokens

_EMBEDDINGS = ("model.decoder.embed_tokens.weight", "proj_out.weight")  # tied
_IDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "no_timestamps_token_id",
    "prev_sot_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_decoder_ids",
    "lang_to_id",
    "task_to_id",
)
"""The settings of Whisper's configs that hold tokens: one, a list, pairs of a position and a token, or by name."""


def vocabulary_of_init(recipe: Recipe) -> PrunedVocabulary | None:
    """Return the smaller vocabulary that ``student.init`` was trained with; None if it has all tokens of the teacher.

    Raises :class:`AskdError` when it has others, and when ``student.vocabulary`` keeps another number of them.
    """
    init, teacher = recipe.student.init, recipe.teacher.model
    if init is None:
        return None
    vocabulary = shared_tokens(Tokens(resolve(teacher)), Tokens(resolve(init)))
    if vocabulary is None:
        raise AskdError(
            f"student.init = {init!r}: its vocabulary is not that of the teacher {teacher}; soft labels "
            "need one vocabulary: both English-only or both multilingual, of the same generation"
        )
    if vocabulary.n_removed == 0:
        return None
    n_kept, settings = len(vocabulary.token_ids), recipe.student.vocabulary
    if recipe.student.reader != "whisper":
        raise AskdError(
            f"student.init = {init!r} has {n_kept} of the teacher's {vocabulary.tokens.end} text tokens: "
            f"student.reader={recipe.student.reader} needs all of them"
        )
    if settings is None or settings.keep != n_kept:
        raise AskdError(
            f"student.init = {init!r} has {n_kept} of the teacher's {vocabulary.tokens.end} text tokens: "
            f"set student.vocabulary.keep={n_kept} to train on with these"
        )
    return vocabulary


def pruned_config(config: WhisperConfig, vocabulary: PrunedVocabulary) -> WhisperConfig:
    """Return the config of a model with a smaller vocabulary."""
    changed = copy.deepcopy(config)
    _map_ids(changed, vocabulary.student_id)
    changed.vocab_size -= vocabulary.n_removed
    return changed


def prune(model: WhisperForConditionalGeneration, vocabulary: PrunedVocabulary) -> WhisperForConditionalGeneration:
    """Return a model with the tokens of a vocabulary, on the CPU in evaluation mode; frozen parameters stay frozen.

    Its logits of a token are those of the whole model. The generation config names only tokens that it has.
    """
    student = empty_whisper(pruned_config(model.config, vocabulary))
    student.generation_config = copy.deepcopy(model.generation_config)
    _map_ids(student.generation_config, vocabulary.student_id)
    rows = torch.tensor([*vocabulary.token_ids, *range(vocabulary.tokens.end, model.config.vocab_size)])
    weights = model.state_dict()
    student.load_state_dict({name: w[rows] if name in _EMBEDDINGS else w for name, w in weights.items()}, strict=True)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(trained[name])
    return student.eval()


def pruned_tokens(vocabulary: PrunedVocabulary) -> Tokens:
    """Return the tokenizer of a smaller vocabulary; its file lies in the cache."""
    content = vocabulary.tokenizer_json
    file = cache_root() / "tokenizers" / f"{digest(content.decode())}.json"
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
    return Tokens(file)


def suppressed_tokens(reference: str) -> set[int]:
    """Return the tokens that no engine writes with a model, by its generation config.

    A smaller vocabulary keeps them: engines find some of them again by their text, and the first piece of such a text
    may be a byte that others need.
    """
    folder = resolve(reference)
    settings = _read(folder / "generation_config.json") | _read(folder / "config.json")
    return {i for name in ("suppress_tokens", "suppress_ids") for i in settings.get(name) or []}


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _map_ids(config: WhisperConfig | GenerationConfig, student_id: Callable[[int], int | None]) -> None:
    """Replace the tokens in a config; lists lose those that the student does not have."""

    def mapped(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mapped(token) for name, token in value.items()}
        if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
            return [[position, mapped(token)] for position, token in value]
        if isinstance(value, list | tuple):
            return [i for token in value if (i := student_id(token)) is not None]
        return None if value is None else student_id(value)

    for name in _IDS:
        if getattr(config, name, None) is not None:
            setattr(config, name, mapped(getattr(config, name)))
