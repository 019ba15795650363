"""Measures the trimmed window: a student's bundle in both windows, and its teacher, against stock faster-whisper.

    python benchmarks/window.py [--recipe demo] [--keep TOKENS] [--quick] [--json]

All systems transcribe the encoded bytes of the same held-out clips in turn: greedy, int8, with the same threads, each
in a separate process. --keep also measures the student with only so many text tokens, untrained after the cut, whose
words may be worse than those of a student that was trained with them. --quick takes 20 clips; --json prints the numbers
as the last line. Needs a run with a finished `askd export`.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import one_line_errors

from askd_ray.config.load import load_recipe
from askd_ray.config.student import SmallVocabulary, Student
from askd_ray.data.shards import read_utterances
from askd_ray.evaluation.speed import measure_speed
from askd_ray.evaluation.tables import speed_table
from askd_ray.models.bundle import BUNDLE_FILE
from askd_ray.models.load import convert_to_ctranslate2, load_whisper, save_whisper
from askd_ray.models.vocabulary import prune, pruned_tokens
from askd_ray.progress import console
from askd_ray.runs import Run
from askd_ray.train.inputs import read_vocabulary

QUICK_CLIPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--keep", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    run = Run(recipe)
    run.result("export")
    utterances = read_utterances(run.shards, "test")
    n_clips = QUICK_CLIPS if options.quick else len(utterances)
    # A CTranslate2 folder without bundle.json has no trimmed window: the engine pads its clips to 30 s.
    padded = str(run.bundle / "ctranslate2-int8")
    models = {"student": str(run.bundle), "student, 30 s": padded, "teacher, 30 s": recipe.teacher.model}
    settings = recipe.evaluate.model_copy(update={"stock": True, "speed_clips": n_clips})
    with tempfile.TemporaryDirectory() as folder:
        if options.keep:
            models[f"student, {options.keep} text tokens"] = _with_fewer_tokens(run, options.keep, Path(folder))
        speed = measure_speed(models, "teacher, 30 s", utterances, settings)
    console.print(speed_table(speed))
    if options.json:
        print(json.dumps(speed))


def _with_fewer_tokens(run: Run, keep: int, folder: Path) -> str:
    """Write a bundle of the run's student that keeps the tokens that a training of it would keep; return its path."""
    model, tokens = load_whisper(str(run.bundle / "transformers"))
    small = run.recipe.model_copy(update={"student": Student(vocabulary=SmallVocabulary(keep=keep))})
    vocabulary = replace(read_vocabulary(small), tokens=tokens)
    save_whisper(prune(model, vocabulary), pruned_tokens(vocabulary), folder / "transformers")
    convert_to_ctranslate2(folder / "transformers", folder / "ctranslate2-int8", "int8")
    shutil.copyfile(run.bundle / BUNDLE_FILE, folder / BUNDLE_FILE)  # names the window
    return str(folder)


if __name__ == "__main__":
    one_line_errors.run(main)
