"""Speed and cost, as their records hold them."""

from typing import NotRequired  # pydantic cannot read those of typing before Python 3.12

from typing_extensions import TypedDict


class Speedup(TypedDict):
    """How many times as fast the median clip is as the reference's, with its 95 % interval."""

    value: float
    low: float
    high: float


class ShortSpeedup(Speedup):
    """The speed-up on the short clips, with the medians of both in milliseconds."""

    clips: int
    ms: float
    baseline_ms: float


class Speedups(TypedDict):
    """The speed-up on all clips, and on the short ones if there are any."""

    all: Speedup
    short: NotRequired[ShortSpeedup]


class Latency(TypedDict):
    """Percentiles of the latency of one clip at a time."""

    clips: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class LatencyBucket(Latency):
    """Clips longer than ``from_s`` and up to ``to_s``."""

    from_s: float
    to_s: float


class LatencyByLength(Latency):
    """Latencies of all clips, and by length. ``rtfx``: seconds of audio transcribed per second."""

    rtfx: float
    by_duration: list[LatencyBucket]


class ModelCost(TypedDict, total=False):
    """Parameters, and multiply-adds for a clip of 5 s in the model's window; stock faster-whisper has none of them."""

    params_m: float
    multiply_adds_g: float
    window: str


class ModelSpeed(LatencyByLength, ModelCost):
    """The speed and cost of one system. ``throughput`` is seconds of audio per second, by batch size."""

    threads: int
    open_s: float
    first_call_ms: float
    memory_mb: int
    throughput: dict[str, float]


class Hardware(TypedDict):
    """The machine of a measurement; ``threads`` is the maximum."""

    cpu: str
    cores: int
    threads: int
    device: str


class Speed(TypedDict):
    """The result of :func:`askd_ray.evaluation.speed.measure_speed`. Clips under ``short_s`` are short."""

    clips: int
    models: dict[str, ModelSpeed]
    speedup: dict[str, Speedups]
    speedup_against: str
    short_s: float
    hardware: Hardware
    decoding: str
    versions: dict[str, str]
