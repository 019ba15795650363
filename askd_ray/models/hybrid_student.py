"""The hybrid student: a Whisper whose encoder is read by its decoder and by a CTC head."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from askd_ray.config.schema import Recipe
from askd_ray.files import atomic_path
from askd_ray.models.ctc import CtcHead, initial_head, load_head, save_head
from askd_ray.models.ctc_student import VocabularyReader, ctc_states
from askd_ray.models.student import Cost, DecoderOutput, StudentModel
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind
from askd_ray.models.windows import encode
from askd_ray.text.units import CtcVocabulary


class HybridStudent(StudentModel):
    """A Whisper and a CTC head that are trained. In training the head also reads the encoder layers ``layers``."""

    def __init__(self, whisper: WhisperStudent, head: CtcHead, layers: Sequence[int] = ()):
        super().__init__()
        self.whisper_student, self.head, self.intermediate_layers = whisper, head, tuple(layers)

    @property
    def n_mels(self) -> int:
        """The number of mel channels of its windows."""
        return self.whisper_student.n_mels

    @property
    def projection(self) -> torch.Tensor:
        """The decoder's projection."""
        return self.whisper_student.projection

    @property
    def ctc_projection(self) -> torch.Tensor:
        """The projection of the head."""
        return self.head.projection

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, window_frames: torch.Tensor | None = None
    ) -> DecoderOutput:
        """Return the decoder's hidden states at the tokens, and those of the head."""
        encoder = self.whisper_student.whisper.model.encoder
        encoded = encode(encoder, log_mel, self.intermediate_layers, window_frames)
        states = ctc_states(self.head, encoded, window_frames)
        return replace(self.whisper_student(log_mel, decoder_ids, window_frames, encoded), ctc=states)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters by group: the decoder's are those of a trained Whisper, the head begins without
        knowledge.
        """
        return self.whisper_student.parameter_groups() | {"head": list(self.head.parameters())}

    def layers(self) -> list[nn.Module]:
        """Return the layers of encoder and decoder."""
        return self.whisper_student.layers()

    @property
    def n_params(self) -> int:
        """The number of parameters of the Whisper and of the head."""
        return self.whisper_student.n_params + self.head.n_params


class HybridStudentKind:
    """Builds, saves, loads and decodes a recipe's hybrid student. It is decoded by its decoder.

    Raises :class:`AskdError` as :class:`WhisperStudentKind` does.
    """

    def __init__(self, recipe: Recipe, read_vocabulary: VocabularyReader):
        self._recipe, self._read_vocabulary = recipe, read_vocabulary
        self._whisper = WhisperStudentKind(recipe)

    @cached_property
    def _vocabulary(self) -> CtcVocabulary:
        return self._read_vocabulary()

    def build(self, n_shrunk: int) -> HybridStudent:
        """Return the untrained student, with a head from its token embeddings."""
        whisper = self._whisper.build(n_shrunk)
        return self._student(whisper, initial_head(self._vocabulary, whisper.projection))

    def empty_like(self, student: HybridStudent) -> HybridStudent:
        """Return a student with the same tensors, on the CPU and uninitialised."""
        head = CtcHead(self._vocabulary, torch.empty(student.ctc_projection.shape))
        return self._student(self._whisper.empty_like(student.whisper_student), head)

    def shrink(self, student: HybridStudent) -> NoReturn:
        """A recipe cannot ask for this."""
        raise AssertionError("a hybrid student does not shrink")

    def save(self, student: HybridStudent, folder: Path) -> None:
        """Write a transformers folder with the head's file, atomically."""
        with atomic_path(folder) as temporary:
            self._whisper.save(student.whisper_student, temporary)
            save_head(student.head, temporary)

    def load(self, folder: Path, n_shrunk: int) -> HybridStudent:
        """Return the student that :meth:`save` wrote."""
        return self._student(self._whisper.load(folder, n_shrunk), load_head(folder))

    def transcribe(self, student: HybridStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return the greedy transcripts of the decoder."""
        return self._whisper.transcribe(student.whisper_student, log_mel, language)

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher and of the student, without its head, whose size the labels decide."""
        return self._whisper.costs()

    def _student(self, whisper: WhisperStudent, head: CtcHead) -> HybridStudent:
        layers = self._recipe.objective.intermediate_layers
        return HybridStudent(whisper, head.read_intermediate(len(layers)), layers)
