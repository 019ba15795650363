"""The stage: teacher and student on the same held-out clips, on the same threads, in the same minutes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from askd_ray.config.schema import Recipe
from askd_ray.data.schema import Utterance
from askd_ray.data.shards import read_utterances, write_table
from askd_ray.evaluate.latency import Answers, ask
from askd_ray.evaluate.scores import STUDENT, score, table
from askd_ray.evaluate.systems import EngineSystem, StockSystem, System, cpu_model
from askd_ray.files import write_json
from askd_ray.models.load import ctranslate2_folder
from askd_ray.progress import console
from askd_ray.runs import Run, stage_key
from askd_ray.torch_setup import n_cores


def evaluate(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Compare the exported student with its teacher on ``recipe.evaluate.split`` and return the scores.

    Three systems get each clip in turn, as encoded bytes: the student in trimmed windows, the teacher in the same
    engine with 30 s windows, and (``evaluate.stock``) the teacher in faster-whisper as people run it. Writes
    hypotheses.parquet (raw texts and latencies) and scores.json under ``<run>/evaluate`` and prints a table.

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
    threads = recipe.evaluate.threads or n_cores()
    systems = _systems(recipe, run, threads)
    run.forget("evaluate")
    begun = run.begin()
    answers = ask(systems, utterances, recipe.evaluate.repeats)
    result = {
        "split": recipe.evaluate.split,
        **score(utterances, answers, recipe.evaluate.short_s),
        "hardware": {"cpu": cpu_model(), "cores": n_cores(), "threads": threads},
    }
    _write_hypotheses(folder / "hypotheses.parquet", utterances, answers)
    write_json(folder / "scores.json", result)
    console.print(table(result))
    return run.finish("evaluate", key, result, begun)


def _systems(recipe: Recipe, run: Run, threads: int) -> dict[str, System]:
    teacher = ctranslate2_folder(recipe.teacher.model)
    systems: dict[str, System] = {
        STUDENT: EngineSystem(run.bundle / "ctranslate2-int8", recipe.window.silence_s, threads),
        "teacher": EngineSystem(teacher, None, threads),
    }
    if recipe.evaluate.stock:
        systems["teacher_stock"] = StockSystem(teacher, threads)
    return systems


def _write_hypotheses(path: Path, utterances: Sequence[Utterance], answers: dict[str, Answers]) -> None:
    columns: dict[str, Any] = {"id": [u.id for u in utterances], "reference": [u.text for u in utterances]}
    for name, a in answers.items():
        columns[name] = list(a.texts)
        columns[f"{name}_ms"] = a.latency_s * 1000
    write_table(path, pa.table(columns))
