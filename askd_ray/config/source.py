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
    """A source of utterances (docs/data.md).

    ``path`` is a file, a folder, or a pattern of files (``data/train-{000..003}.tar``, ``data/**/*.parquet``), on a
    disk or at a URI (s3://, gs://, hf://datasets/USER/NAME), or ``cache:NAME`` for speech from ``askd fetch speech
    NAME``. ``domain``, ``language`` and ``licence`` are the values of rows without their own.

    ``columns`` maps a field to its column, if the names differ: ``{audio: audio_filepath}``. Unknown columns of a
    manifest are refused, unless ``unknown_columns`` is ``ignore``.

    ``case``: ``sentence`` writes texts in capitals as sentences. Whisper's tokens cover few words in capitals: a
    student trained with them would unlearn much, and the teacher does not write them.

    Only rows of the split ``split`` are read (null: all rows), and of these a ``share``, chosen by a hash of their ids.
    Rows marked as train, dev or test keep their split. ``splits`` gives the meaning of other names (``{ood: test}``);
    ``hash`` leaves the split of these rows to the recipe's hash.

    ``channel`` is the channel of the recordings to read, counted from 0, for rows that do not name one; ``mix`` is the
    mean of all channels.
    """

    path: Annotated[str, Field(pattern=r"^[^\x00]+$")]
    kind: SourceKind = "manifest"
    columns: dict[RowField, str] = Field(default_factory=lambda: cast(dict[RowField, str], {}))
    unknown_columns: Literal["refuse", "ignore"] = "refuse"
    domain: str = "default"
    language: str = "en"
    licence: str = "unknown"
    case: Literal["as_is", "sentence"] = "as_is"
    split: str | None = None
    splits: dict[str, Literal["train", "dev", "test", "hash"]] = Field(
        default_factory=lambda: cast(dict[str, Literal["train", "dev", "test", "hash"]], {})
    )
    share: Share = 1.0
    channel: Literal["mix"] | Annotated[int, Field(ge=0, le=255)] = "mix"

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
