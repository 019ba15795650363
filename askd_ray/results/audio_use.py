"""What the record of an LLM student's evaluation holds: how much the audio tells it, and its word error rate."""

from typing_extensions import TypedDict  # pydantic cannot read that of typing before Python 3.12

from askd_ray.results.texts import percent


class Estimate(TypedDict):
    """A value with its 95 % interval, from a bootstrap over clips."""

    value: float
    low: float
    high: float


class AudioUse(TypedDict):
    """An LLM student on some clips.

    ``nats`` a reference token (with the end token) when it reads the clip's own audio (``right``), that of the clip of
    the next greater length (``wrong``), or no audio (``none``). ``difference``: ``wrong`` and ``none`` minus ``right``,
    on the same bootstrap samples. ``states_per_s``: what it reads a second of audio. ``wer``: of greedy decoding.
    """

    clips: int
    minutes: float
    tokens: int
    words: int
    nats: dict[str, Estimate]
    difference: dict[str, Estimate]
    states_per_s: float
    wer: Estimate


class Retrieval(TypedDict):
    """How often an LLM student finds the transcript of a clip among those of ``clips`` clips.

    ``log_prob``: the share of clips whose own transcript has the highest log-probability given the audio.
    ``log_prob_ratio``: the same after the log-probability without audio is subtracted, which a text has in any case.
    """

    clips: int
    log_prob: Estimate
    log_prob_ratio: Estimate


class AudioUseScores(TypedDict):
    """The result of the stage `evaluate` for an LLM student: each set, all sets of a kind together, and retrieval.

    ``pools`` and ``retrieval`` have ``in_domain`` and ``out_of_domain``, if there are such sets; retrieval needs some
    clips of different texts. ``left_out`` counts rows that could not be used, by set and reason.
    """

    sets: dict[str, AudioUse]
    pools: dict[str, AudioUse]
    retrieval: dict[str, Retrieval]
    left_out: dict[str, dict[str, int]]


def audio_use_table(scores: AudioUseScores) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table of scores: the sets, then the pools; nats a reference token, WER in %."""
    head = ["", "clips", "right audio", "wrong audio", "no audio", "wrong - right", "none - right", "states/s", "WER"]
    rows: list[list[str]] = []
    for name, use in [*scores["sets"].items(), *scores["pools"].items()]:
        estimates = [*use["nats"].values(), *use["difference"].values()]
        cells = [f"{e['value']:.3f} ({e['low']:.3f} to {e['high']:.3f})" for e in estimates]
        rows.append([name, str(use["clips"]), *cells, f"{use['states_per_s']:.2f}", estimate_in_percent(use["wer"])])
    return head, rows


def estimate_in_percent(of: Estimate) -> str:
    """Return a share in percent with its interval, as WERs are written."""
    return f"{percent(of['value'])} ({percent(of['low'])} to {percent(of['high'])})"
