"""A data source of the recipe: its files, their layout, and the rows to use."""

from typing import Annotated, Literal, cast

from pydantic import Field, field_validator, model_validator

from askd_ray.config.section import Section, Share
from askd_ray.files import check_place

SourceKind = Literal[
    "manifest",
    "parquet",
    "webdataset",
    "nemo",
    "lhotse",
    "common_voice",
    "audiofolder",
    "ljspeech",
    "librispeech",
    "kaldi",
]

RowField = Literal[
    "audio",
    "text",
    "id",
    "speaker",
    "domain",
    "language",
    "licence",
    "split",
    "start_s",
    "end_s",
    "duration_s",
    "channel",
]
"""The fields of a row. ``duration_s`` is the length of the chunk that begins at ``start_s``."""

_KINDS_WITHOUT_COLUMNS = ("lhotse", "librispeech", "kaldi")


class Source(Section):
    """A source of utterances (docs/data.md)."""

    path: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    """A file, a folder, or a pattern of files (``data/train-{000..003}.tar``, ``data/**/*.parquet``), on a disk or at a
    URI (s3://, gs://, hf://datasets/USER/NAME), or ``cache:NAME`` for speech from `askd fetch speech NAME`."""
    kind: SourceKind = "manifest"
    """The layout of the files."""
    columns: dict[RowField, str] = Field(default_factory=lambda: cast(dict[RowField, str], {}))
    """Maps a field to its column, if the names differ: ``{audio: audio_filepath}``."""
    unknown_columns: Literal["refuse", "ignore"] = "refuse"
    """What to do with columns of a manifest that are no fields."""
    domain: str = "default"
    """The domain of rows that do not name one."""
    language: str = "en"
    """The language of rows that do not name one, as a code such as en."""
    licence: str = "unknown"
    """The licence of rows that do not name one."""
    case: Literal["as_is", "sentence"] = "as_is"
    """``sentence`` writes texts in capitals as sentences: Whisper's tokens cover few words in capitals, and the teacher
    does not write them."""
    split: str | None = None
    """Only rows of this split are read; null: all rows. Rows marked as train, dev or test keep their split."""
    splits: dict[str, Literal["train", "dev", "test", "hash"]] = Field(
        default_factory=lambda: cast(dict[str, Literal["train", "dev", "test", "hash"]], {})
    )
    """The meaning of other names of splits: ``{ood: test}``; ``hash`` leaves these rows to the recipe's hash."""
    share: Share = 1.0
    """The share of the rows to read, from 0 to 1, chosen by a hash of their ids."""
    channel: Literal["mix"] | Annotated[int, Field(ge=0, le=255)] = "mix"
    """The channel to read, counted from 0, for rows that do not name one; ``mix`` is the mean of all channels."""

    @field_validator("path")
    @classmethod
    def _check_path(cls, given: str) -> str:
        return check_place(given, "s3", "gs", "hf")

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Source":
        if self.kind != "manifest":
            self.refuse_unread(["unknown_columns"], f"kind: {self.kind} ignores columns that it does not know")
        if self.columns and self.kind in _KINDS_WITHOUT_COLUMNS:
            raise ValueError(f"columns = {self.columns!r} would be ignored: kind: {self.kind} has no columns")
        return self
