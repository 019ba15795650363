"""How well the training loop uses a GPU: Whisper base in bfloat16 on real clips, streamed as in a training.

    python benchmarks/gpu_step.py [--data FOLDER] [--clips N] [--batch N] [--steps N] [--online] [--peak-tflops X]
                                  [--quick] [--json]

It measures utterances and target tokens per second, peak memory, the utilisation of the GPU (multiply-adds of
models/cost.py at the padded shapes, three times for the student's forward and backward pass), and the parts of a step:
waiting for data; then encoder, loss and teacher, each measured alone with its backward pass on some of the batches,
and with the copy of the batch to the GPU and its log-mel; the rest is decoder and optimizer. --online runs the teacher
beside the student instead of cached soft labels. Without a GPU, only --quick runs: tiny.en on the CPU in float32, to
show that the script works.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import one_line_errors
import torch
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips
from torch.amp.grad_scaler import GradScaler

from askd_ray.audio.units import PADDED_FRAMES
from askd_ray.config.schema import Recipe
from askd_ray.data.length_grouped import length_grouped_sampler
from askd_ray.data.sampler import DataCursor
from askd_ray.data.schema import Batch
from askd_ray.models.cost import flops
from askd_ray.models.load import load_whisper
from askd_ray.models.student import DecoderOutput, EncoderOutput
from askd_ray.models.whisper_student import WhisperStudent
from askd_ray.models.windows import WindowedWhisper, encode
from askd_ray.objective.distiller import Distiller
from askd_ray.objective.online_teacher import OnlineTeacher
from askd_ray.objective.schedules import Weights
from askd_ray.objective.self_teacher import build_self_teacher
from askd_ray.objective.tensors import TensorBatch
from askd_ray.progress import bar, console
from askd_ray.torch_setup import use_tf32, use_threads
from askd_ray.train.context import PlainContext
from askd_ray.train.inputs import make_batch_loader
from askd_ray.train.optim import build_optimizer
from askd_ray.train.step import Stepper

WEIGHTS = Weights(teacher_weight=0.5, self_weight=0.0)
WARM_UP = 5
N_TAKEN_APART = 8  # batches whose parts are measured alone
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}  # dense bfloat16, data sheets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--clips", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--online", action="store_true")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.quick:
        console.print("no GPU here: --quick shows on the CPU that this works")
        raise SystemExit(2)
    use_threads()
    use_tf32(device)
    n_clips, n_steps, size = (16, 4, 4) if options.quick else (options.clips, options.steps, options.batch)
    with tempfile.TemporaryDirectory() as root:
        recipe = _recipe(root, device, size, options.online)
        write_run(recipe, clips(options.data, n_clips))
        bench = Bench(recipe, device)
        bench.run(WARM_UP if device.type == "cuda" else 1, n_steps)
    result = bench.result(options.peak_tflops or _peak_tflops(device))
    table = Table(
        title=f"{recipe.teacher.model}, {recipe.train.precision}, batches of up to {size}, on {_name(device)}"
    )
    for column in ("", "value"):
        table.add_column(column, justify="right")
    for name, value in result.items():
        table.add_row(name, str(value))
    console.print(table)
    if options.json:
        print(json.dumps(result))


def _recipe(root: str, device: torch.device, batch_utterances: int, online: bool) -> Recipe:
    values = {
        "name": "steps",
        "runs_root": root,
        "teacher": {"model": "wheel:base" if device.type == "cuda" else "wheel:tiny.en", "online": online},
        "train": {
            "epochs": 1000,
            "batching": {
                "utterances": batch_utterances,
                "audio_s": 15.0 * batch_utterances,
                "tokens": 128 * batch_utterances,
            },
            "precision": "bfloat16" if device.type == "cuda" else "float32",
            "workers": {"gpu": device.type == "cuda"},  # it also computes the log-mels then
        },
    }
    return Recipe.model_validate(values)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _peak_tflops(device: torch.device) -> float | None:
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in _name(device)), None)


class Bench:
    """Training steps and their measurements."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self._recipe, self._device = recipe, device
        self._student = WhisperStudent(load_whisper(recipe.teacher.model)[0]).to(device).train()
        online, clean_mels = None, 0
        if recipe.teacher.online:
            online = OnlineTeacher(WindowedWhisper(load_whisper(recipe.teacher.model)[0]).to(device), False)
            clean_mels = self._student.n_mels
        self_teacher = build_self_teacher(recipe.objective.self_teacher, lambda: None)
        self._distiller = Distiller(recipe.objective, self_teacher, online, 0.0)
        optimizer, scaler = (
            build_optimizer(self._student, recipe.train.optimizer),
            GradScaler(device.type, enabled=False),
        )
        self._stepper = Stepper(self._student, self._student, optimizer, self._distiller, recipe.train, scaler)
        self._loader = make_batch_loader(recipe, self._student.n_mels, clean_mels)
        self._taken: list[Batch] = []
        self._waited_s = self._took_s = 0.0

    def run(self, n_warm_up: int, n_steps: int) -> None:
        """Take steps on streamed batches; the first steps are not counted."""
        batches = PlainContext(self._device).batches(
            self._loader, length_grouped_sampler(self._loader.rows(), self._loader), DataCursor()
        )
        with bar("steps", n_warm_up + n_steps, "step") as progress:
            for number in range(n_warm_up + n_steps):
                if number == n_warm_up:
                    self._taken, self._waited_s, begun = [], 0.0, self._now()
                    if self._device.type == "cuda":
                        torch.cuda.reset_peak_memory_stats()
                asked = time.perf_counter()
                batch = next(batches)
                self._waited_s += time.perf_counter() - asked
                self._stepper.step([batch], WEIGHTS, [number])
                self._taken.append(batch)
                progress.advance()
            self._took_s = self._now() - begun
        batches.close()

    def result(self, peak_tflops: float | None) -> dict[str, float]:
        """Return the results; the utilisation only if the GPU's peak is known."""
        took_s, taken = self._took_s, self._taken
        made = {
            "utterances_per_s": round(sum(len(b.ids) for b in taken) / took_s, 1),
            "tokens_per_s": round(sum(b.n_tokens for b in taken) / took_s, 1),
            "step_ms": round(1000 * took_s / len(taken), 2),
        }
        if peak_tflops is not None:
            work = sum(self._flops(b) for b in taken)
            made["model_flops_utilisation"] = round(work / took_s / (peak_tflops * 1e12), 4)
        if self._device.type == "cuda":
            made["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        shares = {"data": self._waited_s / took_s, **self._parts()}
        shares["rest"] = 1.0 - sum(shares.values())
        return made | {f"{name}_share": round(share, 4) for name, share in shares.items()}

    def _flops(self, batch: Batch) -> int:
        """Return the FLOPs (two per multiply-add): student forward, twice that backward, online teacher forward."""
        config, length = self._student.whisper.config, batch.decoder_ids.shape[1]
        passes = [(3, batch.n_frames)]
        if self._recipe.teacher.online:
            passes.append((1, PADDED_FRAMES))
        return len(batch.ids) * sum(flops(config, frames, length, n) for n, frames in passes)

    def _parts(self) -> dict[str, float]:
        """Return the share of a step that encoder, loss and teacher each take alone."""
        batches = self._taken[:N_TAKEN_APART]
        whole = self._seconds(batches, lambda batch: self._stepper.step([batch], WEIGHTS, [0]))
        encoder = self._seconds(batches, self._encoder)
        teacher = self._seconds(batches, self._teacher) if self._recipe.teacher.online else 0.0
        loss = self._seconds(batches, self._loss) - teacher
        busy = 1.0 - self._waited_s / self._took_s
        return {
            name: busy * part / whole for name, part in (("encoder", encoder), ("loss", loss), ("teacher", teacher))
        }

    def _seconds(self, batches: Sequence[Batch], work: Callable[[Batch], object]) -> float:
        work(batches[0])
        begun = self._now()
        for batch in batches:
            work(batch)
        return self._now() - begun

    def _encoder(self, batch: Batch) -> None:
        tensors = TensorBatch.of(batch, self._device)
        with self._autocast():
            states = encode(
                self._student.whisper.model.encoder, tensors.log_mel, window_frames=tensors.window_frames
            ).states
        states.float().sum().backward()

    def _teacher(self, batch: Batch) -> None:
        assert self._distiller.online is not None
        with self._autocast():
            self._distiller.online(TensorBatch.of(batch, self._device), self._states(batch))

    def _loss(self, batch: Batch) -> None:
        """Compute the loss (and the online teacher, if there is one) on hidden states of the batch's shape."""
        d_model = self._student.whisper.config.d_model
        hidden = torch.randn(*batch.decoder_ids.shape, d_model, device=self._device, requires_grad=True)
        decoded, tensors = DecoderOutput(hidden, self._states(batch)), TensorBatch.of(batch, self._device)
        with self._autocast():
            loss, _ = self._distiller.sums(_Given(decoded), self._student, tensors, WEIGHTS)
        loss.backward()

    def _states(self, batch: Batch) -> EncoderOutput:
        n_positions = batch.n_frames // 2
        return EncoderOutput(torch.zeros(len(batch.ids), n_positions, self._student.whisper.config.d_model))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


class _Given(torch.nn.Module):
    """A network that returns given hidden states."""

    def __init__(self, decoded: DecoderOutput):
        super().__init__()
        self._decoded = decoded

    def forward(
        self, log_mel: torch.Tensor, decoder_ids: torch.Tensor, window_frames: torch.Tensor | None = None
    ) -> DecoderOutput:
        return self._decoded


if __name__ == "__main__":
    one_line_errors.run(main)
