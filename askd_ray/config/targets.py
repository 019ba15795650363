"""The recipe's ``targets``: the target texts of the student, and the filters of the teacher's pseudo-labels."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Positive, Section

NotNegative = Annotated[float, Field(ge=0.0)]


class Targets(Section):
    """The target text of the train utterances: the ``reference``, or ``pseudo``: the teacher's transcript.

    ``prompt`` is earlier text in front of the transcript (``<|startofprev|>``). With ``pseudo``, utterances need no
    text; ``beam_size`` 1 is greedy decoding, and with ``timestamps`` the targets contain timestamp tokens.

    If there is a reference, a pseudo-label is dropped if its word error rate exceeds ``max_wer``. Without a reference,
    it is dropped if the mean log-probability of its tokens is below ``min_mean_log_prob``, if its zlib compression
    ratio exceeds ``max_compression_ratio``, if a phrase of one to five words follows itself more than ``max_repeats``
    times in a row, or if its characters per second are outside ``chars_per_s`` ([min, max]). null disables a filter.
    """

    kind: Literal["reference", "pseudo"] = "reference"
    prompt: str = ""
    timestamps: bool = False
    beam_size: Count = 1
    max_wer: NotNegative | None = 0.1
    min_mean_log_prob: Annotated[float, Field(le=0.0)] | None = -1.0
    max_compression_ratio: Positive | None = 2.4
    max_repeats: Annotated[int, Field(ge=0)] | None = 3
    chars_per_s: tuple[NotNegative, NotNegative] | None = (1.0, 30.0)

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Targets":
        if self.kind == "reference":
            pseudo_only = [name for name in Targets.model_fields if name not in ("kind", "prompt")]
            self.refuse_unread(pseudo_only, "only targets.kind pseudo reads it")
        if self.chars_per_s is not None and self.chars_per_s[0] > self.chars_per_s[1]:
            raise ValueError("chars_per_s is [min, max]: the first must not exceed the second")
        return self
