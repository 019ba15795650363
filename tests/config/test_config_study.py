import pytest
from pydantic import ValidationError

from askd_ray.config.study import Study

ARMS = {"ce": {"preset": "ce"}, "askd": {"preset": "askd"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"arms": ARMS, "against": "kd"}, "against = 'kd' is not one of the arms: ce, askd"),
        ({"arms": ARMS, "against": "ce", "seeds": [1, 1]}, "each seed may appear once"),
        ({"arms": ARMS, "against": "ce", "seeds": []}, "at least 1"),
        ({"arms": {"ce": ARMS["ce"]}, "against": "ce"}, "at least 2"),
        ({"arms": {**ARMS, "x": {"preset": "ce", "teacher_weight": {"start": 0.5}}}, "against": "ce"}, "preset ce"),
    ],
)
def test_studies_that_compare_nothing(values: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        Study.model_validate(values)
