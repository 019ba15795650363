"""The stage: teacher and student on the same held-out clips, on the same threads, in the same minutes."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances, write_table
from askd_ray.errors import AskdError
from askd_ray.evaluate.isolated import Isolated
from askd_ray.evaluate.latency import Answers, ask, short_sample
from askd_ray.evaluate.scores import STOCK, STUDENT, TEACHER, score, score_speed, table
from askd_ray.evaluate.systems import EngineSystem, StockSystem, cpu_model
from askd_ray.files import write_json
from askd_ray.models.load import ctranslate2_folder
from askd_ray.progress import console
from askd_ray.runs import Run, stage_key
from askd_ray.torch_setup import n_cores


def evaluate(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Compare the exported student with its teacher on ``recipe.evaluate.split`` and return the scores.

    Student (trimmed windows) and teacher (30 s windows, the same engine) get every clip, as encoded bytes. The speed-up
    is measured on clips under ``evaluate.short_s``, against the teacher in faster-whisper as people run it where
    ``evaluate.stock`` says so. Each system has a process of its own, and they take turns. Writes hypotheses.parquet
    (raw texts and latencies) and scores.json under ``<run>/evaluate`` and prints a table.

    Raises :class:`AskdError`: no bundle yet, an empty split, faster-whisper wanted but not installed.
    """
    run = Run(recipe)
    folder = run.path / "evaluate"
    key = stage_key(recipe.evaluate, recipe.window.silence_s, recipe.teacher.model, run.key("export"))
    done = run.finished("evaluate", key)
    if done is not None and not force:
        console.print(table(done))
        console.print(f"evaluate: finished already ({folder / 'scores.json'})")
        return done
    utterances = read_utterances(run.shards, recipe.evaluate.split)
    if recipe.evaluate.stock and find_spec("faster_whisper") is None:
        raise AskdError(
            "evaluate.stock compares with faster-whisper, which is not installed: pip install 'askd-ray[demo]', or "
            "--set evaluate.stock=false"
        )
    threads = recipe.evaluate.threads or n_cores()
    run.forget("evaluate")
    begun = run.begin()
    answers, speed = _measure(run, utterances, threads)
    result = {
        "split": recipe.evaluate.split,
        **score(utterances, answers, recipe.evaluate.short_s),
        **speed,
        "hardware": {"cpu": cpu_model(), "cores": n_cores(), "threads": threads},
    }
    _write_hypotheses(folder / "hypotheses.parquet", utterances, answers)
    write_json(folder / "scores.json", result)
    console.print(table(result))
    return run.finish("evaluate", key, result, begun)


def _measure(run: Run, utterances: Sequence[Utterance], threads: int) -> tuple[dict[str, Answers], dict[str, Any]]:
    """Return the answers of student and teacher on all clips, and the student's speed on short ones."""
    settings, silence_s = run.recipe.evaluate, run.recipe.window.silence_s
    folder = ctranslate2_folder(run.recipe.teacher.model)
    short = short_sample(utterances, settings.short_s, settings.stock_clips if settings.stock else len(utterances))
    with Isolated(EngineSystem, run.bundle / "ctranslate2-int8", silence_s, threads) as student:
        with Isolated(EngineSystem, folder, None, threads) as teacher:
            answers = ask({STUDENT: student, TEACHER: teacher}, utterances, settings.repeats)
        if not settings.stock:
            at = [i for i, u in enumerate(utterances) if u in short]
            return answers, score_speed({name: a.only(at) for name, a in answers.items()}, TEACHER)
        with Isolated(StockSystem, folder, threads) as stock:
            return answers, score_speed(ask({STUDENT: student, STOCK: stock}, short, settings.repeats), STOCK)


def _write_hypotheses(path: Path, utterances: Sequence[Utterance], answers: dict[str, Answers]) -> None:
    columns: dict[str, Any] = {"id": [u.id for u in utterances], "reference": [u.text for u in utterances]}
    for name, a in answers.items():
        columns[name] = list(a.texts)
        columns[f"{name}_ms"] = a.latency_s * 1000
    write_table(path, pa.table(columns))
