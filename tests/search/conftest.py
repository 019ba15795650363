import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny_run import clip, copy_of_run, labelled, tiny_model  # noqa: F401

from askd_ray.config.schema import Recipe
from askd_ray.data.shards import to_table, write_table
from askd_ray.runs import Run

POISONED = {"sets": [{"name": "far", "path": "/there/is/no/such/folder"}]}


@pytest.fixture
def searched(copy_of_run: Callable[[], Recipe]) -> Callable[..., Recipe]:  # noqa: F811
    """Return the labelled run with its own search.

    Its dev split has a second domain, its test split cannot be read, and its test set is not there.
    """

    def make(tune: dict[str, Any], **sections: Any) -> Recipe:
        recipe = copy_of_run()
        run = Run(recipe)
        prepared = {"read": 20, "utterances": {"train": 14, "dev": 6, "test": 0}, "quarantined": {}}
        run.finish("prepare", "shards", prepared, time.monotonic())
        labels = {"utterances": 14, "labelled": 14, "left_out": {}, "tokens": 100, "teacher_loss": 10.0}
        run.finish("label", "labels", labels, time.monotonic())
        calls = [replace(clip(30 + i, "press four", "dev"), domain="calls") for i in range(3)]
        write_table(run.shards / "dev-00001-of-00002.parquet", to_table(calls))
        (run.shards / "test-00000-of-00001.parquet").write_bytes(b"poison")
        values = recipe.model_dump(mode="json") | {"evaluate": POISONED}
        return Recipe.model_validate({**values, **sections, "tune": tune})

    return make
