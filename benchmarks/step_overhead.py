"""What a training step costs besides arithmetic: kernel launches, waits for the device, and bytes copied to it.

    python benchmarks/step_overhead.py [--clips N] [--quick] [--json]

It needs no GPU: a step of Whisper tiny.en in bfloat16 runs on the CPU with the chunk of a GPU, and PyTorch reports each
operator before it runs it. The clips have 5 s and 22 target tokens, with 16 cached tokens each, in windows of different
lengths. All tokens of a micro-batch are one chunk, so the counts do not depend on the number of clips.

launches: operators that write a tensor. Views, allocations and numbers of the host are not counted. A fused operator
(an optimizer's, or one over a list of tensors) counts as one, though a GPU splits long lists, and so does attention.
The backward pass counts too. The counts are those of one micro-batch with log-mels of the host; "log_mel_launches" are
added if the device computes them, as in every training on a GPU.
syncs_per_step: operators and methods for which the host waits until the device is done: item, tolist, cpu, numpy, bool
of a tensor, nonzero, masked_select, and indexing with a boolean mask. A copy with to("cpu") is not seen.
bytes_per_audio_s: the size of the one buffer that is copied for a micro-batch, by the length of its clips.
"""

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import one_line_errors
import soundfile
import torch
from rich.table import Table
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from askd_ray.audio.units import SAMPLE_RATE_HZ
from askd_ray.config.schema import Recipe
from askd_ray.data.collate import BatchLoader
from askd_ray.data.labels import SoftLabels, write_labels
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch, Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.fetch.weights import fetch_weights
from askd_ray.location import Location
from askd_ray.models.load import load_whisper
from askd_ray.models.whisper_student import WhisperStudent
from askd_ray.objective.chunked import gpu_chunk_tokens
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.objective.transfer import PackedArrays, arrays_of
from askd_ray.progress import console
from askd_ray.torch_setup import use_threads
from askd_ray.train.optim import build_optimizer
from askd_ray.train.step import Stepper

CLIP_S, N_TARGETS, TOP_K = 5.0, 22, 16
GPU_MEMORY = 80 * 1024**3
WEIGHTS = Weights(teacher_weight=0.5, self_weight=0.0)
N_SPECIAL = 50_257  # tokens from here on are no text

NO_KERNEL = {
    "aten::detach",
    "aten::alias",
    "aten::lift_fresh",
    "aten::_unsafe_view",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::scalar_tensor",
    "aten::_local_scalar_dense",
}
SYNC_OPERATORS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
SYNC_METHODS = {"tolist", "cpu", "numpy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}


@dataclass
class Calls:
    """The launches and the waits of a step, by name."""

    launches: Counter[str] = field(default_factory=Counter[str])
    syncs: Counter[str] = field(default_factory=Counter[str])


class CountedOperators(TorchDispatchMode):
    """Counts the operators within the block."""

    def __init__(self, calls: Calls):
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if not (func.is_view or name in NO_KERNEL or name.startswith("profiler::")):
            self._calls.launches[name] += 1
        masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in INDEXING else []
        if name in SYNC_OPERATORS or masks:
            self._calls.syncs[name] += 1
        return func(*args, **(kwargs or {}))


class CountedMethods(TorchFunctionMode):
    """Counts the methods that copy a tensor to the host; on a CPU they are no operators."""

    def __init__(self, calls: Calls):
        super().__init__()
        self._calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in SYNC_METHODS and isinstance(args[0] if args else None, torch.Tensor):
            self._calls.syncs[name] += 1
        return func(*args, **(kwargs or {}))


def count_step(stepper: Stepper, batches: Sequence[Batch]) -> Calls:
    """Return the calls of a step; an earlier step has made the optimizer's state."""
    seeds, calls = range(len(batches)), Calls()
    stepper.step(batches, WEIGHTS, seeds)
    with CountedMethods(calls), CountedOperators(calls):
        stepper.step(batches, WEIGHTS, seeds)
    return calls


def make_stepper(precision: str = "bfloat16") -> Stepper:
    """Return the steps of a tiny.en student with the chunk of a GPU."""
    recipe = Recipe.model_validate(
        {"teacher": {"model": str(fetch_weights("tiny.en"))}, "train": {"precision": precision}}
    )
    student = WhisperStudent(load_whisper(recipe.teacher.model)[0]).train()
    self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None)
    chunk_tokens = gpu_chunk_tokens(GPU_MEMORY, len(student.projection))
    distiller = Distiller(recipe.objective, self_teacher, None, 0.0, chunk_tokens=chunk_tokens)
    optimizer = build_optimizer(student, recipe.train.optimizer)
    return Stepper(student, student, optimizer, distiller, recipe.train, GradScaler("cpu", enabled=False))


def make_batches(folder: Path, n_clips: int) -> dict[str, Batch]:
    """Return a micro-batch of noise with log-mels of the "host", and the same one for the "device"."""
    rng = np.random.default_rng(0)
    clips = [_utterance(number, rng) for number in range(n_clips)]
    write_table(folder / "shards" / "train-00000-of-00001.parquet", to_table(clips))
    write_labels(folder / "labels" / "train-00000-of-00001.parquet", [_labels(u, rng) for u in clips], {"top_k": TOP_K})
    batching = {"utterances": n_clips, "audio_s": 15.0 * n_clips, "tokens": 64 * n_clips}
    recipe = Recipe.model_validate({"window": {"padded_share": 0.0}, "train": {"epochs": 1, "batching": batching}})
    host = BatchLoader(
        shards=Location.of(folder / "shards"),
        labels=Location.of(folder / "labels"),
        label_key={"top_k": TOP_K},
        n_mels=80,
        teacher_n_mels=0,
        train=recipe.train,
        window=recipe.window,
        augment=recipe.augment,
        seed=0,
    )
    (task,) = tasks_from(length_grouped_sampler(host.rows(), recipe), DataCursor(), 0, 1)
    loaders = {"host": host, "device": replace(host, log_mel_on_device=True)}
    return {name: next(loader.batches(task)) for name, loader in loaders.items()}


def _utterance(number: int, rng: np.random.Generator) -> Utterance:
    file, seconds = io.BytesIO(), CLIP_S + 0.04 * number
    soundfile.write(file, 0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ, format="WAV")
    return Utterance(f"u{number}", file.getvalue(), "", "text", seconds, "", "en", "noise", "train", "none")


def _labels(utterance: Utterance, rng: np.random.Generator) -> SoftLabels:
    log_probs = np.full((N_TARGETS, TOP_K), np.log(0.5 / TOP_K), np.float16)
    return SoftLabels(
        content_hash=utterance.content_hash,
        prompt_ids=(50_257, 50_362),
        target_ids=rng.integers(0, N_SPECIAL, N_TARGETS).astype(np.int32),
        left_out="",
        text="",
        top_ids=rng.integers(0, N_SPECIAL, (N_TARGETS, TOP_K)).astype(np.uint16),
        top_log_probs=log_probs,
        rest_log_prob=np.full(N_TARGETS, np.log(0.5), np.float16),
        token_loss=np.ones(N_TARGETS, np.float16),
        states=np.zeros((N_TARGETS, 0, 0), np.float16),
    )


def bytes_per_audio_s(batch: Batch) -> float:
    """Return the bytes that are copied to a GPU for a second of audio."""
    audio_s = CLIP_S * len(batch.ids) + 0.04 * sum(int(name[1:]) for name in batch.ids)
    return PackedArrays.of(arrays_of(batch), pinned=False).buffer.nbytes / audio_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_threads()
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(Path(folder), 4 if options.quick else options.clips)
    stepper = make_stepper()
    steps = {
        "log-mels of the host": [batches["host"]],
        "log-mels of the device": [batches["device"]],
        "two micro-batches, log-mels of the device": [batches["device"]] * 2,
    }
    table = Table(title=f"a step of tiny.en in bfloat16, {len(batches['host'].ids)} clips of {CLIP_S:g} s")
    for column in ("step", "launches", "syncs", "bytes per second of audio"):
        table.add_column(column, justify="right")
    counts = {name: count_step(stepper, step) for name, step in steps.items()}
    for name, calls in counts.items():
        n_bytes = f"{bytes_per_audio_s(steps[name][0]):,.0f}"
        table.add_row(name, f"{calls.launches.total():,}", str(calls.syncs.total()), n_bytes)
    console.print(table)
    host, device, _ = counts.values()
    result = {
        "launches": host.launches.total(),
        "log_mel_launches": device.launches.total() - host.launches.total(),
        "syncs_per_step": max(calls.syncs.total() for calls in counts.values()),
        "bytes_per_audio_s": round(bytes_per_audio_s(batches["device"])),
    }
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    one_line_errors.run(main)
