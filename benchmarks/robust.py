"""Compares a bundle with its teacher on speech that it never saw: can it be trusted anywhere?

    python benchmarks/robust.py --bundle FOLDER --data FOLDER [--quick] [--json]

--data has speech/*-ood-*.parquet (out of domain), speech/*-dev-*.parquet (in domain, reported apart) and noise/noise-*.
The part of a file's name before -ood- or -dev- is the set; a set with rows of several domains becomes several sets.

Prints the tables of `askd evaluate` and, with --json, a line of JSON at the end. WERs are those of the served path, in
percent; differences are in points, the student minus its teacher, with the paired bootstrap over utterances (the macro
mean: every set counts equally). ``worst_set_diff`` is the largest difference of an out-of-domain set. ``runaways`` are
the student's on the served path, on all clips; ``words_per_min_nonspeech`` is raw. ``speed_ratio`` is the median
latency of clips under 5 s in stock faster-whisper with the teacher, divided by that of the student's served path. The
systems take turns in separate processes. --quick takes few clips and ends within 50 s on two cores.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from askd_ray.config.schema import Recipe
from askd_ray.errors import AskdError
from askd_ray.evaluation.decode import Material, collect_hypotheses, decode_jobs, run_decode_job
from askd_ray.evaluation.hypotheses import NON_SPEECH, STUDENT, TEACHER
from askd_ray.evaluation.latency import evenly
from askd_ray.evaluation.scores import score
from askd_ray.evaluation.sets import EvalSet, read_sets
from askd_ray.evaluation.speed import measure_speed
from askd_ray.evaluation.systems import open_system
from askd_ray.evaluation.tables import speed_table, table
from askd_ray.files import read_json
from askd_ray.progress import bar, console
from askd_ray.results.headline import count_runaways
from askd_ray.results.timing import Speed
from askd_ray.results.wer import RateDifference, Scores
from askd_ray.runs import Run

SHORT_S = 5.0
QUICK_CLIPS, QUICK_SPEED_CLIPS, SPEED_CLIPS = 6, 10, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    models = {STUDENT: str(options.bundle), TEACHER: str(read_json(options.bundle / "bundle.json")["teacher"])}
    with TemporaryDirectory() as folder:
        run = Run(recipe(options.data, Path(folder), QUICK_SPEED_CLIPS if options.quick else SPEED_CLIPS))
        sets = read_sets(run)[0]
        if options.quick:
            sets = [replace(one, utterances=tuple(evenly(one.utterances, QUICK_CLIPS))) for one in sets]
        scores = decode_and_score(models, sets, run, Path(folder))
        short = [u for one in sets if one.name != NON_SPEECH for u in one.utterances if u.duration_s < SHORT_S]
        speed = measure_speed(models, TEACHER, short, run.recipe.evaluate)
    console.print(table(scores), speed_table(speed))
    if options.json:
        print(json.dumps(summary(scores, speed)))


def recipe(data: Path, folder: Path, speed_clips: int) -> Recipe:
    """Return a recipe that evaluates on the files of the data folder."""
    sets = [
        {
            "name": name,
            "path": str(data / "speech" / f"{name}-{kind}-*.parquet"),
            "kind": "parquet",
            "in_domain": near,
            "splits": {"ood": "test"},
        }
        for kind, near in (("ood", False), ("dev", True))
        for name in sorted({file.name.split(f"-{kind}-")[0] for file in (data / "speech").glob(f"*-{kind}-*.parquet")})
    ]
    if all(one["in_domain"] for one in sets):
        raise AskdError(f"--data {data}: no speech/*-ood-*.parquet there")
    settings = {
        "split": None,
        "sets": sets,
        "non_speech": True,
        "noise_files": str(data / "noise" / "noise-*"),
        "short_s": SHORT_S,
        "speed_clips": speed_clips,
    }
    return Recipe.model_validate({"name": "robust", "runs_root": str(folder), "evaluate": settings})


def decode_and_score(models: dict[str, str], sets: Sequence[EvalSet], run: Run, folder: Path) -> Scores:
    """Decode all sets with both models in this process."""
    settings = run.recipe.evaluate
    jobs, material = decode_jobs(models, sets, settings), Material.of(sets, settings)
    with bar("decode", sum(len(job.numbers) for job in jobs), "clip") as progress:
        for name, reference in models.items():
            system = open_system(reference)
            for job in (job for job in jobs if job.model == name):
                run_decode_job(job, system, material, folder)
                progress.advance(len(job.numbers))
    return score(list(collect_hypotheses(jobs, material, folder)), TEACHER, settings.normalizer)


def summary(scores: Scores, speed: Speed) -> dict[str, Any]:
    """Return the line of JSON."""
    far, near, raw, faster = scores["out_of_domain"], scores["in_domain"], scores["raw"], speed["speedup"][STUDENT]
    assert far is not None and raw is not None and raw["non_speech"] is not None and "short" in faster
    sets = {
        name: {
            "in_domain": one["in_domain"],
            "clips": one["utterances"],
            "wer": percent(one["models"][STUDENT]["wer"]),
            "teacher_wer": percent(one["models"][TEACHER]["wer"]),
            "raw_wer": percent(raw["sets"][name]["models"][STUDENT]["wer"]),
            "runaways_raw": raw["sets"][name]["models"][STUDENT]["runaways"],
            **difference("diff", one["against_baseline"][STUDENT]),
        }
        for name, one in scores["sets"].items()
    }
    worst = max(far["sets"], key=lambda name: sets[name]["diff"])
    runaways, clips = count_runaways(scores, STUDENT)
    silence = {path: of["non_speech"]["models"] for path, of in (("raw", raw), ("served", scores)) if of["non_speech"]}
    return {
        **difference("ood_macro_diff", far["macro"]["against_baseline"][STUDENT]),
        **difference("worst_set_diff", scores["sets"][worst]["against_baseline"][STUDENT]),
        "worst_set": worst,
        "runaways": runaways,
        "runaways_raw": count_runaways(raw, STUDENT)[0],
        "clips": clips,
        "words_per_min_nonspeech": round(silence["raw"][STUDENT]["words_per_minute"], 3),
        "words_per_min_nonspeech_served": round(silence["served"][STUDENT]["words_per_minute"], 3),
        "words_per_min_nonspeech_teacher": round(silence["raw"][TEACHER]["words_per_minute"], 3),
        "speed_ratio": faster["short"]["value"],
        "speed_ratio_ci95": [faster["short"]["low"], faster["short"]["high"]],
        **({} if near is None else difference("dev_macro_diff", near["macro"]["against_baseline"][STUDENT])),
        "sets": sets,
    }


def difference(name: str, of: RateDifference) -> dict[str, Any]:
    """Return a difference in points and its 95 % interval."""
    return {name: percent(of["value"]), f"{name}_ci95": [percent(of["low"]), percent(of["high"])]}


def percent(share: float) -> float:
    return round(100 * share, 3)


if __name__ == "__main__":
    main()
