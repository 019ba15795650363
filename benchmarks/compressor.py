"""Word errors against the states a second that the decoder reads: pooling and HFQ-Former, at several rates.

    python benchmarks/compressor.py [--recipe NAME] [--set KEY=VALUE] [--rates 25 6.25 ...] [--epochs X] [--frozen X]
                                    [--plot FILE.png] [--quick] [--json]

Trains one student of the recipe for each compressor and rate, from the labels that its run has; at the rate 50 there is
no compressor. The encoder is frozen for the share --frozen of each training (1: throughout), and the decoder is
trained with the compressor. Then each student decodes dev: all clips with speech, and those of at least 8 s, stitched
ones among them, whose length makes a low rate count. WERs are in percent, with the bootstrap over clips; differences
are paired. Trainings stay in RUN/compressor/ and continue there.

Without --recipe it labels IVR prompts itself. --quick takes a few of them, and one rate. --json prints one line of JSON
last: ``compressor_wer_gain_at_6`` is the WER of pooling minus that of HFQ at 6.25 states a second, in points.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import one_line_errors
import torch
from labelled_run import write_run
from rich.table import Table
from speech_rows import clips

from askd_ray.audio.units import DecodingWindow
from askd_ray.config.load import load_recipe
from askd_ray.config.schema import Recipe
from askd_ray.config.student import STRIDES
from askd_ray.data.collate import evaluation_windows
from askd_ray.data.dev import read_dev
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import to_table, write_table
from askd_ray.errors import AskdError
from askd_ray.evaluation.significance import compare, draw
from askd_ray.fetch.weights import fetch_weights
from askd_ray.files import atomic_path
from askd_ray.objective.plot import figure_of
from askd_ray.progress import bar, console
from askd_ray.results.wer import Comparison
from askd_ray.runs import Run
from askd_ray.targets.soft_labels import label_key
from askd_ray.text.error_rate import ErrorCounts, count_each
from askd_ray.text.normalize import normalizer
from askd_ray.torch_setup import usable_device, use_threads
from askd_ray.train.build import build_loop, student_kind
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import in_precision

FULL_RATE, AT = 50.0, 6.25  # of the encoder, and of the number in the line of JSON
ALL_RATES, QUICK_RATES = (FULL_RATE, *STRIDES), (AT,)
LONG_S = 8.0
N_CLIPS, QUICK_CLIPS, DEV_SHARE = 300, 8, 4
BATCH_SIZE = 8
BASELINE, COMPRESSORS = "none", ("pooling", "hfq")
FOLDER = "compressor"  # of a run


@dataclass(frozen=True)
class Trained:
    """A trained student: the errors of each dev clip, and its size."""

    kind: str
    rate: float
    errors: tuple[ErrorCounts, ...]
    params_m: float

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.kind if self.kind == BASELINE else f"{self.kind} {self.rate:g}"


def main() -> None:
    options = parse_options()
    use_threads()
    rates = QUICK_RATES if options.quick else sorted(options.rates, reverse=True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.recipe is None:
            recipe = of_prompts(Path(scratch), QUICK_CLIPS if options.quick else N_CLIPS)
        else:
            recipe = load_recipe(options.recipe, options.overrides)
        epochs = 1.0 if options.quick else options.epochs
        kinds = {rate: (BASELINE,) if rate == FULL_RATE else COMPRESSORS for rate in rates}
        chosen = [(kind, rate) for rate in rates for kind in kinds[rate]]
        dev = dev_with_speech(recipe)
        trained = [train(recipe, kind, rate, epochs, options.frozen, dev) for kind, rate in chosen]
    parts = {"all": list(range(len(dev)))}
    if long := [n for n, clip in enumerate(dev) if clip.duration_s >= LONG_S]:
        parts["long"] = long
    compared = {name: comparison(trained, rows, seed) for seed, (name, rows) in enumerate(parts.items())}
    for name, rows in parts.items():
        console.print(as_table(trained, compared[name], f"{name}: {len(rows)} dev clips", [dev[n] for n in rows]))
    if options.plot is not None:
        console.print(f"picture: {draw_curves(trained, compared, options.plot)}")
    if options.json:
        print(json.dumps(summary(trained, compared)))


def gain_of_trained(reference: str) -> float:
    """Return ``compressor_wer_gain_at_6`` of the students that this benchmark has trained for a recipe.

    Raises :class:`AskdError` when the run has none of a kind, or of several settings.
    """
    recipe = load_recipe(reference)
    dev, trained = dev_with_speech(recipe), list[Trained]()
    for kind in COMPRESSORS:
        found = sorted((Run(recipe).path / FOLDER).glob(f"{kind}-{AT:g}-*/best"))
        if len(found) != 1:
            where = f"{Run(recipe).path / FOLDER}: {len(found)} trained students of {kind} at {AT:g} states a second"
            raise AskdError(f"{where}, one is needed: run benchmarks/compressor.py --recipe {reference} --rates {AT:g}")
        trained.append(Trained(kind, AT, tuple(decode(with_compressor(recipe, kind, AT), found[0], dev)), 0.0))
    return summary(trained, {"all": comparison(trained, range(len(dev)), seed=0)})["compressor_wer_gain_at_6"]


def dev_with_speech(recipe: Recipe) -> list[Utterance]:
    """Return the dev clips of a run in which somebody speaks."""
    dev = [u for u in read_dev(Run(recipe).shards, Run(recipe).labels, label_key(recipe)).clips if u.text.strip()]
    if not dev:
        raise AskdError(f"the run {recipe.name} has no dev clips with speech")
    return dev


def with_compressor(recipe: Recipe, kind: str, rate: float) -> Recipe:
    """Return a recipe with another compressor."""
    values = recipe.model_dump(mode="json")
    values["student"]["compressor"] = {"kind": kind} if kind == BASELINE else {"kind": kind, "rate": rate}
    return Recipe.model_validate(values)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--rates", type=float, nargs="+", default=ALL_RATES)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--frozen", type=float, default=0.5)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def of_prompts(root: Path, n_clips: int) -> Recipe:
    """Write shards, labels and dev of IVR prompts, and return their recipe."""
    values = {"name": "prompts", "runs_root": str(root), "teacher": {"model": str(fetch_weights("tiny.en"))}}
    recipe = Recipe.model_validate(values | {"objective": {"preset": "kd_distil_whisper_code"}})
    found = clips(None, n_clips + n_clips // DEV_SHARE)
    dev = found[:: DEV_SHARE + 1][: n_clips // DEV_SHARE]
    write_run(recipe, [clip for clip in found if clip not in dev])
    write_table(Run(recipe).shards / "dev-00000-of-00001.parquet", to_table(dev))
    return recipe


def train(recipe: Recipe, kind: str, rate: float, epochs: float, frozen: float, dev: Sequence[Utterance]) -> Trained:
    """Train a student with a compressor, or continue it, and decode dev with the best one."""
    values = with_compressor(recipe, kind, rate).model_dump(mode="json")
    values["train"] |= {"epochs": epochs, "evals_per_epoch": 1}
    values["train"]["optimizer"]["frozen_until"]["encoder"] = frozen
    one = Recipe.model_validate(values)
    name = f"{kind}-{rate:g}-epochs-{epochs:g}-frozen-{frozen:g}"
    folder, context = Run(recipe).path / FOLDER / name, PlainContext(torch.device(usable_device(gpu(recipe))))
    result = build_loop(one, context, folder, name).run()
    return Trained(kind, rate, tuple(decode(one, folder / "best", dev)), result["params_m"])


def gpu(recipe: Recipe) -> bool:
    return recipe.train.workers.gpu


@torch.no_grad()
def decode(recipe: Recipe, folder: Path, dev: Sequence[Utterance]) -> list[ErrorCounts]:
    """Return the word errors of each clip."""
    kind, device = student_kind(recipe), torch.device(usable_device(gpu(recipe)))
    student = in_precision(kind.load(folder, 0).to(device).eval(), torch.float32)
    texts: dict[str, str] = {}
    windows = evaluation_windows(dev, DecodingWindow.of(recipe.window), student.n_mels, BATCH_SIZE, 1)
    with bar("decode", len(dev), "clip") as progress:
        for batch, log_mel in windows:
            for language in sorted({clip.language for clip in batch}):
                rows = [n for n, clip in enumerate(batch) if clip.language == language]
                found = kind.transcribe(student, log_mel[rows].to(device), language)
                texts |= {batch[n].id: text for n, text in zip(rows, found, strict=True)}
            progress.advance(len(batch))
    normalize = [normalizer(clip.language) for clip in dev]
    references = [of(clip.text) for of, clip in zip(normalize, dev, strict=True)]
    return count_each(references, [of(texts[clip.id]) for of, clip in zip(normalize, dev, strict=True)])


def comparison(trained: Sequence[Trained], rows: Sequence[int], seed: int) -> Comparison:
    """Return WERs of some clips with their intervals, and differences from pooling at 6.25 states a second."""
    errors = np.array([[one.errors[row].errors for one in trained] for row in rows])
    words = np.array([trained[0].errors[row].n_reference for row in rows])
    baseline = next((one.name for one in trained if one.name == f"pooling {AT:g}"), trained[0].name)
    return compare(draw(errors, words, seed).rates, [one.name for one in trained], baseline)


def as_table(trained: Sequence[Trained], compared: Comparison, title: str, dev: Sequence[Utterance]) -> Table:
    seconds, words = sum(clip.duration_s for clip in dev), sum(len(clip.text.split()) for clip in dev)
    shown = Table(title=f"{title}, {seconds:.0f} s, {words} words")
    for column in ("compressor", "states a second", "parameters", "WER %", "95 % interval"):
        shown.add_column(column, justify="right")
    for one in trained:
        rate = compared["models"][one.name]
        low, high = (100 * bound for bound in rate["wer_ci95"])
        of_wer = f"{100 * rate['wer']:.2f}", f"{low:.2f} to {high:.2f}"
        shown.add_row(one.kind, f"{one.rate:g}", f"{one.params_m:g} M", *of_wer)
    return shown


def draw_curves(trained: Sequence[Trained], compared: dict[str, Comparison], path: Path) -> Path:
    """Draw the WER over the rate, a picture for each part of dev."""
    figure, axes = figure_of(len(compared))
    for axis, (name, found) in zip(axes, compared.items(), strict=True):
        for kind in dict.fromkeys(one.kind for one in trained):
            of_kind = [one for one in trained if one.kind == kind]
            scores = [found["models"][one.name] for one in of_kind]
            wers = np.array([100 * score["wer"] for score in scores])
            bounds = np.array([[100 * bound for bound in score["wer_ci95"]] for score in scores])
            spread = np.abs(bounds.T - wers)
            axis.errorbar([one.rate for one in of_kind], wers, spread, marker="o", capsize=3, label=kind)
        axis.set_xscale("log")
        rates = sorted({one.rate for one in trained})
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axis.set_xticks([], minor=True)
        axis.set_xlim(rates[0] / 1.2, 1.2 * rates[-1])
        axis.set_ylabel(f"WER %, {name}")
        axis.set_ylim(bottom=0)
    axes[0].legend()
    axes[-1].set_xlabel("states a second that the decoder reads")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")
    return path


def summary(trained: Sequence[Trained], compared: dict[str, Comparison]) -> dict[str, Any]:
    """Return the line of JSON."""
    pooling, hfq = f"pooling {AT:g}", f"hfq {AT:g}"
    found: dict[str, Any] = {
        "wer": {
            part: {name: round(100 * rate["wer"], 3) for name, rate in one["models"].items()}
            for part, one in compared.items()
        }
    }
    if {pooling, hfq} <= {one.name for one in trained}:
        difference = compared["all"]["against_baseline"][hfq]
        found["compressor_wer_gain_at_6"] = round(0.0 - 100 * difference["value"], 3)
        found["compressor_wer_gain_at_6_ci95"] = [round(0.0 - 100 * difference[end], 3) for end in ("high", "low")]
    return found


if __name__ == "__main__":
    one_line_errors.run(main)
