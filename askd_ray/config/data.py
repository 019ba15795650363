"""The recipe's ``data``: the sources, which of their rows are used, and which split each row goes to."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from askd_ray.config.section import Count, Section, Share
from askd_ray.config.source import Source

NotNegative = Annotated[float, Field(ge=0.0)]


class Data(Section):
    """How sources become shards (docs/prepare.md).

    A row whose source says train, dev or test goes there. A split that no row is marked with is taken out of the
    others by a hash, ``dev_share`` and ``test_share`` of them. ``split_by``: the hash is one of the ``speaker``, so
    that no speaker is in two splits (of the ``text`` where no speaker is named), or always one of the ``text``.

    Rows are set aside whose audio is shorter or longer than ``min_duration_s`` and ``max_duration_s``, or whose text
    has fewer or more characters a second of audio than ``chars_per_s`` ([least, most]; null switches that off).
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
    def _something_is_left_to_train_on(self) -> "Data":
        if self.dev_share + self.test_share >= 1.0:
            raise ValueError("dev_share + test_share must stay below 1: nothing would be left to train on")
        if self.min_duration_s > self.max_duration_s:
            raise ValueError(f"min_duration_s = {self.min_duration_s:g} exceeds max_duration_s: no clip would pass")
        if self.chars_per_s is not None and self.chars_per_s[0] > self.chars_per_s[1]:
            raise ValueError("chars_per_s is [least, most]: the first must not exceed the second")
        return self
