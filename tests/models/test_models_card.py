import pytest
from scored import description_of

from askd_ray.config.objective import Objective
from askd_ray.config.presets import PRESETS
from askd_ray.models.card import model_card


@pytest.mark.parametrize("preset", PRESETS)
def test_the_card_describes_the_training_of_every_preset(preset: str):
    objective = Objective.model_validate({"preset": preset})
    card = model_card(description_of(objective))
    weight = objective.teacher_weight
    if weight.schedule == "constant":
        assert f"weight `a` is {weight.start:g} throughout" in card
    else:
        assert f"weight `a` goes {weight.schedule} from {weight.start:g} to {weight.end:g}" in card
