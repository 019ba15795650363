"""The scores of an evaluation in the bundles that it scored: what `askd promote` and the model card read."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from askd_ray.config.evaluate import Normalizer
from askd_ray.evaluate.hypotheses import CLEAN, STUDENT, TEACHER, Hypothesis, to_table
from askd_ray.evaluate.scores import score
from askd_ray.models.bundle import add_scores


def publish_scores(bundle: Path, evaluated: Mapping[str, Any], rows: Sequence[Hypothesis]) -> None:
    """Put the scores into the student's bundle, and what the student said in clean clips.

    ``evaluated`` is what the stage `evaluate` returns, ``rows`` are its hypotheses.

    Raises :class:`AskdError` when the bundle is missing or damaged.
    """
    add_scores(bundle, evaluated, to_table([row for row in rows if (row.model, row.condition) == (STUDENT, CLEAN)]))


def evaluation_of_one(
    evaluated: Mapping[str, Any], rows: Sequence[Hypothesis], model: str, normalizer: Normalizer
) -> tuple[dict[str, Any], list[Hypothesis]]:
    """Return the scores and the hypotheses of one of many students, as if it had been evaluated alone.

    It is called :data:`STUDENT` there, beside its teacher. The speed stays that of the student that was measured: all
    are of one shape.
    """
    names = {model: STUDENT, TEACHER: TEACHER}
    alone = [replace(row, model=names[row.model]) for row in rows if row.model in names]
    speed = evaluated["speed"]
    measured = {name for name in speed["models"] if name in evaluated["models"] and name != TEACHER}
    renamed = {
        key: {STUDENT if name in measured else name: value for name, value in speed[key].items()}
        for key in ("models", "speedup")
    }
    scores = {**score(alone, TEACHER, normalizer), "speed": {**speed, **renamed}, "left_out": evaluated["left_out"]}
    return scores, alone
