"""The recipe's ``data``: the sources, the limits of usable rows, and the splits."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.derive import Derive
from askd_ray.config.section import Count, Section, Share, check_order
from askd_ray.config.source import Source

NotNegative = Annotated[float, Field(ge=0.0)]


class Data(Section):
    """How sources become shards (docs/prepare.md).

    A row whose source says train, dev or test goes to that split. If no row is marked dev (or test), a hash takes
    ``dev_share`` (``test_share``) of the other rows. Rows outside of the limits are set aside and counted.
    """

    sources: tuple[Source, ...] = ()
    """The sources of utterances."""
    dev_share: Share = 0.1
    """The share of the rows without a split that become dev, from 0 to 1."""
    test_share: Share = 0.1
    """The share of the rows without a split that become test, from 0 to 1."""
    max_dev_hours: Annotated[float, Field(gt=0.0)] | None = 10.0
    """The most speech in dev, in hours; null disables the limit. Every evaluation of a training decodes all of dev. The
    other dev rows are set aside, not trained on: with much data, a small ``dev_share`` wastes nothing."""
    split_by: Literal["speaker", "text"] = "speaker"
    """What the hash reads: the speaker (the text if no speaker is named), so that no speaker is in two splits, or
    always the text."""
    utterances_per_shard: Count | None = None
    """The number of utterances in a shard; null: 64 of up to 65,000 utterances, and more of larger data, until a shard
    has 192 MiB of audio."""
    min_duration_s: NotNegative = 0.1
    """The shortest audio of a row, in seconds."""
    max_duration_s: Annotated[float, Field(gt=0.0, le=30.0)] = 30.0
    """The longest audio of a row, in seconds, up to 30."""
    chars_per_s: tuple[NotNegative, NotNegative] | None = (0.2, 30.0)
    """The characters of text per second of audio that a row may have, [min, max]; null disables the limit."""
    max_quarantine_share: Share = 0.2
    """The stage fails if more than this share of the rows cannot be used."""
    derive: Derive | None = Field(default_factory=Derive)
    """Short, long and silent clips that are made of the utterances; null makes none."""

    @property
    def learns_silence(self) -> bool:
        """Whether a student is trained on clips without speech."""
        return self.derive is not None and self.derive.non_speech.per_utterance > 0.0

    @model_validator(mode="after")
    def _check_limits(self) -> "Data":
        if self.dev_share + self.test_share >= 1.0:
            raise ValueError("dev_share + test_share must be below 1: no train rows would remain")
        if self.min_duration_s > self.max_duration_s:
            raise ValueError(f"min_duration_s = {self.min_duration_s:g} exceeds max_duration_s: no clip would pass")
        if self.chars_per_s is not None:
            check_order("chars_per_s", self.chars_per_s)
        return self
