import pytest
from pydantic import ValidationError

from askd_ray.config.evaluate import Evaluate

CALLS = {"name": "calls", "path": "calls"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": None}, "nothing would be scored"),
        ({"sets": [CALLS, CALLS]}, "sets are named calls, calls: each name once"),
        ({"conditions": ["loud"]}, "conditions.0"),
        ({"conditions": ["speed@0.0"]}, "conditions.0"),
        ({"conditions": ["white"]}, "conditions.0"),
        ({"noise_files": "*.wav"}, "noise_files = .* would be ignored"),
        ({"conditions": ["white@10"], "room_files": "*.wav"}, "room_files = .* would be ignored"),
        ({"condition_clips": 5}, "condition_clips = 5 would be ignored: there are no conditions"),
    ],
)
def test_evaluations_that_make_no_sense(values: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        Evaluate.model_validate(values)


def test_conditions_and_what_they_read():
    conditions = ["white@-5", "babble@10", "noise@2.5", "telephone", "room", "speed@0.9", "clip@6"]
    settings = Evaluate.model_validate({"conditions": conditions, "noise_files": "n", "room_files": "r"})
    assert settings.conditions == tuple(conditions)
    assert Evaluate.model_validate({"non_speech": True, "noise_files": "n"}).noise_files == "n"
