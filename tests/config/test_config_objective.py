"""Presets: each fixes what belongs to its method, and refuses what it would ignore."""

from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from askd_ray.config.load import dump_recipe, load_recipe
from askd_ray.config.objective import Objective
from askd_ray.config.presets import CTC_PRESETS, PRESETS
from askd_ray.config.schema import Recipe
from askd_ray.config.student import Student
from askd_ray.config.targets import Targets
from askd_ray.config.variants import Variants
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
    "decoder_states.kind": "cosine",
    "decoder_states.scale": 2.0,
    "decoder_states.layers": ((0, 1),),
    "decoder_states.self_teacher": True,
    "states_weight.schedule": "cosine",
    "states_weight.start": 0.7,
    "states_weight.end": 0.11,
    "states_weight.until": 0.55,
    "states_weight.sharpness": 3.0,
    "intermediate.kind": "ctc",
    "intermediate.layers": (0,),
    "intermediate.weight": 0.4,
    "intermediate.self_kd": True,
    "ctc_weight": 0.2,
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


VARIANTS = {name: v for name, field in Objective.model_fields.items() if (v := Variants.of(field))}
DEFAULTS = {
    f"{name}.{key}": field.default
    for name, v in VARIANTS.items()
    for section in v.sections.values()
    for key, field in section.model_fields.items()
} | flat(Objective().model_dump())


def behaviour(o: Objective) -> list[Any]:
    """What the training would do differently: weights over the run, and what each part makes of fixed inputs."""
    points = [Progress.at(u / 40, 4.0) for u in range(41)]
    log_p, log_q = (torch.log_softmax(torch.linspace(0, s, 7)[None], -1) for s in (3.0, -1.0))
    loss, w = torch.tensor([0.1, 0.5, 2.0]), o.instance_weights
    t = 75.0 if w.kind == "adakd" and w.threshold != "mean" else 50.0
    return [
        [weights_at(o, p, gap=(1.0 - p.u) ** 2) for p in points],
        o.ce_weight,
        o.divergence.t_squared,
        divergence(o.divergence, log_p, log_q).tolist(),
        instance_weights(o.instance_weights, loss, t / 100, 5.0).tolist(),
        trust_gate(o.trust_gate, loss).tolist(),
        o.self_teacher if o.has_self_teacher else None,
        o.hidden_states,
        o.decoder_states,
        o.intermediate,
        o.ctc_weight,
    ]


def test_there_is_another_value_for_every_field():
    assert {*OTHER, "preset"} == {*DEFAULTS}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("path", OTHER)
def test_a_field_that_a_preset_accepts_changes_the_training_and_others_are_refused(preset: str, path: str):
    plain = Objective(preset=preset)  # type: ignore[arg-type]
    other = DEFAULTS[path] if flat(plain.model_dump()).get(path) == OTHER[path] else OTHER[path]
    values = nested(path, other)
    if path == "temperature.schedule":  # nothing moves between equal ends
        values["temperature"]["end"] = 1.7
    try:
        changed = Objective.model_validate({"preset": preset, **values})
    except ValueError as error:
        message = str(error)
        assert path.rsplit(".", maxsplit=1)[-1] in message or path.split(".")[0] in message
        assert any(word in message for word in ("fixes it at", "would be ignored", "must be constant", "not permitted"))
        return
    assert flat(changed.model_dump())[path] == other
    assert behaviour(changed) != behaviour(plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_survives_being_written_out_in_full(preset: str):
    objective = Objective(preset=preset)  # type: ignore[arg-type]
    assert Objective.model_validate(objective.model_dump()) == objective
    student = Student(reader="ctc" if preset in CTC_PRESETS else "whisper")
    recipe = Recipe(objective=objective, targets=Targets(states="all"), student=student)
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert f"preset: {preset}" in dump_recipe(recipe)


@pytest.mark.parametrize("of_self", [{"weight": 0.0}, {"kind": "none"}], ids=["no weight", "none"])
@pytest.mark.parametrize("preset", [name for name, preset in PRESETS.items() if "self_teacher" in preset.open])
def test_what_a_preset_sets_for_a_self_teacher_goes_with_it(preset: str, of_self: dict[str, object]):
    objective = Objective.model_validate({"preset": preset, "self_teacher": of_self})
    assert not objective.has_self_teacher
    assert Objective.model_validate(objective.model_dump()) == objective
    in_full = Objective(preset=preset).model_dump()  # type: ignore[arg-type]
    assert Objective.model_validate(in_full | {"self_teacher": in_full["self_teacher"] | of_self}) == objective


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(PRESETS)))
def test_presets_of_the_same_task_differ(one: str, other: str):
    if (one in CTC_PRESETS) != (other in CTC_PRESETS):
        return  # `ctc` and `ce` have the same weights, for another task loss
    same = behaviour(Objective(preset=one)) == behaviour(Objective(preset=other))  # type: ignore[arg-type]
    assert same == (one == other)


PLAIN_ASKD = ["objective={preset: askd}", "targets.states=none"]
NO_TEACHER = ["objective.teacher_weight.start=0", "objective.teacher_weight.end=0"]
CONTRADICTIONS = {
    r"objective\.preset = 'adkd'.*did you mean 'adakd'": ["objective.preset=adkd"],
    r"teacher_weight\.start = 0\.5: preset ce fixes it at 0\.0": [
        "objective.preset=ce",
        "objective.teacher_weight.start=0.5",
    ],
    r"objective\.self_teacher\.decay: unknown with kind snapshot: allowed here are .*; kind ema reads decay": [
        "objective.self_teacher.decay=0.9"
    ],
    r"sharpness: unknown with schedule linear: .*; schedule exponential or .* reads sharpness": [
        "objective.teacher_weight.sharpness=2"
    ],
    r"unknown key 'objective\.divergence\.bta': allowed here are beta, .*; did you mean 'beta'": [
        "objective.divergence={kind: jsd, bta: 0.2}"
    ],
    r"objective\.divergence\.beta = 2: Input should be less than 1": ["objective.divergence={kind: jsd, beta: 2}"],
    r"objective\.trust_gate\.kind = 'sft': Input should be one of 'none', .*; did you mean 'soft'": [
        "objective.trust_gate.kind=sft"
    ],
    r"objective\.trust_gate = 'soft': Input should be a valid dictionary": ["objective.trust_gate=soft"],
    r"study\.arms\.a\.divergence\.beta: unknown with kind reverse_kl": [
        "study={against: a, arms: {a: {divergence: {kind: reverse_kl, beta: 0.1}}, b: {}}}"
    ],
    r"trust_gate would be ignored: the teacher's weight is 0": [*NO_TEACHER, "objective.trust_gate.kind=hard"],
    r"computed with one temperature.*teacher\.online=true": ["objective.temperature={schedule: linear, end: 2}"],
    r"adakd needs the teacher's loss": ["objective.preset=adakd", "teacher.online=true"],
    r"teacher\.online = True would be ignored": ["objective.preset=ce", "teacher.online=true"],
    r"hidden_states needs the teacher beside .*teacher\.online=true": ["objective.hidden_states.kind=mse"],
    r"top_k = 8 would be ignored": ["teacher.online=true", "teacher.top_k=8"],
    r"decoder_states needs the teacher's decoder states: set targets\.states=all": ["objective.preset=askd_window"],
    r"layers reads all layers, and targets\.states = last keeps only the last": [
        "objective.preset=askd_window",
        "targets.states=last",
    ],
    r"targets\.states = all would be ignored: an online teacher .*: set targets\.states=none": [
        "teacher.online=true",
        "targets.states=all",
    ],
    r"states_weight would be ignored: decoder_states\.kind is none": ["objective.states_weight.start=0.5"],
    r"decoder_states\.self_teacher would be ignored: the self-teacher has no weight": [
        "targets.states=all",
        "objective={self_teacher: {kind: none}, decoder_states: {kind: mse, self_teacher: true}}",
    ],
    r"self_teacher previous_epoch keeps only distributions: use snapshot, ema or best": [
        "targets.states=all",
        "objective={preset: askd_window, self_teacher: {kind: previous_epoch}}",
    ],
    r"previous_epoch keeps files that all workers read: runs_root must be a folder": [
        "objective.preset=pskd",
        "runs_root=s3://bucket/runs",
    ],
    r"domain_weights of tones: below 1 they leave utterances out of an epoch": [
        "objective.preset=pskd",
        "train.batching.domain_weights={tones: 0.5, calls: 1, other: 2}",
    ],
    r"decoder_states\.layers names student layers, and student\.shrink changes their numbers": [
        "targets.states=all",
        "objective.decoder_states={kind: mse, layers: [[0, 0]]}",
        "student.shrink=[{at: 0.5, decoder_layers: [0, 3]}]",
    ],
}


def test_a_recipe_that_was_written_out_can_have_another_kind():
    written = yaml.safe_load(
        dump_recipe(
            Recipe.model_validate({"objective": {"hidden_states": {"kind": "mse"}}, "teacher": {"online": True}})
        )
    )
    written["objective"]["self_teacher"]["kind"] = "ema"
    written["objective"]["hidden_states"]["kind"] = "none"
    written["teacher"]["online"] = False
    assert Recipe.model_validate(written) == Recipe.model_validate({"objective": {"self_teacher": {"kind": "ema"}}})
    written["objective"]["self_teacher"]["refresh"] = 0.2
    with pytest.raises(ValueError, match=r"refresh\n.*not permitted"):
        Recipe.model_validate(written)


def test_a_preset_s_values_that_another_schedule_does_not_read_are_dropped():
    weight = Objective.model_validate(
        {"preset": "askd_window", "states_weight": {"schedule": "constant"}}
    ).states_weight
    assert weight.model_dump() == {"schedule": "constant", "start": 1.0}
    written = Objective(preset="askd_window").model_dump()
    written["teacher_weight"]["schedule"] = "gap"
    assert Objective.model_validate(written).teacher_weight.model_dump() == {
        "schedule": "gap",
        "start": 1.0,
        "end": 0.2,
    }


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_contradictions_have_one_clear_line(message: str):
    with pytest.raises(AskdError, match=message):
        load_recipe("demo", [*PLAIN_ASKD, *CONTRADICTIONS[message]])
