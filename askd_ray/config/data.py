"""The recipe's ``data``: the sources, the limits of usable rows, and the splits."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Section, Share
from askd_ray.config.source import Source

NotNegative = Annotated[float, Field(ge=0.0)]


class Data(Section):
    """How sources become shards (docs/prepare.md).

    A row whose source says train, dev or test goes to that split. If no row is marked dev (or test), a hash takes
    ``dev_share`` (``test_share``) of the other rows. ``split_by``: ``speaker`` hashes the speaker (the text if no
    speaker is named), so that no speaker is in two splits; ``text`` always hashes the text.

    Rows are set aside if their audio is shorter than ``min_duration_s`` or longer than ``max_duration_s``, or if their
    text has fewer or more characters per second of audio than ``chars_per_s`` ([min, max]; null disables it).
    """

    sources: tuple[Source, ...] = ()
    dev_share: Share = 0.1
    test_share: Share = 0.1
    split_by: Literal["speaker", "text"] = "speaker"
    utterances_per_shard: Count = 64
    min_duration_s: NotNegative = 0.1
    max_duration_s: Annotated[float, Field(gt=0.0, le=30.0)] = 30.0
    chars_per_s: tuple[NotNegative, NotNegative] | None = (0.2, 30.0)
    max_quarantine_share: Share = 0.2

    @model_validator(mode="after")
    def _check_limits(self) -> "Data":
        if self.dev_share + self.test_share >= 1.0:
            raise ValueError("dev_share + test_share must be below 1: no train rows would remain")
        if self.min_duration_s > self.max_duration_s:
            raise ValueError(f"min_duration_s = {self.min_duration_s:g} exceeds max_duration_s: no clip would pass")
        if self.chars_per_s is not None and self.chars_per_s[0] > self.chars_per_s[1]:
            raise ValueError("chars_per_s is [min, max]: the first must not exceed the second")
        return self
