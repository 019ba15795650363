"""What `askd export` records of the decoding windows that it compares on dev."""

from typing import TypedDict


class WindowScore(TypedDict):
    """The score of one decoding window (``silence_s`` and ``min_s``) on dev clips, decoded one at a time.

    ``window_s`` is the mean length of the clips' windows, ``decoding_ms`` the mean time of a clip, and ``runaways``
    counts the transcripts that the token limit ended. ``above_best`` is the WER minus that of the best window, and
    ``standard_error`` its standard error, paired by clip.
    """

    silence_s: float
    min_s: float
    window_s: float
    decoding_ms: float
    wer: float
    runaways: int
    above_best: float
    standard_error: float


class WindowSweep(TypedDict):
    """The scores of all windows; ``chosen`` is the index of the bundle's window."""

    clips: int
    words: int
    scores: list[WindowScore]
    chosen: int
