"""The Whisper student: a Whisper on trimmed windows, with the layers that the recipe keeps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.models import cost
from askd_ray.models.empty import empty_whisper
from askd_ray.models.generate import greedy
from askd_ray.models.layer_map import apply_layer_map, build_student, layer_maps
from askd_ray.models.load import load_config, load_whisper, save_whisper
from askd_ray.models.reference import resolve
from askd_ray.models.state_pairs import decoder_pairs
from askd_ray.models.student import Cost, DecoderOutput, EncoderOutput, StudentModel
from askd_ray.models.vocabulary import prune, pruned_tokens, vocabulary_of_init
from askd_ray.models.windows import WindowedWhisper, encode
from askd_ray.text.tokens import Tokens
from askd_ray.text.vocabulary import PrunedVocabulary

_ENCODER, _EMBEDDINGS = "whisper.model.encoder.", "whisper.model.decoder.embed_"
_SINUSOIDS = "whisper.model.encoder.embed_positions.weight"  # computed, not learnt


class WhisperStudent(WindowedWhisper, StudentModel):
    """A Whisper that is trained.

    ``widths``: the teacher's width for each of the ``tapped_layers``; ``decoder_width``: its width for all
    ``decoder_layers``. Where it differs from the student's, a learnt projection maps the states to it. These
    projections are not saved with the student.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tapped_layers: Sequence[int] = (),
        widths: Sequence[int] = (),
        shrunk: int = 0,
        decoder_layers: Mapping[int, int] | None = None,
        decoder_width: int = 0,
    ):
        super().__init__(model, tapped_layers, decoder_layers)
        self.shrunk = shrunk
        self.widths = tuple(widths)
        width = model.config.d_model
        self.to_widths = nn.ModuleList(nn.Identity() if w == width else nn.Linear(width, w) for w in widths)
        self.decoder_width = decoder_width
        # By the teacher's layer: a shrinking changes the numbers of the student's layers.
        projected = self.decoder_layers if decoder_width != width else {}
        self.to_decoder_width = nn.ModuleDict({str(layer): nn.Linear(width, decoder_width) for layer in projected})

    def encode(self, log_mel: torch.Tensor, window_frames: torch.Tensor | None = None) -> EncoderOutput:
        """Return the encoder states, the tapped ones in the teacher's width."""
        encoded = super().encode(log_mel, window_frames)
        tapped = tuple(to(states) for to, states in zip(self.to_widths, encoded.tapped, strict=True))
        return replace(encoded, tapped=tapped)

    def forward(
        self,
        log_mel: torch.Tensor,
        decoder_ids: torch.Tensor,
        window_frames: torch.Tensor | None = None,
        encoded: EncoderOutput | None = None,
    ) -> DecoderOutput:
        """Return the hidden states at tokens ``(batch, length)``, the tapped ones also in the teacher's width."""
        decoded = super().forward(log_mel, decoder_ids, window_frames, encoded)
        projections = {int(layer): projection for layer, projection in self.to_decoder_width.items()}
        projected = {n: projections[n](s) if n in projections else s for n, s in decoded.tapped.items()}
        return replace(decoded, projected=projected)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by group; projections to the teacher's width belong to the decoder's group."""
        groups: dict[str, list[nn.Parameter]] = {"encoder": [], "decoder": [], "embeddings": []}
        for name, parameter in self.named_parameters():
            if name != _SINUSOIDS:
                groups[_group_of(name)].append(parameter)
        return groups

    @property
    def n_params(self) -> int:
        """The number of parameters of the Whisper."""
        return sum(parameter.numel() for parameter in self.whisper.parameters())


def _group_of(parameter: str) -> str:
    if parameter.startswith(_ENCODER):
        return "encoder"
    return "embeddings" if parameter.startswith(_EMBEDDINGS) else "decoder"


class WhisperStudentKind:
    """Builds a recipe's Whisper student, before and after each shrinking; saves, loads and decodes it.

    ``teacher_width`` is the width of an online teacher's encoder states, for the loss between encoder states.
    ``read_vocabulary`` returns the tokens of a student with ``student.vocabulary``.

    Raises :class:`AskdError` when the recipe's layers do not exist or cannot be merged or compared, and as
    :func:`~askd_ray.models.vocabulary.vocabulary_of_init` does.
    """

    def __init__(
        self, recipe: Recipe, teacher_width: int = 0, read_vocabulary: Callable[[], PrunedVocabulary] | None = None
    ):
        init, teacher = recipe.student.init, recipe.teacher.model
        self._recipe, self._width, self._read_vocabulary = recipe, teacher_width, read_vocabulary
        self._layer_maps = layer_maps(recipe.student, load_config(init or teacher))
        self._decoder_pairs = [decoder_pairs(recipe, self._layer_maps[: n + 1]) for n in range(len(self._layer_maps))]
        self._whole_tokens = Tokens(resolve(init or teacher))
        self._vocabulary_of_init = vocabulary_of_init(recipe)

    @cached_property
    def _pruned(self) -> PrunedVocabulary | None:
        if self._recipe.student.vocabulary is None:
            return None
        if self._vocabulary_of_init is not None:
            return self._vocabulary_of_init
        assert self._read_vocabulary is not None, "student.vocabulary needs the labels"
        return self._read_vocabulary()

    @cached_property
    def _tokens(self) -> Tokens:
        return self._whole_tokens if self._pruned is None else pruned_tokens(self._pruned)

    def build(self, n_shrunk: int) -> WhisperStudent:
        """Return the untrained student with the layers that it has after ``n_shrunk`` shrinkings."""
        recipe = self._recipe
        model = build_student(recipe.student, recipe.teacher.model, n_shrunk)[0]
        if self._pruned is not None and self._vocabulary_of_init is None:
            model = prune(model, self._pruned)
        return self.wrap(model, n_shrunk)

    def empty_like(self, student: WhisperStudent) -> WhisperStudent:
        """Return a student with the same tensors, on the CPU and uninitialised; it decodes like ``student``."""
        model = empty_whisper(student.whisper.config)
        model.generation_config = student.whisper.generation_config
        taps = student.decoder_layers, student.decoder_width
        return WhisperStudent(model, student.tapped_layers, student.widths, student.shrunk, *taps)

    def shrink(self, student: WhisperStudent) -> tuple[WhisperStudent, Callable[[str], Sequence[str]]]:
        """Return the student after its next shrinking, and the function from its parameters to their sources."""
        layer_map = self._layer_maps[student.shrunk + 1]
        smaller = self.wrap(apply_layer_map(student.whisper, layer_map), student.shrunk + 1)
        smaller.to_widths = student.to_widths
        for layer in smaller.to_decoder_width:
            smaller.to_decoder_width[layer] = student.to_decoder_width[layer]
        return smaller, layer_map.sources

    def save(self, student: WhisperStudent, folder: Path) -> None:
        """Write a transformers folder, atomically."""
        save_whisper(student.whisper, self._tokens, folder)

    def load(self, folder: Path, n_shrunk: int) -> WhisperStudent:
        """Return the student that :meth:`save` wrote.

        Raises :class:`AskdError` when its vocabulary is another one: that depends on the labels.
        """
        model, tokens = load_whisper(str(folder))
        if self._pruned is not None and _vocabulary(tokens) != _vocabulary(self._tokens):
            raise AskdError(f"{folder}: its vocabulary is not that of this run, whose train targets use other tokens")
        return self.wrap(model, n_shrunk)

    @torch.no_grad()
    def transcribe(self, student: WhisperStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return greedy transcripts of the states that the decoder reads.

        Decoding starts with the prompt of the recipe's targets, as in training.
        """
        targets = self._recipe.targets
        prompt = self._tokens.prompt(language, targets.prompt, targets.timestamps)
        states = student.read_by_decoder(encode(student.whisper.model.encoder, log_mel)).states
        return [self._tokens.decode(ids) for ids in greedy(student.whisper, self._tokens, log_mel, prompt, states)]

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher, of the initial student, and of the student after each shrinking."""
        return cost.costs(self._recipe)

    def wrap(self, model: WhisperForConditionalGeneration, n_shrunk: int) -> WhisperStudent:
        """Return the student around a model that has ``n_shrunk`` shrinkings behind it."""
        hidden_states = self._recipe.objective.hidden_states
        layers = hidden_states.layers if hidden_states.kind != "none" else ()
        if self._recipe.data.learns_silence:
            _allow_empty_text(model, self._tokens.end)
        if self._recipe.train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tapped_layers = [student_layer for student_layer, _ in layers]
        pairs, width = self._decoder_pairs[n_shrunk], 0
        if pairs:
            width = load_config(self._recipe.teacher.model).d_model
        return WhisperStudent(model, tapped_layers, [self._width] * len(layers), n_shrunk, pairs, width)


def _allow_empty_text(model: WhisperForConditionalGeneration, end: int) -> None:
    """Let every engine take the end token as the first one; Whisper's settings forbid it, so it must write something.

    Without it, a student that has learnt to be silent writes a lone "." where nobody speaks.
    """
    settings = model.generation_config
    settings.begin_suppress_tokens = [i for i in settings.begin_suppress_tokens or [] if i != end]


def _vocabulary(tokens: Tokens) -> dict[str, int]:
    return tokens.tokenizer.get_vocab()
