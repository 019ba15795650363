"""Presets: each fixes what belongs to its method, and refuses what it would ignore."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.objective import Objective
from askd_ray.config.presets import PRESETS
from askd_ray.config.schema import Recipe
from askd_ray.divergence.kinds import divergence
from askd_ray.errors import AskdError
from askd_ray.objective.instance_weights import instance_weights, trust_gate
from askd_ray.objective.schedules import Progress, weights_at

# Another value for every field of an objective, one that is read wherever the field is.
OTHER: dict[str, Any] = {
    "ce_weight": 0.5,
    "teacher_weight.schedule": "cosine",
    "teacher_weight.start": 0.7,
    "teacher_weight.end": 0.11,
    "teacher_weight.until": 0.55,
    "teacher_weight.sharpness": 3.0,
    "self_teacher.kind": "ema",
    "self_teacher.weight": 0.15,
    "self_teacher.schedule": "cosine",
    "self_teacher.switch": 0.35,
    "self_teacher.refresh": 0.1,
    "self_teacher.decay": 0.9,
    "self_teacher.top_k": 5,
    "temperature.schedule": "linear",
    "temperature.start": 3.0,
    "temperature.end": 1.5,
    "instance_weights.kind": "adakd",
    "instance_weights.k_start": 12.0,
    "instance_weights.k_end": -3.0,
    "instance_weights.threshold": 75.0,
    "trust_gate.kind": "soft",
    "trust_gate.threshold": 0.3,
    "trust_gate.power": 2.0,
    "divergence.kind": "jsd",
    "divergence.beta": 0.2,
    "divergence.t_squared": False,
    "hidden_states.kind": "mse",
    "hidden_states.weight": 0.5,
    "hidden_states.layers": ((0, 1),),
}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def nested(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


DEFAULTS = flat(Objective().model_dump())


def behaviour(o: Objective) -> list[Any]:
    """What the training would do differently: weights over the run, and what each part makes of fixed inputs."""
    points = [Progress.at(u / 40, 4.0) for u in range(41)]
    log_p, log_q = (torch.log_softmax(torch.linspace(0, s, 7)[None], -1) for s in (3.0, -1.0))
    loss, t = torch.tensor([0.1, 0.5, 2.0]), 50.0 if o.instance_weights.threshold == "mean" else 75.0
    self_teacher = o.self_teacher
    copying = self_teacher.kind if o.has_self_teacher else "none"
    hidden = o.hidden_states
    return [
        [weights_at(o, p, gap=(1.0 - p.u) ** 2) for p in points],
        o.ce_weight,
        o.divergence.t_squared,
        divergence(o.divergence, log_p, log_q).tolist(),
        instance_weights(o.instance_weights, loss, t / 100, 5.0).tolist(),
        trust_gate(o.trust_gate, loss).tolist(),
        [copying, self_teacher.refresh, self_teacher.decay, self_teacher.top_k],
        [hidden.kind, hidden.weight, hidden.layers],
    ]


def test_there_is_another_value_for_every_field():
    assert set(OTHER) == set(flat(Objective().model_dump(exclude={"preset"})))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", OTHER)
def test_a_field_that_a_preset_accepts_changes_the_training_and_others_are_refused(preset: str, path: str):
    plain = Objective(preset=preset)  # type: ignore[arg-type]
    other = DEFAULTS[path] if flat(plain.model_dump())[path] == OTHER[path] else OTHER[path]
    values = nested(path, other)
    if path == "temperature.schedule":  # nothing moves between equal ends
        values["temperature"]["end"] = 1.7
    try:
        changed = Objective.model_validate({"preset": preset, **values})
    except ValueError as error:
        message = str(error)
        assert path.rsplit(".", maxsplit=1)[-1] in message or path.split(".")[0] in message
        assert any(word in message for word in ("fixes it at", "would be ignored", "must be constant"))
        return
    assert flat(changed.model_dump())[path] == other
    assert behaviour(changed) != behaviour(plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_being_written_out_in_full(preset: str):
    objective = Objective(preset=preset)  # type: ignore[arg-type]
    assert Objective.model_validate(objective.model_dump()) == objective
    recipe = Recipe(objective=objective)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert f"preset: {preset}" in dump_recipe(recipe)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(PRESETS)))
def test_presets_differ(one: str, other: str):
    same = behaviour(Objective(preset=one)) == behaviour(Objective(preset=other))  # type: ignore[arg-type]
    assert same == (one == other)


NO_TEACHER = ["objective.teacher_weight.start=0", "objective.teacher_weight.end=0"]
CONTRADICTIONS = {
    r"objective\.preset = 'adkd'.*did you mean 'adakd'": ["objective.preset=adkd"],
    r"teacher_weight\.start = 0\.5: preset ce fixes it at 0\.0": [
        "objective.preset=ce",
        "objective.teacher_weight.start=0.5",
    ],
    r"self_teacher: decay = 0\.9 would be ignored: the kind is snapshot": ["objective.self_teacher.decay=0.9"],
    r"sharpness = 2\.0 would be ignored: .*the schedule is linear": ["objective.teacher_weight.sharpness=2"],
    r"trust_gate would be ignored: the teacher's weight is 0": [*NO_TEACHER, "objective.trust_gate.kind=hard"],
    r"computed with one temperature.*teacher\.online=true": ["objective.temperature={schedule: linear, end: 2}"],
    r"adakd needs the teacher's loss": ["objective.preset=adakd", "teacher.online=true"],
    r"teacher\.online = True would be ignored": ["objective.preset=ce", "teacher.online=true"],
    r"hidden_states needs the teacher beside .*teacher\.online=true": ["objective.hidden_states.kind=mse"],
    r"top_k = 8 would be ignored": ["teacher.online=true", "teacher.top_k=8"],
}


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_have_one_clear_line(message: str):
    with pytest.raises(AskdError, match=message):
        load_recipe("demo", CONTRADICTIONS[message])
