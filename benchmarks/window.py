"""What is the trimmed window worth? A student's bundle against its teacher in stock faster-whisper, clip by clip.

    python benchmarks/window.py [--recipe demo] [--quick] [--json]

All get the encoded bytes of the same held-out clips in turn, greedy, int8, on the same threads, each in its own
process. --quick takes the first 20 clips, --json prints the scores as the last line. Needs a run that has been
exported (`askd export`).
"""

import argparse
import json

from askd_ray.config.load import load_recipe
from askd_ray.data.shards import read_utterances
from askd_ray.evaluate.isolated import Isolated
from askd_ray.evaluate.latency import ask
from askd_ray.evaluate.scores import STOCK, STUDENT, score, score_speed, table
from askd_ray.evaluate.systems import EngineSystem, StockSystem
from askd_ray.models.load import ctranslate2_folder
from askd_ray.progress import console
from askd_ray.runs import Run
from askd_ray.torch_setup import n_cores

QUICK_CLIPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe, options.overrides)
    run, threads = Run(recipe), n_cores()
    run.result("export")
    utterances = read_utterances(run.shards, recipe.evaluate.split)
    folder, silence_s = run.bundle / "ctranslate2-int8", recipe.window.silence_s
    utterances = utterances[:QUICK_CLIPS] if options.quick else utterances
    with (
        Isolated(EngineSystem, folder, silence_s, threads) as student,
        Isolated(EngineSystem, folder, None, threads) as padded,
        Isolated(StockSystem, ctranslate2_folder(recipe.teacher.model), threads) as stock,
    ):
        answers = ask({STUDENT: student, "student_padded": padded, STOCK: stock}, utterances)
    short_s = recipe.evaluate.short_s
    short = [i for i, u in enumerate(utterances) if u.duration_s < short_s]
    speed = score_speed({name: a.only(short) for name, a in answers.items()}, STOCK)
    scores = {**score(utterances, answers, short_s), **speed}
    console.print(table(scores))
    if options.json:
        print(json.dumps({**scores, "threads": threads}))


if __name__ == "__main__":
    main()
