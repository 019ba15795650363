from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.schema import Recipe
from askd_ray.distill.schedules import check
from askd_ray.tune.space import Choice, Uniform, search_space, with_trial

share = st.floats(0, 1)


def test_the_space_is_what_the_recipe_opens():
    space = search_space(Recipe.model_validate({"tune": {"schedules": ["linear"], "start": [0.5, 0.6]}}))
    assert space["schedule"] == Choice(("linear",))
    assert space["start"] == Uniform(0.5, 0.6)


@given(st.sampled_from(["constant", "linear", "cosine", "exponential"]), share, share, share)
def test_every_trial_is_a_valid_recipe(schedule: str, start: float, end: float, self_weight: float):
    trial = {"schedule": schedule, "start": start, "end": end, "self_weight": self_weight}
    recipe = with_trial(Recipe(), trial)
    check(recipe.objective, recipe.train.epochs)
    assert recipe.objective.teacher_weight.schedule == schedule
    assert recipe.model_copy(update={"objective": Recipe().objective}) == Recipe()  # nothing else is touched
