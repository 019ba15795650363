"""The CTC student: Whisper's encoder on trimmed windows, and a CTC head in place of the decoder."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from askd_ray.config.schema import Recipe
from askd_ray.models import cost
from askd_ray.models.ctc import (
    CtcHead,
    CtcModel,
    initial_head,
    load_ctc,
    save_ctc,
)
from askd_ray.models.ctc_decoding import greedy_classes
from askd_ray.models.layer_map import build_student
from askd_ray.models.reference import resolve
from askd_ray.models.student import Cost, CtcStates, DecoderOutput, EncoderOutput, StudentModel
from askd_ray.models.vocabulary import vocabulary_of_init
from askd_ray.models.windows import encode, prepare_layers
from askd_ray.text.tokens import Tokens
from askd_ray.text.units import CtcVocabulary

VocabularyReader = Callable[[], CtcVocabulary]
"""Returns the vocabulary of a run's head, from its labels."""


class CtcStudent(StudentModel):
    """An encoder and a CTC head that are trained. ``layers``: the encoder layers that the head reads in training, too.

    ``n_params`` counts what the saved student has: not the norms of intermediate layers.
    """

    def __init__(self, model: CtcModel, layers: Sequence[int] = ()):
        super().__init__()
        self.model, self.intermediate_layers = model, tuple(layers)
        prepare_layers(self.layers())

    @property
    def n_mels(self) -> int:
        """The number of mel channels of its windows."""
        return self.model.config.num_mel_bins

    @property
    def projection(self) -> torch.Tensor:
        """The projection of the head."""
        return self.model.head.projection

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, window_frames: torch.Tensor | None = None
    ) -> DecoderOutput:
        """Return the hidden states of the head, one per position; it has no use for ``decoder_ids``."""
        encoded = encode(self.model.encoder, log_mel, self.intermediate_layers, window_frames)
        states = ctc_states(self.model.head, encoded, window_frames)
        return DecoderOutput(states.final, encoded, ctc=states)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by group; the head is the group ``decoder``."""
        sinusoids = self.model.encoder.embed_positions.weight  # computed, not learnt
        encoder = [p for p in self.model.encoder.parameters() if p is not sinusoids]
        return {"encoder": encoder, "decoder": list(self.model.head.parameters()), "embeddings": []}

    def layers(self) -> list[nn.Module]:
        """Return the layers of the encoder."""
        return list(self.model.encoder.layers)

    @property
    def n_params(self) -> int:
        """The number of parameters of encoder and head."""
        return sum(p.numel() for p in self.model.encoder.parameters()) + self.model.head.n_params


def ctc_states(head: CtcHead, encoded: EncoderOutput, window_frames: torch.Tensor | None) -> CtcStates:
    """Return the hidden states of a head; ``encoded`` has tapped the intermediate layers that its norms are for."""
    states = encoded.states
    n_positions = torch.full((len(states),), states.shape[1], device=states.device)
    if window_frames is not None:
        n_positions = window_frames // 2
    tapped = zip(head.norms, encoded.tapped, strict=True)
    return CtcStates(head(states), tuple(head(norm(layer)) for norm, layer in tapped), n_positions)


class CtcStudentKind:
    """Builds, saves, loads and decodes a recipe's CTC student.

    Raises :class:`AskdError` when the recipe's encoder layers do not exist or cannot be merged, and when
    ``student.init`` has other tokens than the teacher.
    """

    def __init__(self, recipe: Recipe, read_vocabulary: VocabularyReader):
        self._recipe, self._read_vocabulary = recipe, read_vocabulary
        self._tokens = Tokens(resolve(recipe.student.init or recipe.teacher.model))
        vocabulary_of_init(recipe)  # raises where it has other tokens
        cost.costs(recipe)  # raises where the recipe's layers do not exist

    @cached_property
    def _vocabulary(self) -> CtcVocabulary:
        return self._read_vocabulary()

    @property
    def _layers(self) -> tuple[int, ...]:
        return self._recipe.objective.intermediate_layers

    def build(self, n_shrunk: int) -> CtcStudent:
        """Return the untrained student: the encoder of its initial model, and a head from its token embeddings."""
        model, _ = build_student(self._recipe.student, self._recipe.teacher.model)
        head = initial_head(self._vocabulary, model.proj_out.weight)
        return self._student(CtcModel(model.model.encoder, head))

    def empty_like(self, student: CtcStudent) -> CtcStudent:
        """Return a student with the same tensors, on the CPU and uninitialised."""
        with torch.device("meta"):
            encoder = WhisperEncoder(student.model.config)
        head = CtcHead(self._vocabulary, torch.empty(student.projection.shape))
        return self._student(CtcModel(encoder.to_empty(device="cpu"), head))

    def shrink(self, student: CtcStudent) -> NoReturn:
        """A recipe cannot ask for this."""
        raise AssertionError("a CTC student does not shrink")

    def save(self, student: CtcStudent, folder: Path) -> None:
        """Write encoder and head, atomically."""
        save_ctc(student.model, self._tokens, folder)

    def load(self, folder: Path, n_shrunk: int) -> CtcStudent:
        """Return the student that :meth:`save` wrote."""
        return self._student(load_ctc(folder)[0])

    def transcribe(self, student: CtcStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return greedy transcripts."""
        vocabulary = student.model.head.vocabulary
        log_probs = student.model(log_mel).cpu().numpy()
        return [self._tokens.decode(vocabulary.tokens(greedy_classes(row))) for row in log_probs]

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher and of the student, without its head, whose size the labels decide."""
        return cost.costs(self._recipe)

    def _student(self, model: CtcModel) -> CtcStudent:
        if self._recipe.train.gradient_checkpointing:
            model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        model.head.read_intermediate(len(self._layers))
        return CtcStudent(model, self._layers)
