"""The recipe's ``targets``: the target texts of the student, and the filters of the teacher's pseudo-labels."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Positive, Section, check_order

NotNegative = Annotated[float, Field(ge=0.0)]


class Targets(Section):
    """The target text of the train utterances: the ``reference``, or ``pseudo``: the teacher's transcript.

    The teacher transcribes crops in any case (``data.derive``). With ``pseudo``, utterances need no text. If there is
    a reference, ``max_wer`` filters the transcripts; without a reference, or with ``max_wer`` null, the other filters
    do. null disables a filter.
    """

    kind: Literal["reference", "pseudo"] = "reference"
    """Which text."""
    prompt: str = ""
    """Earlier text in front of the transcript (``<|startofprev|>``)."""
    timestamps: bool = False
    """Whether the targets contain timestamp tokens."""
    states: Literal["none", "last", "all"] = "none"
    """The teacher's decoder states that labels hold for ``objective.decoder_states``, as float16: ``last``, after the
    final layer norm (2 bytes times the teacher's width for each token), or of ``all`` layers."""
    beam_size: Count = 1
    """The number of beams of the teacher's decoding; 1 is greedy."""
    max_wer: NotNegative | None = 0.1
    """The highest word error rate of a transcript against its reference, as a fraction."""
    min_mean_log_prob: Annotated[float, Field(le=0.0)] | None = -1.0
    """The lowest mean log-probability of a transcript's tokens, in nats."""
    max_compression_ratio: Positive | None = 2.4
    """The highest zlib compression ratio of a transcript."""
    max_repeats: Annotated[int, Field(ge=0)] | None = 3
    """How often a phrase of one to five words may follow itself in a row."""
    chars_per_s: tuple[NotNegative, NotNegative] | None = (1.0, 30.0)
    """The characters per second of audio, [min, max]."""

    @model_validator(mode="after")
    def _check_order(self) -> "Targets":
        if self.chars_per_s is not None:
            check_order("chars_per_s", self.chars_per_s)
        return self
