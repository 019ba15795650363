"""Costs of a Whisper and of each part: parameters, and multiply-adds for a typical clip, computed from its config."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group
from transformers import WhisperConfig

from askd_ray.audio.units import HOP_LENGTH, PADDED_FRAMES, samples_of, window_samples
from askd_ray.config.schema import Layers, Recipe, Shrinking
from askd_ray.models.layer_map import config_after, layer_maps
from askd_ray.models.load import load_config
from askd_ray.progress import Table

CLIP_S = 5.0
N_TOKENS = 20  # decoder tokens for such a clip, with prompt and end token


@dataclass(frozen=True)
class CostItem:
    """A part of a model: its parameters, and its multiply-adds for one clip."""

    name: str
    params: int
    multiply_adds: int


def parts(config: WhisperConfig, n_frames: int, n_tokens: int = N_TOKENS) -> list[CostItem]:
    """Return the parts of a model with their costs for a window of ``n_frames`` log-mel frames and ``n_tokens`` tokens.

    The decoder decodes one token after another with a cache, as engines do. Norms, activations and softmax are not
    counted.
    """
    d, n_positions, n_vocab = config.d_model, n_frames // 2, config.vocab_size
    conv1, conv2 = 3 * config.num_mel_bins * d, 3 * d * d
    stem = conv1 + d + conv2 + d + config.max_source_positions * d + 2 * d
    embeddings = (n_vocab + config.max_target_positions) * d + 2 * d
    return [
        CostItem("encoder stem", stem, conv1 * n_frames + conv2 * n_positions),
        *(_encoder_layer(config, i, n_positions) for i in range(config.encoder_layers)),
        CostItem("token embeddings", embeddings, n_vocab * d * n_tokens),  # the table is also the output projection
        *(_decoder_layer(config, i, n_positions, n_tokens) for i in range(config.decoder_layers)),
    ]


def _encoder_layer(config: WhisperConfig, number: int, n_positions: int) -> CostItem:
    d, ffn = config.d_model, config.encoder_ffn_dim
    attention, feed_forward = 4 * d * d, 2 * d * ffn
    each = attention + feed_forward + 2 * n_positions * d  # attention scores, and the weighted sum of values
    return CostItem(f"encoder layer {number}", attention + 3 * d + feed_forward + ffn + d + 4 * d, n_positions * each)


def _decoder_layer(config: WhisperConfig, number: int, n_positions: int, n_tokens: int) -> CostItem:
    d, ffn = config.d_model, config.decoder_ffn_dim
    attention, feed_forward = 4 * d * d, 2 * d * ffn
    params = 2 * (attention + 3 * d) + feed_forward + ffn + d + 6 * d
    once = 2 * n_positions * d * d  # keys and values of the encoder states
    each = attention + attention // 2 + 2 * n_positions * d + feed_forward
    self_attention = n_tokens * (n_tokens + 1) * d  # each token attends to itself and all tokens before it
    return CostItem(f"decoder layer {number}", params, once + n_tokens * each + self_attention)


@dataclass(frozen=True)
class Cost:
    """The costs of a whole model: its parts in the trimmed window of a typical clip, and in the padded window."""

    name: str
    trimmed: list[CostItem]
    padded: list[CostItem]

    @property
    def params(self) -> int:
        """The parameters of all parts."""
        return sum(part.params for part in self.trimmed)

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """The multiply-adds of all parts, in the trimmed and in the padded window."""
        return sum(part.multiply_adds for part in self.trimmed), sum(part.multiply_adds for part in self.padded)


def costs(recipe: Recipe) -> list[Cost]:
    """Return the costs of the teacher, of the initial student, and of the student after each shrinking.

    Raises :class:`AskdError` when the recipe's layers do not exist or cannot be merged.
    """
    n_frames = window_samples(samples_of(CLIP_S), recipe.window.silence_s) // HOP_LENGTH
    teacher = load_config(recipe.teacher.model)
    config = load_config(recipe.student.init) if recipe.student.init else teacher
    models = [("teacher", teacher)]
    names = ["student", *(_name(step) for step in recipe.student.shrink)]
    for name, layer_map in zip(names, layer_maps(recipe.student, config), strict=True):
        config = config_after(config, layer_map)
        models.append((name, config))
    return [Cost(name, parts(c, n_frames), parts(c, PADDED_FRAMES)) for name, c in models]


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
    window = f"{CLIP_S + recipe.window.silence_s:g} s"
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
