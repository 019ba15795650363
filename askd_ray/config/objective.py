"""The recipe's ``objective``: the terms of the loss and how their weights change over a run (docs/objective.md).

A preset fills in the fields that a recipe does not set, fixes those of its method, and refuses those it would ignore.
"""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from askd_ray.config.presets import PRESETS, FieldValues
from askd_ray.config.section import Positive, Section, Share, UnreadFieldError

Shape = Literal["constant", "linear", "cosine", "exponential", "polynomial", "step", "sigmoid", "gap"]
PresetName = Literal[
    "ce", "kd_distil_whisper_paper", "kd_distil_whisper_code", "adakd", "pskd", "self_kd", "askd", "askd_gap"
]
SHARPNESS = {"exponential": 5.0, "polynomial": 2.0, "step": 4.0, "sigmoid": 10.0}
"""Defaults: rate of the exponential, power of the polynomial, number of steps, steepness of the sigmoid."""


class TeacherWeight(Section):
    """The weight ``a`` of the teacher: from ``start`` to its minimum ``end`` while progress goes from 0 to ``until``.

    If ``until`` is after the self-teacher's ``switch``, the two phases overlap; if it is before, cross-entropy has the
    time between them. The schedule ``gap`` falls with the student's distance from the teacher, not with time.
    """

    schedule: Shape = "linear"
    start: Share = 0.8
    end: Share = 0.16
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    sharpness: Positive | None = None

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "TeacherWeight":
        if self.schedule not in SHARPNESS:
            self.refuse_unread(["sharpness"], f"only {', '.join(SHARPNESS)} read it, the schedule is {self.schedule}")
        if self.schedule == "constant":
            self.refuse_unread(["end", "until"], "the schedule is constant")
        if self.schedule == "gap":
            self.refuse_unread(["until"], "gap follows the losses, not the time")
        return self


class SelfTeacherConfig(Section):
    """The self-teacher and its weight ``b``: ``weight`` from progress ``switch`` on, or rising to it.

    ``snapshot``: a copy of the student at ``switch``, renewed after each ``refresh`` of progress (0: never). ``ema``:
    the moving average of the student's weights, with ``decay`` per step. ``previous_epoch``: the student's outputs one
    epoch ago, ``top_k`` log-probabilities per token (PS-KD). ``best``: the student with the best dev WER so far.
    """

    kind: Literal["none", "snapshot", "ema", "previous_epoch", "best"] = "snapshot"
    weight: Share = 0.2
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    switch: Share = 0.5
    refresh: Share = 0.0
    decay: Share = 0.999
    top_k: Annotated[int, Field(ge=1, le=128)] = 32

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "SelfTeacherConfig":
        why = f"the kind is {self.kind}"
        kind_fields = {"snapshot": "refresh", "ema": "decay", "previous_epoch": "top_k"}
        self.refuse_unread([field for kind, field in kind_fields.items() if kind != self.kind], why)
        if self.kind == "none":
            self.refuse_unread(["weight", "schedule", "switch"], why)
        elif self.weight == 0.0:
            self.refuse_unread(["schedule", "switch", *kind_fields.values()], "the weight is 0")
        return self


class Temperature(Section):
    """The temperature T of both divergences. Cached soft labels are computed at ``start`` and need a constant one."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: Positive = 1.0
    end: Positive = 1.0

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Temperature":
        if self.schedule == "constant":
            self.refuse_unread(["end"], "the schedule is constant")
        return self


class InstanceWeights(Section):
    """The weight ``w_i`` of the teacher's term for a whole utterance.

    ``adakd`` (arXiv 2405.08019): ``exp(-exp(k (x - t) / 2))``. x is the teacher's loss on the utterance, t the mean (or
    a percentile, 0 to 100) of x over the train split, and k falls linearly from ``k_start`` to ``k_end``.
    """

    kind: Literal["uniform", "adakd"] = "uniform"
    k_start: float = 15.0
    k_end: float = -10.0
    threshold: Literal["mean"] | float = "mean"

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "InstanceWeights":
        if self.kind == "uniform":
            self.refuse_unread(["k_start", "k_end", "threshold"], "the kind is uniform")
        if self.threshold != "mean" and not 0.0 <= self.threshold <= 100.0:
            raise ValueError("threshold is mean, or a percentile from 0 to 100")
        return self


class TrustGate(Section):
    """The weight ``g_n`` of the teacher's term for a token; p is the teacher's probability of the reference token.

    ``hard``: 1 if p reaches ``threshold``, else 0. ``soft``: p to the ``power``.
    """

    kind: Literal["none", "hard", "soft"] = "none"
    threshold: Share = 0.01
    power: Positive = 0.5

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "TrustGate":
        if self.kind != "hard":
            self.refuse_unread(["threshold"], f"the kind is {self.kind}")
        if self.kind != "soft":
            self.refuse_unread(["power"], f"the kind is {self.kind}")
        return self


class Divergence(Section):
    """The divergence between a teacher and the student: forward or reverse KL, or generalised JSD with ``beta``.

    ``t_squared`` multiplies it by T^2, which keeps gradients comparable between temperatures.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    t_squared: bool = True

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Divergence":
        if self.kind != "jsd":
            self.refuse_unread(["beta"], f"the kind is {self.kind}")
        return self


class HiddenStates(Section):
    """A loss between encoder states of student and teacher, added with ``weight``; needs ``teacher.online``.

    ``layers`` pairs a student layer with a teacher layer (-1: after the last). If their widths differ, a projection is
    trained with the student and dropped at the end.
    """

    kind: Literal["none", "mse", "cosine"] = "none"
    weight: Positive = 1.0
    layers: tuple[tuple[int, int], ...] = ((-1, -1),)

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "HiddenStates":
        if self.kind == "none":
            self.refuse_unread(["weight", "layers"], "the kind is none")
        elif not self.layers:
            raise ValueError("layers is empty: name at least one [student layer, teacher layer]")
        return self


class Objective(Section):
    """``sum_n [c_n CE_n + a w_i g_n T^2 D(teacher, student)_n + b T^2 D(self, student)_n] / N``.

    ``ce_weight`` is the c_n: a number, ``complement`` for 1 - a - b, or ``instance_complement`` for 1 - a w_i g_n - b.
    """

    preset: PresetName = "askd"
    ce_weight: Literal["complement", "instance_complement"] | float = "complement"
    teacher_weight: TeacherWeight = TeacherWeight()
    self_teacher: SelfTeacherConfig = SelfTeacherConfig()
    temperature: Temperature = Temperature()
    instance_weights: InstanceWeights = InstanceWeights()
    trust_gate: TrustGate = TrustGate()
    divergence: Divergence = Divergence()
    hidden_states: HiddenStates = HiddenStates()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast(FieldValues, values)
        preset = PRESETS.get(given.get("preset", "askd"))
        return given if preset is None else _merged(preset.values, given)

    @model_validator(mode="after")
    def _check_preset(self) -> "Objective":
        preset = PRESETS[self.preset]
        defaults = {name: field.default for name, field in Objective.model_fields.items() if name != "preset"}
        plain = {n: v.model_dump() if isinstance(v, Section) else v for n, v in defaults.items()}
        fixed = _flat(_merged(plain, preset.values))
        for path, value in _flat(self.model_dump(exclude={"preset"})).items():
            is_open = any(f"{path}.".startswith(f"{prefix}.") for prefix in preset.open)
            if not is_open and value != fixed[path]:
                raise ValueError(
                    f"{path} = {value!r}: preset {self.preset} fixes it at {fixed[path]!r} ({preset.formula})"
                )
        return self

    @model_validator(mode="after")
    def _check_unread_terms(self) -> "Objective":
        if not self.has_teacher:
            for name in ("instance_weights", "trust_gate"):
                if getattr(self, name) != Objective.model_fields[name].default:
                    raise UnreadFieldError([name], f"{name} would be ignored: the teacher's weight is 0")
            if not self.has_self_teacher and (self.temperature != Temperature() or self.divergence != Divergence()):
                raise UnreadFieldError(
                    ["temperature", "divergence"],
                    "temperature and divergence would be ignored: no teacher has a weight",
                )
        uses_previous_epoch = self.has_self_teacher and self.self_teacher.kind == "previous_epoch"
        if uses_previous_epoch and self.temperature.schedule != "constant":
            raise ValueError(
                "temperature.schedule must be constant: self_teacher previous_epoch would mix two temperatures"
            )
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's weight is ever above 0."""
        a = self.teacher_weight
        return a.start > 0.0 or (a.schedule != "constant" and a.end > 0.0)

    @property
    def has_self_teacher(self) -> bool:
        """Whether the self-teacher's weight is ever above 0."""
        return self.self_teacher.kind != "none" and self.self_teacher.weight > 0.0


def _merged(lower_priority: FieldValues, higher_priority: FieldValues) -> FieldValues:
    """Merge nested values; those of ``higher_priority`` win."""
    merged = dict(lower_priority)
    for name, value in higher_priority.items():
        value = value.model_dump() if isinstance(value, Section) else value
        inner = lower_priority.get(name)
        both_nested = isinstance(inner, dict) and isinstance(value, dict)
        merged[name] = _merged(cast(FieldValues, inner), cast(FieldValues, value)) if both_nested else value
    return merged


def _flat(values: FieldValues, prefix: str = "") -> FieldValues:
    """Return nested values keyed by dotted path."""
    flat: FieldValues = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat |= _flat(cast(FieldValues, value), f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
