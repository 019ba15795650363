"""Where utterances come from."""

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
"""What a row can say. ``duration_s`` says where the chunk ends that begins at ``start_s``."""

_NAMED_BY_THE_LAYOUT = ("lhotse", "librispeech", "kaldi")


class Source(Section):
    """Where utterances come from: which rows are read, and how (docs/data.md).

    ``path`` is a file, a folder, or a pattern of files (``data/train-{000..003}.tar``, ``data/**/*.parquet``), all of
    them on a disk or at a URI (s3://, gs://, hf://datasets/USER/NAME), or ``cache:NAME`` for speech that ``askd fetch
    speech NAME`` brought. ``domain``, ``language`` and ``licence`` fill in what the rows themselves do not say.

    ``columns`` names the column of a field, where its name is not the field's: ``{audio: audio_filepath}``. Columns
    of a manifest that are not known are refused, unless ``unknown_columns`` is ``ignore``.

    ``case``: ``sentence`` writes texts that are all in capitals as sentences are written. Whisper and its tokens know
    few words in capitals: a student that is to write them unlearns much, and no teacher stands by it.

    Of its rows only those are read whose split is ``split`` (null: all of them), and of these a ``share``,
    decided by a hash of their ids. Rows that the data mark as train, dev or test stay there. ``splits`` says what other
    names mean (``{ood: test}``); ``hash`` leaves the rows to the hash of the recipe.

    ``channel`` is the one channel of its recordings that is read, counted from 0, where a row does not say it; ``mix``
    is the mean of all.
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
    def _can_be_read(cls, given: str) -> str:
        return check_place(given, "s3", "gs", "hf")

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "Source":
        if self.kind != "manifest":
            self.refuse_unread(["unknown_columns"], f"kind: {self.kind} ignores columns that it does not know")
        if self.columns and self.kind in _NAMED_BY_THE_LAYOUT:
            raise ValueError(f"columns = {self.columns!r} would be ignored: kind: {self.kind} has no columns")
        return self
