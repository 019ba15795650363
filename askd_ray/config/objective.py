"""The recipe's ``objective``: what is learnt from whom, and how that changes over a run (docs/objective.md).

A preset fills in what a recipe leaves open, fixes what belongs to its method, and refuses what it would ignore.
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
"""Rate of the exponential, power of the polynomial, number of steps, steepness of the sigmoid: the defaults."""


class TeacherWeight(Section):
    """The weight ``a`` of the teacher: from ``start`` to its floor ``end`` while progress goes from 0 to ``until``.

    Where ``until`` lies beyond the self-teacher's ``switch`` the two phases overlap; where it lies before,
    cross-entropy has the time between for itself. ``gap`` falls with the student's distance from the teacher instead
    of with time.
    """

    schedule: Shape = "linear"
    start: Share = 0.8
    end: Share = 0.16
    until: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    sharpness: Positive | None = None

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "TeacherWeight":
        if self.schedule not in SHARPNESS:
            self.refuse_unread(["sharpness"], f"{', '.join(SHARPNESS)} read it, the schedule is {self.schedule}")
        if self.schedule == "constant":
            self.refuse_unread(["end", "until"], "the schedule is constant")
        if self.schedule == "gap":
            self.refuse_unread(["until"], "gap follows the losses, not the time")
        return self


class SelfTeacherConfig(Section):
    """The weight ``b`` of the student's kind_fields knowledge: ``weight`` from progress ``switch`` on, or rising to it.

    ``snapshot``: the student frozen at ``switch``, and anew after each ``refresh`` of progress (0: never). ``ema``: the
    running mean of its weights, with ``decay`` a step. ``previous_epoch``: what it said an epoch ago, its ``top_k``
    log-probabilities a token (PS-KD); ``best``: the student with the best dev WER so far.
    """

    kind: Literal["none", "snapshot", "ema", "previous_epoch", "best"] = "snapshot"
    weight: Share = 0.2
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    switch: Share = 0.5
    refresh: Share = 0.0
    decay: Share = 0.999
    top_k: Annotated[int, Field(ge=1, le=128)] = 32

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "SelfTeacherConfig":
        why = f"the kind is {self.kind}"
        kind_fields = {"snapshot": "refresh", "ema": "decay", "previous_epoch": "top_k"}
        self.refuse_unread([field for kind, field in kind_fields.items() if kind != self.kind], why)
        if self.kind == "none":
            self.refuse_unread(["weight", "schedule", "switch"], why)
        elif self.weight == 0.0:
            self.refuse_unread(["schedule", "switch", *kind_fields.values()], "the weight is 0")
        return self


class Temperature(Section):
    """The temperature T of both divergences. Cached soft labels have ``start`` baked in: they need a constant one."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    start: Positive = 1.0
    end: Positive = 1.0

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "Temperature":
        if self.schedule == "constant":
            self.refuse_unread(["end"], "the schedule is constant")
        return self


class InstanceWeights(Section):
    """How much a whole utterance's teacher counts (``w_i``).

    ``adakd`` (arXiv 2405.08019): ``exp(-exp(k (x - t) / 2))`` with x the teacher's loss on the utterance, t their mean
    (or a percentile, 0 to 100) over the train split, and k falling linearly from ``k_start`` to ``k_end``.
    """

    kind: Literal["uniform", "adakd"] = "uniform"
    k_start: float = 15.0
    k_end: float = -10.0
    threshold: Literal["mean"] | float = "mean"

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "InstanceWeights":
        if self.kind == "uniform":
            self.refuse_unread(["k_start", "k_end", "threshold"], "the kind is uniform")
        if self.threshold != "mean" and not 0.0 <= self.threshold <= 100.0:
            raise ValueError("threshold is mean, or a percentile from 0 to 100")
        return self


class TrustGate(Section):
    """How much a token's teacher counts (``g_n``), by the probability p that it gives the reference token.

    ``hard``: 1 where p reaches ``threshold``, else 0. ``soft``: p to the ``power``.
    """

    kind: Literal["none", "hard", "soft"] = "none"
    threshold: Share = 0.01
    power: Positive = 0.5

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "TrustGate":
        if self.kind != "hard":
            self.refuse_unread(["threshold"], f"the kind is {self.kind}")
        if self.kind != "soft":
            self.refuse_unread(["power"], f"the kind is {self.kind}")
        return self


class Divergence(Section):
    """How far the student is from a teacher: the forward or reverse KL, or the generalised JSD with its ``beta``.

    ``t_squared`` multiplies it by T^2, which keeps gradients comparable over temperatures.
    """

    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    t_squared: bool = True

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "Divergence":
        if self.kind != "jsd":
            self.refuse_unread(["beta"], f"the kind is {self.kind}")
        return self


class HiddenStates(Section):
    """A loss between encoder states of student and teacher, added with ``weight``; needs ``teacher.online``.

    ``layers`` pairs a student's layer with a teacher's (-1: after the last). Where widths differ, a projection is
    learnt with the student and left behind.
    """

    kind: Literal["none", "mse", "cosine"] = "none"
    weight: Positive = 1.0
    layers: tuple[tuple[int, int], ...] = ((-1, -1),)

    @model_validator(mode="after")
    def _only_what_is_read(self) -> "HiddenStates":
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
    def _fill_in_the_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast(FieldValues, values)
        preset = PRESETS.get(given.get("preset", "askd"))
        return given if preset is None else _merged(preset.values, given)

    @model_validator(mode="after")
    def _only_what_the_preset_reads(self) -> "Objective":
        preset = PRESETS[self.preset]
        defaults = {name: field.default for name, field in Objective.model_fields.items() if name != "preset"}
        plain = {n: v.model_dump() if isinstance(v, Section) else v for n, v in defaults.items()}
        fixed = _flat(_merged(plain, preset.values))
        for path, value in _flat(self.model_dump(exclude={"preset"})).items():
            is_open = any(f"{path}.".startswith(f"{prefix}.") for prefix in preset.open)
            if not is_open and value != fixed[path]:
                raise ValueError(
                    f"{path} = {value!r}: preset {self.preset} has it at {fixed[path]!r} ({preset.formula})"
                )
        return self

    @model_validator(mode="after")
    def _only_what_a_term_reads(self) -> "Objective":
        if not self.has_teacher:
            for name in ("instance_weights", "trust_gate"):
                if getattr(self, name) != Objective.model_fields[name].default:
                    raise UnreadFieldError([name], f"{name} would be ignored: the teacher's weight is 0")
            if not self.has_self_teacher and (self.temperature != Temperature() or self.divergence != Divergence()):
                raise UnreadFieldError(
                    ["temperature", "divergence"],
                    "temperature and divergence would be ignored: no teacher has a weight",
                )
        previous = self.has_self_teacher and self.self_teacher.kind == "previous_epoch"
        if previous and self.temperature.schedule != "constant":
            raise ValueError("temperature.schedule would mix with that of the previous epoch: it must be constant")
        return self

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher ever has a weight."""
        a = self.teacher_weight
        return a.start > 0.0 or (a.schedule != "constant" and a.end > 0.0)

    @property
    def has_self_teacher(self) -> bool:
        """Whether the student's own knowledge ever has a weight."""
        return self.self_teacher.kind != "none" and self.self_teacher.weight > 0.0


def _merged(below: FieldValues, above: FieldValues) -> FieldValues:
    """Return nested values, those of ``above`` first."""
    merged = dict(below)
    for name, value in above.items():
        value = value.model_dump() if isinstance(value, Section) else value
        inner = below.get(name)
        both = isinstance(inner, dict) and isinstance(value, dict)
        merged[name] = _merged(cast(FieldValues, inner), cast(FieldValues, value)) if both else value
    return merged


def _flat(values: FieldValues, prefix: str = "") -> FieldValues:
    """Return nested values by dotted path."""
    flat: FieldValues = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat |= _flat(cast(FieldValues, value), f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
