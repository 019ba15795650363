"""Costs of a Whisper and of each part: parameters, and multiply-adds for a typical clip, from its config."""

from collections.abc import Sequence

import torch
from rich.console import Group
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperConfig, WhisperForConditionalGeneration

from askd_ray.audio.units import FRAMES_PER_S, HOP_LENGTH, PADDED_FRAMES, DecodingWindow, samples_of
from askd_ray.config.schema import Recipe
from askd_ray.config.student import Compressor, Layers, Shrinking
from askd_ray.models.compressor import build_compressor
from askd_ray.models.layer_map import config_after, layer_maps
from askd_ray.models.llm import llm_params
from askd_ray.models.load import load_config
from askd_ray.models.reference import resolve
from askd_ray.models.state_compressor import ceil_div
from askd_ray.models.student import Cost, CostItem
from askd_ray.models.vocabulary import pruned_config
from askd_ray.models.windows import encode
from askd_ray.progress import Table
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import first_tokens

CLIP_S = 5.0
N_TOKENS = 20  # decoder tokens for such a clip, with prompt and end token


def parts(
    config: WhisperConfig, n_frames: int, n_tokens: int = N_TOKENS, settings: Compressor | None = None
) -> list[CostItem]:
    """Return the parts of a model with their costs for a window of ``n_frames`` log-mel frames and ``n_tokens`` tokens.

    torch counts the matrix products and convolutions of one pass of a model without weights; norms, activations and
    softmax are not counted. The pass counts all pairs of tokens in self-attention, where an engine's decoder attends to
    earlier tokens only: at most 0.1 % of the whole. ``settings``: the compressor between encoder and decoder.
    """
    with torch.device("meta"), torch.no_grad():
        model = WhisperForConditionalGeneration(config)
        compressor = None
        if settings is not None and settings.kind != "none":
            compressor = build_compressor(settings, config).requires_grad_(False)  # torch traces slices of parameters
        log_mel, ids = torch.empty(1, config.num_mel_bins, n_frames), torch.empty(1, n_tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            encoded = encode(model.model.encoder, log_mel)
            states = (compressor(encoded) if compressor is not None else encoded).states
            # Without a cache, transformers reads the values of its mask, which has none on the meta device.
            decoded = model.model.decoder(input_ids=ids, encoder_hidden_states=states, use_cache=True)
            model.proj_out(decoded.last_hidden_state)
    # Modules that are called directly are counted under the names of their classes. A multiply-add is two operations.
    counted = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    encoder, decoder = model.model.encoder, model.model.decoder
    encoder_layer = counted["WhisperEncoderLayer"] // len(encoder.layers)
    return [
        CostItem("encoder stem", _params(encoder) - _params(encoder.layers), counted["Conv1d"]),
        *(CostItem(f"encoder layer {i}", _params(layer), encoder_layer) for i, layer in enumerate(encoder.layers)),
        *(CostItem("compressor", _params(m), counted[type(m).__name__]) for m in (compressor,) if m is not None),
        # The table is also the output projection.
        CostItem("token embeddings", _params(decoder) - _params(decoder.layers), counted["Linear"]),
        *(
            CostItem(f"decoder layer {i}", _params(layer), counted[f"WhisperDecoder.layers.{i}"])
            for i, layer in enumerate(decoder.layers)
        ),
    ]


def flops(config: WhisperConfig, n_frames: int, n_tokens: int, passes: int = 1) -> int:
    """Return the FLOPs of one clip, two for each multiply-add of :func:`parts`.

    ``passes``: 1 for a forward pass; 3 for a training, whose backward pass takes twice as much. What
    ``gradient_checkpointing`` computes a second time does not count.
    """
    return 2 * passes * sum(part.multiply_adds for part in parts(config, n_frames, n_tokens))


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def costs(recipe: Recipe) -> list[Cost]:
    """Return the costs of the teacher, of the initial student, and of the student after each shrinking.

    Those of a CTC head are not counted: its size is that of the vocabulary of the labels. Raises :class:`AskdError`
    when the recipe's layers do not exist or cannot be merged.
    """
    teacher = load_config(recipe.teacher.model)
    config = load_config(recipe.student.init) if recipe.student.init else teacher
    if recipe.student.vocabulary is not None and config.vocab_size == teacher.vocab_size:
        # Which tokens are kept costs the same.
        config = pruned_config(
            config, first_tokens(Tokens(resolve(recipe.teacher.model)), recipe.student.vocabulary.keep)
        )
    models = [("teacher", teacher)]
    names = ["student", *(_name(step) for step in recipe.student.shrink)]
    for name, layer_map in zip(names, layer_maps(recipe.student, config), strict=True):
        config = config_after(config, layer_map)
        models.append((name, config))
    made: list[Cost] = []
    for number, (name, c) in enumerate(models):
        settings = recipe.student.compressor if number > 0 else None
        trimmed, padded = (parts(c, n, settings=settings) for n in (_window_frames(recipe, c), PADDED_FRAMES))
        if number > 0 and recipe.student.reader in ("ctc", "llm"):
            trimmed, padded = (_without_decoder(of) for of in (trimmed, padded))
        if number > 0 and recipe.student.reader == "llm":
            windows = _window_frames(recipe, c), PADDED_FRAMES
            trimmed, padded = ([*of, _llm(recipe, n)] for of, n in zip((trimmed, padded), windows, strict=True))
        made.append(Cost(name, trimmed, padded))
    return made


def _without_decoder(of_model: Sequence[CostItem]) -> list[CostItem]:
    return [part for part in of_model if part.name.startswith(("encoder", "compressor"))]


def _llm(recipe: Recipe, n_frames: int) -> CostItem:
    """Return the costs of a student's LLM: its parameters, once for each state and token."""
    assert recipe.student.compressor.kind != "none"
    params = llm_params(recipe.student.llm.model)
    return CostItem("LLM", params, params * (ceil_div(n_frames // 2, recipe.student.compressor.stride) + N_TOKENS))


def _window_frames(recipe: Recipe, config: WhisperConfig) -> int:
    return DecodingWindow.of(recipe.window).samples(samples_of(CLIP_S), config.num_mel_bins) // HOP_LENGTH


def _name(step: Shrinking) -> str:
    changes = [f"{part} {_layers_text(layers)}" for part, layers in _changed(step)]
    return f"from {step.at:.0%} on, {' and '.join(changes)}"


def _changed(step: Shrinking) -> list[tuple[str, Layers]]:
    changes = (("encoder", step.encoder_layers), ("decoder", step.decoder_layers))
    return [(part, layers) for part, layers in changes if layers is not None]


def _layers_text(layers: Layers) -> str:
    return ", ".join(str(entry) if isinstance(entry, int) else "+".join(map(str, entry)) for entry in layers)


def line(models: Sequence[Cost]) -> str:
    """Return the costs of the final student, compared with the teacher, in one line."""
    teacher, student = models[0], models[-1]
    (teacher_trimmed, teacher_padded), (student_trimmed, _) = teacher.multiply_adds, student.multiply_adds
    return (
        f"student: {_millions(student.params)} parameters ({student.params / teacher.params:.0%} of the teacher's), "
        f"{_billions(student_trimmed)} multiply-adds for a clip of {CLIP_S:g} s (teacher: "
        f"{_billions(teacher_trimmed)} in the same window, {_billions(teacher_padded)} in 30 s)"
    )


def table(recipe: Recipe) -> Group:
    """Return the costs of a recipe's student as a table: the initial student's parts, then totals of :func:`costs`.

    Raises :class:`AskdError` when the recipe's layers do not exist or cannot be merged.
    """
    models = costs(recipe)
    teacher, student = models[0], models[1]
    window = f"{_window_frames(recipe, load_config(recipe.teacher.model)) / FRAMES_PER_S:g} s"
    shown = Table(title=f"The student, and multiply-adds for a clip of {CLIP_S:g} s and {N_TOKENS} tokens")
    shown.add_column("")
    for column in ("parameters", "share", f"in {window}", "share", "in 30 s", "share"):
        shown.add_column(column, justify="right")
    for trimmed, padded in zip(student.trimmed, student.padded, strict=True):
        shown.add_row(trimmed.name, *_cells(trimmed.params, (trimmed.multiply_adds, padded.multiply_adds), student))
    shown.add_section()
    for model in (*models[1:], teacher):
        shown.add_row(model.name, *_cells(model.params, model.multiply_adds, teacher))
    return Group(shown, "A part's share is of the student, a total's share is of the teacher.", line(models))


def _cells(params: int, multiply_adds: tuple[int, int], whole: Cost) -> list[str]:
    numbers = [(params, whole.params, _millions)]
    numbers += [(n, total, _billions) for n, total in zip(multiply_adds, whole.multiply_adds, strict=True)]
    return [text for n, total, written in numbers for text in (written(n), f"{n / total:.1%}")]


def _millions(n: int) -> str:
    return f"{n / 1e6:.2f} M"


def _billions(n: int) -> str:
    return f"{n / 1e9:.2f} G"
