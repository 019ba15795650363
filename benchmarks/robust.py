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

import one_line_errors

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.errors import AskdError
from askd_ray.evaluation.decode import Material, collect_hypotheses, decode_jobs, run_decode_job
from askd_ray.evaluation.hypotheses import NON_SPEECH, STUDENT, TEACHER
from askd_ray.evaluation.isolated import Isolated
from askd_ray.evaluation.latency import TimedTranscripts, evenly, percentile_ms, speedup, time_systems
from askd_ray.evaluation.scores import score
from askd_ray.evaluation.sets import EvalSet, read_sets
from askd_ray.evaluation.speed import STOCK
from askd_ray.evaluation.systems import bundle_info, open_system
from askd_ray.evaluation.tables import table
from askd_ray.evaluation.timed import EngineSystem
from askd_ray.files import read_json
from askd_ray.models.load import ctranslate2_folder
from askd_ray.models.stock import StockWhisper
from askd_ray.models.threads import allocate_threads
from askd_ray.progress import bar, console
from askd_ray.results.headline import count_runaways
from askd_ray.results.texts import speedup as speedup_text
from askd_ray.results.wer import RateDifference, Scores
from askd_ray.runs import Run
from askd_ray.torch_setup import n_cores

SHORT_S = 5.0
QUICK_CLIPS, QUICK_SPEED_CLIPS, SPEED_CLIPS = 40, 10, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    models = {STUDENT: str(options.bundle), TEACHER: str(read_json(options.bundle / "bundle.json")["teacher"])}
    with TemporaryDirectory() as folder:
        run = Run(recipe(options.data, Path(folder)))
        sets = read_sets(run)[0]
        if options.quick:
            n_clips = max(2, QUICK_CLIPS // len(sets))
            sets = [replace(one, utterances=tuple(evenly(one.utterances, n_clips))) for one in sets]
        scores = decode_and_score(models, sets, run, Path(folder))
        short = [u for one in sets if one.name != NON_SPEECH for u in one.utterances if u.duration_s < SHORT_S]
        timings = time_short_clips(models, evenly(short, QUICK_SPEED_CLIPS if options.quick else SPEED_CLIPS))
    latency_s = {name: timed.latency_s for name, timed in timings.items()}
    faster = speedup(latency_s[STOCK], latency_s[STUDENT])
    p50_ms = {name: percentile_ms(of, 50) for name, of in latency_s.items()}
    console.print(table(scores))
    shown = ", ".join(f"{name} {ms:.0f} ms" for name, ms in p50_ms.items())
    console.print(f"{len(latency_s[STOCK])} clips under {SHORT_S:g} s, median: {shown}; {speedup_text(faster)} as fast")
    if options.json:
        speed = {"speed_ratio": faster["value"], "speed_ratio_ci95": [faster["low"], faster["high"]], "p50_ms": p50_ms}
        print(json.dumps(summary(scores) | speed))


def recipe(data: Path, folder: Path) -> Recipe:
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


def time_short_clips(models: dict[str, str], clips: Sequence[Utterance]) -> dict[str, TimedTranscripts]:
    """Time the student's served path and its teacher in stock faster-whisper, in separate processes, in turns."""
    threads = allocate_threads(bundle_info(models[STUDENT]), n_cores())
    with (
        Isolated(EngineSystem, models[STUDENT], threads, "cpu") as student,
        Isolated(StockWhisper, ctranslate2_folder(models[TEACHER]), n_cores(), "cpu") as stock,
    ):
        return time_systems({STUDENT: student, STOCK: stock}, clips)


def summary(scores: Scores) -> dict[str, Any]:
    """Return the scores of the line of JSON."""
    far, near, raw = scores["out_of_domain"], scores["in_domain"], scores["raw"]
    assert far is not None and raw is not None and raw["non_speech"] is not None
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
        **({} if near is None else difference("dev_macro_diff", near["macro"]["against_baseline"][STUDENT])),
        "sets": sets,
    }


def difference(name: str, of: RateDifference) -> dict[str, Any]:
    """Return a difference in points and its 95 % interval."""
    return {name: percent(of["value"]), f"{name}_ci95": [percent(of["low"]), percent(of["high"])]}


def percent(share: float) -> float:
    return round(100 * share, 3)


if __name__ == "__main__":
    one_line_errors.run(main)
