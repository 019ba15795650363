"""The cost of a training step: Distil-Whisper's recipe compared with ours.

    python benchmarks/distill_step.py [--data FOLDER] [--clips N] [--batch N] [--keep N] [--padded-texts] [--quick]
        [--json]

(a) 30 s windows, the teacher beside the student at every step, softmax over the full vocabulary of all positions twice;
(b) ours with the teacher online; (c) ours with cached soft labels; (d) as (c), with the teacher's cached decoder states
of all layers; (v) as (c), with a student of --keep text tokens. Ours has trimmed windows. All use the same student,
batches and AdamW, alternately in one process; features and labels are made before (their cost is printed). Then the
peak memory of the losses (a) to (c) alone, each in its own process.

(a) pads a batch's texts to the longest of them. That is faster than Distil-Whisper's script, which pads all to 448
tokens (target_padding="max_length"). --padded-texts also times this, as (s). It takes much memory: a tensor of
logits has 93 MB a clip.

--data takes a folder of Parquet files (Hugging Face convention); without it, the IVR prompts. --clips (192: seven
minutes on two cores) should be many times --batch: a batch of ours is as long as its longest clip, and batches of
similar lengths, as in a training, need many clips to choose from. --json prints one line of JSON at the end.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import one_line_errors
import psutil
import torch
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional

from askd_ray.audio.logmel import log_mel_padded
from askd_ray.config.objective import Objective
from askd_ray.config.schema import Recipe
from askd_ray.config.student import SmallVocabulary
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor, tasks_from
from askd_ray.data.schema import Batch, Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.fetch.weights import fetch_weights
from askd_ray.models.load import load_whisper
from askd_ray.models.whisper_student import WhisperStudent
from askd_ray.models.windows import WindowedWhisper
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.objective import TokenBatch, objective_sums
from askd_ray.objective.online_teacher import OnlineTeacher
from askd_ray.objective.references import Dense, TopK
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.progress import bar, console
from askd_ray.torch_setup import use_threads
from askd_ray.train.build import student_kind
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.optim import build_optimizer
from askd_ray.train.step import Stepper

WEIGHTS = Weights(teacher_weight=0.5, self_weight=0.0, states_weight=0.5)
KD_WEIGHT, CE_WEIGHT, TEMPERATURE = 1.0, 0.8, 2.0  # Distil-Whisper's released code
LOSSES = {"a": "dense, 30 s windows", "b": "ours, teacher online", "c": "ours, cached soft labels"}
NAMES = {**LOSSES, "d": "ours, cached soft labels and states", "v": "ours, cached soft labels, fewer tokens"}
STATES = {"decoder_states": {"kind": "mse", "layers": "all"}}
PADDED_TEXTS = "dense, 30 s windows, texts of 448 tokens"
SCRIPT_TOKENS = 448
IGNORED = -100  # the target of a position without loss (PyTorch's ignore_index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--keep", type=int, default=SmallVocabulary().keep)
    parser.add_argument("--padded-texts", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    use_threads()
    n_clips, batch_size = (4, 2) if options.quick else (options.clips, options.batch)
    with tempfile.TemporaryDirectory() as root:
        utterances = clips(options.data, n_clips)
        recipe = _recipe(root, batch_size)
        label_s = write_run(recipe, utterances)
        small = Recipe.model_validate({**recipe.model_dump(), "student": {"vocabulary": {"keep": options.keep}}})
        times, steps = _time(recipe, small, utterances, options.padded_texts)
    n_utterances = len(utterances)
    rates = {name: n_utterances / sum(took) for name, took in times.items()}
    peaks = _loss_peaks(steps)
    audio_s = sum(u.duration_s for u in utterances)
    table = Table(title=f"{n_utterances} clips, mean {audio_s / n_utterances:.1f} s, batches of up to {batch_size}")
    for column in ("step", "utt/s", "against (a)", "memory of the loss"):
        table.add_column(column, justify="right")
    for name, rate in rates.items():
        speed = f"{rate:.2f}", f"{rate / rates['a']:.1f}x"
        memory = f"{peaks[name] / 1e6:.0f} MB" if name in peaks else "-"
        table.add_row(f"({name}) {NAMES.get(name, PADDED_TEXTS)}", *speed, memory)
    console.print(table)
    console.print(f"soft labels, once for all epochs and trials: {n_utterances / label_s:.2f} utt/s")
    result = {
        "speedup_vs_dense_30s": round(rates["c"] / rates["a"], 2),
        "states_step_ratio": round(rates["c"] / rates["d"], 3),
        "vocabulary_step_speedup": round(rates["v"] / rates["c"], 3),
        "vocabulary_keep": options.keep,
        "speedup_online_vs_dense_30s": round(rates["b"] / rates["a"], 2),
        "loss_peak_ratio": round(peaks["c"] / peaks["a"], 3),
        "loss_peak_ratio_online": round(peaks["b"] / peaks["a"], 3),
        "utterances_per_s": {name: round(rate, 3) for name, rate in rates.items()},
        "mean_s": round(audio_s / n_utterances, 2),
        "clips": n_utterances,
        "threads": torch.get_num_threads(),
    }
    if options.padded_texts:
        result["speedup_vs_padded_texts"] = round(rates["c"] / rates["s"], 2)
    if options.json:
        print(json.dumps(result))


def _recipe(root: str, batch_size: int) -> Recipe:
    values = {
        "name": "steps",
        "runs_root": root,
        "teacher": {"model": str(fetch_weights("tiny.en"))},
        "targets": {"states": "all"},
        "objective": STATES,
        "window": {"padded_share": 0.0},
        "train": {"batching": {"utterances": batch_size, "audio_s": 480.0}, "epochs": 1},
    }
    return Recipe.model_validate(values)


def _batches(recipe: Recipe) -> list[Batch]:
    loader = make_batch_loader(recipe, n_mels=80)
    return [
        batch
        for task in tasks_from(length_grouped_sampler(loader.rows(), loader), DataCursor(), 0, 1)
        for batch in loader.batches(task)
    ]


def _time(
    recipe: Recipe, small: Recipe, utterances: list[Utterance], padded_texts: bool
) -> tuple[dict[str, list[float]], list[Batch]]:
    """Return the seconds of each step of each kind, alternating per batch, and the batches.

    ``small``: the recipe with a smaller vocabulary.
    """
    batches = _batches(recipe)
    in_few_tokens, few_tokens_step = {b.ids: b for b in _batches(small)}, _our_step(small, Objective(), online=False)
    audio = {u.id: u for u in utterances}
    step = {
        "a": _dense_step(recipe, 0),
        "b": _our_step(recipe, Objective(), online=True),
        "c": _our_step(recipe, Objective(), online=False),
        "d": _our_step(recipe, recipe.objective, online=False),
        "v": lambda batch: few_tokens_step(in_few_tokens[batch.ids]),
    }
    if padded_texts:
        step["s"] = _dense_step(recipe, SCRIPT_TOKENS)
    times: dict[str, list[float]] = {name: [] for name in step}
    with bar("steps", len(batches) + 1, "batch") as progress:
        for number, batch in enumerate([min(batches, key=lambda b: len(b.ids)), *batches]):
            waveforms = [waveform_of(audio[i]) for i in batch.ids]
            padded = log_mel_padded(waveforms).numpy()
            with_audio = Batch(**{**vars(batch), "teacher_log_mel": padded})
            first = number % len(step)
            for name in [*step, *step][first : first + len(step)]:
                begun = time.perf_counter()
                step[name](with_audio)
                if number:  # the first, small batch is the warm-up
                    times[name].append(time.perf_counter() - begun)
            progress.advance()
    return times, batches


def _dense_step(recipe: Recipe, n_tokens: int) -> Callable[[Batch], None]:
    """Distil-Whisper's step with transformers' forward passes; its texts are padded to ``n_tokens`` tokens or more."""
    student, teacher = (load_whisper(recipe.teacher.model)[0] for _ in range(2))
    student.train()
    optimizer = build_optimizer(WhisperStudent(student), recipe.train.optimizer)

    def step(batch: Batch) -> None:
        padding = (0, max(0, n_tokens - batch.decoder_ids.shape[1]))
        log_mel = torch.from_numpy(batch.teacher_log_mel)
        ids = functional.pad(torch.from_numpy(batch.decoder_ids), padding)
        targets = functional.pad(torch.from_numpy(_dense_targets(batch)), padding, value=IGNORED)
        logits = student(input_features=log_mel, decoder_input_ids=ids, use_cache=False).logits
        with torch.no_grad():
            teacher_logits = teacher(input_features=log_mel, decoder_input_ids=ids, use_cache=False).logits
        loss = dense_loss(logits, teacher_logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.train.optimizer.clip_norm)
        optimizer.step()

    return step


def _dense_targets(batch: Batch) -> np.ndarray:
    """Return the targets ``(batch, length)``, with IGNORED at positions without loss."""
    targets = np.full(batch.decoder_ids.size, IGNORED, np.int64)
    targets[batch.target_positions] = batch.targets
    return targets.reshape(batch.decoder_ids.shape)


def dense_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return 0.8 CE + T^2 KL over all positions, as in Distil-Whisper's released training script."""
    ce = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    log_q = functional.log_softmax(logits / TEMPERATURE, dim=-1)
    p = functional.softmax(teacher_logits / TEMPERATURE, dim=-1)
    valid = targets != IGNORED
    kl = (functional.kl_div(log_q, p, reduction="none") * valid[..., None]).sum() / valid.sum()
    return CE_WEIGHT * ce + KD_WEIGHT * TEMPERATURE**2 * kl


def _our_step(recipe: Recipe, objective: Objective, online: bool) -> Callable[[Batch], None]:
    student = student_kind(recipe.model_copy(update={"objective": objective})).build(0).train()
    teacher = OnlineTeacher(WindowedWhisper(load_whisper(recipe.teacher.model)[0]), False) if online else None
    distiller = Distiller(objective, build_self_teacher(objective.self_teacher, lambda: None), teacher, 0.0)
    optimizer, no_scaler = build_optimizer(student, recipe.train.optimizer), GradScaler("cpu", enabled=False)
    stepper = Stepper(student, student, optimizer, distiller, recipe.train, no_scaler)

    def step(batch: Batch) -> None:
        stepper.step([batch], WEIGHTS, [0])

    return step


def _loss_peaks(batches: list[Batch]) -> dict[str, int]:
    """Return the peak memory of each loss in bytes, on the batch with the most positions."""
    largest = max(batches, key=lambda b: b.decoder_ids.size)
    of_tokens = largest.targets, largest.target_positions, largest.top_ids, largest.top_log_probs, largest.rest_log_prob
    arguments = (_dense_targets(largest), *of_tokens)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        return {name: pool.apply(_loss_peak, (name, *arguments)) for name in LOSSES}


def _loss_peak(name: str, *arrays: np.ndarray) -> int:
    """Run one loss, forward and backward, on random hidden states of the batch's shape; return its peak memory."""
    use_threads()
    padded_targets, targets, positions, top_ids, top_log_probs, rest = (torch.from_numpy(array) for array in arrays)
    projection = torch.nn.Parameter(torch.randn(51_864, 384) / 20)
    shape = *padded_targets.shape, 384
    hidden, teacher_hidden = torch.randn(shape, requires_grad=True), torch.randn(shape)
    functional.linear(hidden[:1, :1], projection).sum().backward()  # allocates the gradient of the projection
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak (Linux)
    if name == "a":
        with torch.no_grad():
            dense = functional.linear(teacher_hidden, projection)
        dense_loss(functional.linear(hidden, projection), dense, padded_targets).backward()
    else:
        student, of_teacher = (h.flatten(0, 1).index_select(0, positions) for h in (hidden, teacher_hidden))
        cached = TopK(top_ids, top_log_probs, rest, torch.zeros(len(targets)))
        teacher = Dense(of_teacher, projection.detach()) if name == "b" else cached
        ones = torch.ones(len(targets))
        tokens = TokenBatch(targets, ones.bool(), ones, teacher, None)
        loss, _ = objective_sums(Objective(), WEIGHTS, tokens, (student, projection), lambda rows, log_q: None)
        loss.backward()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0]) - before


if __name__ == "__main__":
    one_line_errors.run(main)
