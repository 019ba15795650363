"""Writes the scores of an evaluation into the bundles that it scored; `askd promote` and the model card read them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from askd_ray.evaluation.hypotheses import CLEAN, STUDENT, TEACHER, Hypothesis, to_table
from askd_ray.evaluation.scores import score
from askd_ray.models.bundle import add_scores
from askd_ray.results.evaluation import Evaluation
from askd_ray.results.timing import Speed


def publish_scores(bundle: Path, evaluated: Evaluation, rows: Sequence[Hypothesis]) -> None:
    """Write the scores and the student's hypotheses of clean clips, served and raw, into the student's bundle.

    ``evaluated`` is the result of the stage `evaluate`; ``rows`` are its hypotheses.

    Raises :class:`AskdError` when the bundle is missing or damaged.
    """
    add_scores(bundle, evaluated, to_table([row for row in rows if (row.model, row.condition) == (STUDENT, CLEAN)]))


def evaluation_of_one(
    evaluated: Evaluation, rows: Sequence[Hypothesis], model: str
) -> tuple[Evaluation, list[Hypothesis]]:
    """Return the scores and hypotheses of one of many students, as if only this student had been evaluated.

    In the result the student is called :data:`STUDENT`. The speed is that of the one student that was measured: all
    students have the same shape.
    """
    names = {model: STUDENT, TEACHER: TEACHER}
    student_rows = [replace(row, model=names[row.model]) for row in rows if row.model in names]
    speed = evaluated["speed"]
    new_names = {name: STUDENT for name in evaluated["models"] if name != TEACHER}
    renamed: Speed = {
        **speed,
        "models": {new_names.get(name, name): of for name, of in speed["models"].items()},
        "speedup": {new_names.get(name, name): of for name, of in speed["speedup"].items()},
    }
    comparison = score(student_rows, TEACHER, evaluated["normalizer"])
    return {**comparison, "speed": renamed, "left_out": evaluated["left_out"]}, student_rows
