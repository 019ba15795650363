"""What a step of the GPU recipes computes, and an estimate of how well it uses a GPU. Nothing runs on a GPU here.

    python benchmarks/recipe_flops.py [--peak-tflops X] [--clip-s S] [--launches N] [--quick] [--json]

Counted: the FLOPs of a full micro-batch (models/cost.py: matrix products and convolutions in the trimmed window, three
forward passes for forward and backward), and those of the teacher for a label. Assumed: matrix products reach
PRODUCT_SHARE of the peak; a kernel launch takes LAUNCH_US, and launches overlap with computing; AdamW moves 28 bytes a
parameter through the memory once a step; the gradients (float32) are summed over the network while the backward pass,
two thirds of the time, runs. Then

    step_s = max(flops / (share * peak), launches * launch_s) + what the network needs longer + 28 * params / bandwidth
    MFU = flops / (step_s * peak)

benchmarks/gpu_step.py measures it on a machine with a GPU.
"""

import argparse
import json
from typing import NamedTuple

import one_line_errors
from rich.table import Table
from transformers import WhisperConfig

from askd_ray.audio.units import FRAMES_PER_S, HOP_LENGTH, PADDED_FRAMES, samples_of, window_samples
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.models.cost import flops, parts
from askd_ray.progress import console

PRODUCT_SHARE = 0.5
LAUNCH_US = 5.0
MEMORY_BYTES_PER_S = 3.35e12  # an H100's data sheet
NETWORK_BYTES_PER_S = {1: float("inf"), 16: 50e9}  # by workers: one GPU; two nodes with 400 Gbit/s a GPU
SPEECH_PER_CORE = 280.0  # seconds of Opus that a core decodes and turns into log-mels in a second (docs/LOG.md)
TOKENS_PER_S = 3.4  # of speech: with prompt and end token about 36 in 10 s


class Shape(NamedTuple):
    """The shape of a published Whisper: the weights are not needed."""

    d_model: int
    layers: int
    heads: int
    n_vocab: int
    n_mels: int

    def config(self, decoder_layers: int) -> WhisperConfig:
        """Return the config of a Whisper of this shape."""
        return WhisperConfig(
            d_model=self.d_model,
            encoder_layers=self.layers,
            decoder_layers=decoder_layers,
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=4 * self.d_model,
            decoder_ffn_dim=4 * self.d_model,
            vocab_size=self.n_vocab,
            num_mel_bins=self.n_mels,
        )


SHAPES = {"gpu_base": Shape(512, 6, 8, 51865, 80), "gpu_large": Shape(1280, 32, 20, 51866, 128)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16: H100 and H200 989, A100 312")
    parser.add_argument("--clip-s", type=float, default=10.0)
    parser.add_argument("--launches", type=int, default=900, help="of a micro-batch")
    parser.add_argument("--quick", action="store_true", help="changes nothing: it takes seconds")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = Table("", title=f"Clips of {options.clip_s:g} s, {options.peak_tflops:g} TFLOP/s at peak: an estimate")
    results = {
        name: estimate(load_recipe(name), shape, options.clip_s, options.peak_tflops * 1e12, options.launches)
        for name, shape in SHAPES.items()
    }
    for name in results:
        table.add_column(name, justify="right")
    for figure in results["gpu_base"]:
        table.add_row(figure, *(f"{result[figure]:g}" for result in results.values()))
    console.print(table)
    if options.json:
        print(json.dumps(results))


def estimate(recipe: Recipe, shape: Shape, clip_s: float, peak: float, launches: int) -> dict[str, float]:
    """Return the counts and the estimates of a recipe's step on each of its workers."""
    layers, batching, workers = recipe.student.decoder_layers, recipe.train.batching, recipe.train.workers.count
    student = shape.config(shape.layers if layers is None else len(layers))
    n_tokens = round(TOKENS_PER_S * clip_s) + 2
    window = window_samples(samples_of(clip_s), recipe.window.silence_s, recipe.window.min_s)
    n_frames = window // HOP_LENGTH
    clips = min(batching.utterances, int(batching.audio_s * FRAMES_PER_S / n_frames), batching.tokens // n_tokens)
    n_micro = -(-(batching.micro_batches or workers) // workers)
    per_clip = flops(student, n_frames, n_tokens, passes=3)
    params = sum(part.params for part in parts(student, n_frames, n_tokens))
    work = n_micro * clips * per_clip
    computing_s = max(work / (PRODUCT_SHARE * peak), n_micro * launches * LAUNCH_US * 1e-6)
    sent = 2 * (workers - 1) / workers * 4 * params  # by each worker, in a ring
    waiting_s = max(0.0, sent / NETWORK_BYTES_PER_S[workers] - computing_s / n_micro * 2 / 3)
    step_s = computing_s + waiting_s + 28 * params / MEMORY_BYTES_PER_S
    teacher = flops(shape.config(shape.layers), PADDED_FRAMES, n_tokens)
    return {
        "parameters, M": round(params / 1e6, 1),
        "clips in a micro-batch": clips,
        "GFLOP a second of audio": round(per_clip / clip_s / 1e9, 1),
        "TFLOP a step and worker": round(work / 1e12, 1),
        "ms at peak": round(1000 * work / peak, 1),
        "ms of launches": round(n_micro * launches * LAUNCH_US / 1000, 1),
        "ms of a step": round(1000 * step_s, 1),
        "MFU, %": round(100 * work / step_s / peak, 1),
        "hours of speech in an hour, all workers": round(workers * n_micro * clips * clip_s / step_s),
        "cores that decode as fast, for a worker": round(n_micro * clips * clip_s / step_s / SPEECH_PER_CORE),
        "teacher, TFLOP a clip (one forward pass)": round(teacher / 1e12, 2),
    }


if __name__ == "__main__":
    one_line_errors.run(main)
