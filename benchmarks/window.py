"""Measures the trimmed window: a student's bundle in both windows, and its teacher, against stock faster-whisper.

    python benchmarks/window.py [--recipe demo] [--quick] [--json]

All systems transcribe the encoded bytes of the same held-out clips in turn: greedy, int8, with the same threads, each
in a separate process. --quick takes 20 clips; --json prints the numbers as the last line. Needs a run with a finished
`askd export`.
"""

import argparse
import json

from askd_ray.config.load import load_recipe
from askd_ray.data.shards import read_utterances
from askd_ray.evaluation.speed import measure_speed
from askd_ray.evaluation.tables import speed_table
from askd_ray.progress import console
from askd_ray.runs import Run

QUICK_CLIPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
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
    speed = measure_speed(models, "teacher, 30 s", utterances, settings)
    console.print(speed_table(speed))
    if options.json:
        print(json.dumps(speed))


if __name__ == "__main__":
    main()
