"""Where utterances come from."""

from typing import Literal

from pydantic import field_validator

from askd_ray.config.section import Section, Share
from askd_ray.files import check_place


class Source(Section):
    """Where utterances come from.

    ``path`` is a manifest file or its folder, a Parquet file or folder, a WebDataset tar or folder of tars, all of them
    on a disk or at a URI (s3://, gs://, hf://datasets/USER/NAME), or ``cache:NAME`` for speech that ``askd fetch speech
    NAME`` brought. ``domain``, ``language`` and ``licence`` fill in what the rows themselves do not say.

    ``case``: ``sentence`` writes texts that are all in capitals as sentences are written. Whisper and its tokens know
    few words in capitals: a student that is to write them unlearns much, and no teacher stands by it.

    Of its rows only those are read whose field ``split`` says ``split`` (null: all of them), and of these a ``share``,
    decided by a hash of their ids.
    """

    path: str
    kind: Literal["manifest", "parquet", "webdataset"] = "manifest"
    domain: str = "default"
    language: str = "en"
    licence: str = "unknown"
    case: Literal["as_is", "sentence"] = "as_is"
    split: str | None = None
    share: Share = 1.0

    @field_validator("path")
    @classmethod
    def _can_be_read(cls, given: str) -> str:
        return check_place(given, "s3", "gs", "hf")
