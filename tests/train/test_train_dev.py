from typing import Any

import torch
from killed_run import CPU

from askd_ray.config.schema import Recipe
from askd_ray.data.shards import read_utterances
from askd_ray.models.load import load_whisper
from askd_ray.runs import Run
from askd_ray.train.context import PlainContext
from askd_ray.train.dev import dev_errors


def test_dev_is_decoded_as_the_student_was_taught(labelled: Recipe):
    targets = {"kind": "pseudo", "prompt": "as before", "timestamps": True}
    recipe = Recipe.model_validate({**labelled.model_dump(mode="json"), "targets": targets})
    model, tokens = load_whisper(recipe.teacher.model)
    asked: list[list[int]] = []

    def listen(_: torch.nn.Module, __: Any, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            asked.extend(kwargs["input_ids"].tolist())

    model.model.decoder.register_forward_pre_hook(listen, with_kwargs=True)
    utterances = read_utterances(Run(labelled).shards, "dev")
    errors = dev_errors(model, tokens, utterances, recipe, PlainContext(CPU))
    assert asked == [list(tokens.prompt("en", "as before", timestamps=True))] * len(utterances)
    assert errors.n_reference > 0
