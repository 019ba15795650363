"""Measures the speed and cost of models, on the same clips and at the same time."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from askd_ray.audio.units import HOP_LENGTH, PADDED_S, PADDED_SAMPLES, samples_of
from askd_ray.config.evaluate import Evaluate
from askd_ray.data.schema import Utterance
from askd_ray.evaluation.isolated import Isolated
from askd_ray.evaluation.latency import TimedTranscripts, evenly, percentile_ms, speedup, time_systems
from askd_ray.evaluation.systems import bundle_info, cpu_model
from askd_ray.evaluation.timed import EngineSystem
from askd_ray.files import local_path
from askd_ray.models.cost import CLIP_S, parts
from askd_ray.models.ctc_cost import ctc_parts
from askd_ray.models.load import ctranslate2_folder, load_config
from askd_ray.models.stock import StockWhisper
from askd_ray.models.threads import allocate_threads
from askd_ray.provenance import versions
from askd_ray.results.timing import Latency, LatencyBucket, LatencyByLength, ModelCost, ModelSpeed, Speed, Speedups
from askd_ray.torch_setup import Device, n_cores

STOCK = "faster-whisper"
BUCKETS_S = (2.0, 5.0, 10.0, 20.0, PADDED_S)


def measure_speed(
    models: Mapping[str, str],
    baseline: str,
    utterances: Sequence[Utterance],
    settings: Evaluate,
    device: Device = "cpu",
) -> Speed:
    """Return the speed of models, by name, on ``settings.speed_clips`` clips, spread evenly over all durations.

    Each model has a separate process, and the models take turns. ``settings.threads`` sets the threads; 0 takes as many
    as the model can use well, as in serving. With ``settings.stock`` the baseline also runs in faster-whisper on all
    cores, as :data:`STOCK`, and the speed-up is measured against that.
    """
    clips = evenly([u for u in utterances if u.duration_s <= PADDED_S], settings.speed_clips)
    max_threads = settings.threads or n_cores()
    threads = {name: settings.threads or _threads(reference, device) for name, reference in models.items()}
    with ExitStack() as stack:
        systems = {
            name: stack.enter_context(Isolated(EngineSystem, reference, threads[name], device))
            for name, reference in models.items()
        }
        if settings.stock:
            folder = ctranslate2_folder(models[baseline])
            systems[STOCK] = stack.enter_context(Isolated(StockWhisper, folder, max_threads, device))
        first_s = {name: _first_call_s(system, clips[0]) for name, system in systems.items()}
        timings = time_systems(systems, clips, settings.repeats)
        costs = {name: _cost(reference) for name, reference in models.items()}
        measured: dict[str, ModelSpeed] = {
            name: {
                **costs.get(name, ModelCost()),
                "threads": threads.get(name, max_threads),
                "open_s": round(system.opened_s, 3),
                "first_call_ms": round(1000 * first_s[name], 1),
                "memory_mb": round(system.peak_mb()),
                **_latency(clips, timings[name]),
                "throughput": _throughput(system, clips, settings.batch_sizes) if name in models else {},
            }
            for name, system in systems.items()
        }
    against = STOCK if settings.stock else baseline
    return {
        "clips": len(clips),
        "models": measured,
        "speedup": {
            name: _speedups(clips, timings[against], timings[name], settings.short_s)
            for name in systems
            if name != against
        },
        "speedup_against": against,
        "short_s": settings.short_s,
        "hardware": {"cpu": cpu_model(), "cores": n_cores(), "threads": max_threads, "device": device},
        "decoding": f"served path, {'int8' if device == 'cpu' else 'float16'}, one clip at a time, from encoded audio",
        "versions": versions(),
    }


def _first_call_s(system: Isolated, clip: Utterance) -> float:
    begun = time.perf_counter()
    system.transcribe(clip.audio, clip.language)
    return time.perf_counter() - begun


def _threads(reference: str, device: Device) -> int:
    return allocate_threads(bundle_info(reference, device), n_cores()) if device == "cpu" else 1


def _cost(reference: str) -> ModelCost:
    """Return the parameters of a model, and its multiply-adds for a clip of 5 s in the model's window."""
    folder, info = local_path(reference), bundle_info(reference)
    config = load_config(str(folder / "transformers") if (folder / "bundle.json").is_file() else reference)
    window = info.window
    n_samples = PADDED_SAMPLES if window is None else window.samples(samples_of(CLIP_S), config.num_mel_bins)
    n_frames = n_samples // HOP_LENGTH
    items = ctc_parts(folder / "transformers", n_frames) if info.reader == "ctc" else parts(config, n_frames)
    return {
        "params_m": round(sum(item.params for item in items) / 1e6, 2),
        "multiply_adds_g": round(sum(item.multiply_adds for item in items) / 1e9, 2),
        "window": "30 s" if window is None else str(window),
    }


def _latency(clips: Sequence[Utterance], timed: TimedTranscripts) -> LatencyByLength:
    durations_s = np.asarray([u.duration_s for u in clips])
    buckets = list[LatencyBucket]()
    for low, high in zip((0.0, *BUCKETS_S), BUCKETS_S, strict=False):
        inside = (durations_s > low) & (durations_s <= high)
        if inside.any():
            buckets.append({"from_s": low, "to_s": high, **_percentiles(timed.latency_s[inside])})
    return {
        "rtfx": round(float(durations_s.sum() / timed.latency_s.sum()), 2),
        **_percentiles(timed.latency_s),
        "by_duration": buckets,
    }


def _percentiles(latency_s: NDArray[np.float64]) -> Latency:
    p50_ms, p95_ms, p99_ms = (percentile_ms(latency_s, p) for p in (50, 95, 99))
    return {"clips": len(latency_s), "p50_ms": p50_ms, "p95_ms": p95_ms, "p99_ms": p99_ms}


def _throughput(system: Isolated, clips: Sequence[Utterance], sizes: Sequence[int]) -> dict[str, float]:
    """Return the seconds of audio per second by batch size; a batch holds clips of similar length."""
    rates: dict[str, float] = {}
    for size in sizes:
        groups = [clips[i : i + size] for i in range(0, len(clips), size)]
        took = sum(system.call("seconds", [u.audio for u in group], group[0].language) for group in groups)
        rates[str(size)] = round(sum(u.duration_s for u in clips) / took, 2)
    return rates


def _speedups(
    clips: Sequence[Utterance], baseline: TimedTranscripts, system: TimedTranscripts, short_s: float
) -> Speedups:
    """Return how many times faster the system is on the median clip: of all clips, and of the short ones."""
    short = [i for i, u in enumerate(clips) if u.duration_s < short_s]
    speedups: Speedups = {"all": speedup(baseline.latency_s, system.latency_s)}
    if short:
        system_s, baseline_s = system.only(short).latency_s, baseline.only(short).latency_s
        speedups["short"] = {
            **speedup(baseline_s, system_s),
            "clips": len(short),
            "ms": percentile_ms(system_s, 50),
            "baseline_ms": percentile_ms(baseline_s, 50),
        }
    return speedups
