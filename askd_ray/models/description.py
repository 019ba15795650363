"""What bundle.json says of a bundle."""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from askd_ray.audio.units import DecodingWindow
from askd_ray.results.evaluation import Evaluation
from askd_ray.results.windows import WindowSweep

BundleReader = Literal["whisper", "ctc"]
"""How a student reads speech: with Whisper's encoder and decoder, or with its encoder and a CTC head."""


class BundleData(TypedDict):
    """The train split of a bundle's student: ``domains`` and ``licences`` count utterances.

    ``derived`` counts the clips that were made of them, by kind.
    """

    utterances: int
    derived: NotRequired[dict[str, int]]
    hours: float
    domains: dict[str, int]
    licences: dict[str, int]


class BundleVocabulary(TypedDict):
    """The number of text tokens of a student, and that of its teacher, which has more."""

    text_tokens: int
    of_teacher: int


class BundleDescription(TypedDict):
    """The content of bundle.json. ``objective`` is the recipe's; ``sha256`` is that of every other file, by path.

    ``formats`` are the folders of the student; older bundles, without it, have those of every bundle.
    ``window_sweep`` has the windows among which ``window`` was chosen; None: the recipe's was taken. Bundles without
    ``reader`` have Whisper's. ``vocabulary`` None: the student has all tokens of its teacher. ``layout`` is that of a
    hub repository (:mod:`askd_ray.bundles.push`), with the transformers folder as its root; bundles have none.
    """

    format: int
    layout: NotRequired[Literal["hub"]]
    reader: NotRequired[BundleReader]
    formats: NotRequired[list[str]]
    name: str
    teacher: str
    window: dict[str, float]
    window_sweep: NotRequired[WindowSweep | None]
    languages: list[str]
    vocabulary: NotRequired[BundleVocabulary | None]
    data: BundleData
    params_m: float
    objective: dict[str, Any]
    epochs: float
    scores: Evaluation | None
    git_sha: str | None
    versions: dict[str, str]
    sha256: NotRequired[dict[str, str]]


def reader_of(description: Mapping[str, Any]) -> BundleReader:
    """Return the reader of a bundle's description; bundles without one have Whisper's."""
    return description.get("reader", "whisper")


def window_of(description: Mapping[str, Any]) -> DecodingWindow:
    """Return the window of a bundle's description; those of format 1 have no ``min_s``."""
    window = description["window"]
    return DecodingWindow(float(window["silence_s"]), float(window.get("min_s", 0.0)))
