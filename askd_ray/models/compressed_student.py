"""The compressed student: a Whisper whose decoder reads fewer states than its encoder has."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from askd_ray.config.schema import Recipe
from askd_ray.config.student import CompressorSettings
from askd_ray.files import atomic_path
from askd_ray.models.compressor import build_compressor, load_compressor, save_compressor
from askd_ray.models.load import load_whisper
from askd_ray.models.state_compressor import StateCompressor
from askd_ray.models.student import Cost, EncoderOutput
from askd_ray.models.whisper_student import WhisperStudent, WhisperStudentKind
from askd_ray.text.vocabulary import PrunedVocabulary

_INITIAL_SEED = 0  # of a compressor: students of several seeds begin with the same one, so they can be averaged


class CompressedStudent(WhisperStudent):
    """A :class:`WhisperStudent` whose decoder reads compressed states; its outputs still have those of the encoder."""

    def __init__(self, student: WhisperStudent, compressor: StateCompressor):
        taps = student.decoder_layers, student.decoder_width
        super().__init__(student.whisper, student.tapped_layers, student.widths, student.shrunk, *taps)
        self.to_widths, self.to_decoder_width = student.to_widths, student.to_decoder_width
        self.compressor = compressor

    def read_by_decoder(self, encoded: EncoderOutput) -> EncoderOutput:
        """Return the compressed states."""
        return self.compressor(encoded)

    @property
    def n_params(self) -> int:
        """The number of parameters of the Whisper and of the compressor."""
        return super().n_params + sum(parameter.numel() for parameter in self.compressor.parameters())


class CompressedStudentKind:
    """Builds, saves, loads and decodes a recipe's student with a compressor.

    Raises :class:`AskdError` as :class:`WhisperStudentKind` does.
    """

    def __init__(
        self,
        recipe: Recipe,
        settings: CompressorSettings,
        teacher_width: int = 0,
        read_vocabulary: Callable[[], PrunedVocabulary] | None = None,
    ):
        self._settings, self._whisper = settings, WhisperStudentKind(recipe, teacher_width, read_vocabulary)

    def build(self, n_shrunk: int) -> CompressedStudent:
        """Return the untrained student."""
        return self._with_initial_compressor(self._whisper.build(n_shrunk))

    def empty_like(self, student: CompressedStudent) -> CompressedStudent:
        """Return a student with the same tensors, on the CPU, to be filled with weights."""
        return self._with_initial_compressor(self._whisper.empty_like(student))

    def shrink(self, student: CompressedStudent) -> NoReturn:
        """A recipe cannot ask for this."""
        raise AssertionError("a student with a compressor does not shrink")

    def save(self, student: CompressedStudent, folder: Path) -> None:
        """Write a transformers folder with the compressor's file, atomically."""
        with atomic_path(folder) as temporary:
            self._whisper.save(student, temporary)
            save_compressor(student.compressor, temporary)

    def load(self, folder: Path, n_shrunk: int) -> CompressedStudent:
        """Return the student that :meth:`save` wrote."""
        model = load_whisper(str(folder), with_compressor=True)[0]
        compressor = load_compressor(folder, self._settings, model.config)
        return CompressedStudent(self._whisper.wrap(model, n_shrunk), compressor)

    def transcribe(self, student: CompressedStudent, log_mel: torch.Tensor, language: str) -> list[str]:
        """Return greedy transcripts, decoded from the compressed states."""
        return self._whisper.transcribe(student, log_mel, language)

    def costs(self) -> list[Cost]:
        """Return the costs of the teacher and of the student."""
        return self._whisper.costs()

    def _with_initial_compressor(self, student: WhisperStudent) -> CompressedStudent:
        norm = student.whisper.model.encoder.layer_norm  # gives states of size 1, times its weight, plus its bias
        scale = (norm.weight.square() + norm.bias.square()).mean().sqrt().item()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_INITIAL_SEED)
            return CompressedStudent(student, build_compressor(self._settings, student.whisper.config, scale))
