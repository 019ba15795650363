"""The record of an evaluation: the content of scores.json, and of ``scores`` in a bundle.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError

from askd_ray.errors import AskdError
from askd_ray.files import read_json
from askd_ray.results.timing import Speed
from askd_ray.results.wer import Scores


class Evaluation(Scores):
    """The result of the stage `evaluate`. ``left_out`` counts rows that could not be used, by set and reason."""

    speed: Speed
    left_out: dict[str, dict[str, int]]


def read_evaluation(path: Path) -> Evaluation:
    """Read the file scores.json of a run.

    Raises :class:`AskdError` when it is not complete.
    """
    return checked(read_json(path), str(path))


def checked(record: Mapping[str, Any], where: str) -> Evaluation:
    """Return the record of an evaluation, unchanged.

    Raises :class:`AskdError` when it is not complete, as a record of another version may be.
    """
    try:
        TypeAdapter(Evaluation).validate_python(record)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise AskdError(
            f"{where}: {field}: another version of askd-ray has written it: run `askd evaluate` again"
        ) from None
    return cast(Evaluation, record)
