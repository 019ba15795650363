"""The recipe's ``objective``: the terms of the loss and how their weights change over a run (docs/objective.md).

A preset fills in the fields that a recipe does not set, fixes those of its method, and refuses those it would ignore.
"""

from typing import Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from askd_ray.config.presets import PRESETS, FieldValues
from askd_ray.config.schedules import (
    ConstantStatesWeight,
    ConstantTemperature,
    FallingWeight,
    StatesWeight,
    TeacherWeight,
    Temperature,
)
from askd_ray.config.section import Positive, Section, Share
from askd_ray.config.self_teacher import SelfTeacherConfig, SnapshotConfig
from askd_ray.config.states import (
    DecoderStates,
    HiddenStates,
    Intermediate,
    NoDecoderStates,
    NoHiddenStates,
    NoIntermediate,
)
from askd_ray.config.variants import Variants

PresetName = Literal[
    "ce",
    "kd_distil_whisper_paper",
    "kd_distil_whisper_code",
    "adakd",
    "pskd",
    "self_kd",
    "askd",
    "askd_gap",
    "askd_window",
    "ctc",
    "adakd_ctc",
    "inter_kd",
    "askd_ctc",
]
_TEACHER_TERMS = ("instance_weights", "trust_gate")
_DIVERGENCE_TERMS = ("temperature", "divergence")
_STATES_TERMS = ("states_weight",)
TERMS = (*_TEACHER_TERMS, *_DIVERGENCE_TERMS, *_STATES_TERMS)
"""The fields that nothing reads if the weights of the teachers are 0, or without ``decoder_states``."""


class UniformInstances(Section):
    """All utterances have the weight 1."""

    kind: Literal["uniform"] = "uniform"
    """How utterances are weighted."""


class AdaKd(Section):
    """AdaKD (arXiv 2405.08019): the weight of an utterance is ``exp(-exp(k (x - t) / 2))``.

    x is the teacher's loss on the utterance; k goes linearly from ``k_start`` to ``k_end``.
    """

    kind: Literal["adakd"] = "adakd"
    """How utterances are weighted."""
    k_start: float = 15.0
    """k at the start of the run: above 0, utterances that are easy for the teacher weigh more."""
    k_end: float = -10.0
    """k at the end of the run: below 0, utterances that are hard for the teacher weigh more."""
    threshold: Literal["mean"] | float = "mean"
    """t: the ``mean`` of x over the train split, or a percentile of it, from 0 to 100."""

    @model_validator(mode="after")
    def _check_threshold(self) -> "AdaKd":
        if self.threshold != "mean" and not 0.0 <= self.threshold <= 100.0:
            raise ValueError("threshold is mean, or a percentile from 0 to 100")
        return self


InstanceWeights = Annotated[UniformInstances | AdaKd, Field(discriminator="kind")]
"""The weight ``w_i`` of the teacher's term for a whole utterance."""


class NoGate(Section):
    """All tokens have the weight 1."""

    kind: Literal["none"] = "none"
    """How tokens are weighted."""


class HardGate(Section):
    """Only tokens to which the teacher gives enough probability are used."""

    kind: Literal["hard"] = "hard"
    """How tokens are weighted."""
    threshold: Share = 0.01
    """The weight is 1 if the teacher's probability of the reference token reaches this, else 0."""


class SoftGate(Section):
    """Tokens are weighted by the probability that the teacher gives them."""

    kind: Literal["soft"] = "soft"
    """How tokens are weighted."""
    power: Positive = 0.5
    """The weight is the teacher's probability of the reference token to this power."""


TrustGate = Annotated[NoGate | HardGate | SoftGate, Field(discriminator="kind")]
"""The weight ``g_n`` of the teacher's term for a token."""


class KlDivergence(Section):
    """The Kullback-Leibler divergence: forward, KL(teacher || student), or reverse."""

    kind: Literal["forward_kl", "reverse_kl"] = "forward_kl"
    """Which divergence."""
    t_squared: bool = True
    """Multiply it by T^2, which keeps gradients comparable between temperatures."""


class JsdDivergence(Section):
    """The generalised Jensen-Shannon divergence (arXiv 2306.13649)."""

    kind: Literal["jsd"] = "jsd"
    """Which divergence."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """The teacher's share of the mixture, between 0 and 1."""
    t_squared: bool = True
    """Multiply it by T^2, which keeps gradients comparable between temperatures."""


Divergence = Annotated[KlDivergence | JsdDivergence, Field(discriminator="kind")]
"""The divergence between a teacher and the student. Its fields, except kind and t_squared, are its parameters."""


class Objective(Section):
    """``sum_n [c_n CE_n + a w_i g_n T^2 D(teacher, student)_n + b T^2 D(self, student)_n] / N``.

    Losses between encoder states and between decoder states can be added.
    """

    preset: PresetName = "askd"
    """The method (`askd presets`): it fills in the fields that are not set, and fixes some of them."""
    ce_weight: Literal["complement", "instance_complement"] | float = "complement"
    """The c_n: a number, ``complement`` for 1 - a - b, or ``instance_complement`` for 1 - a w_i g_n - b, with a = 0
    for targets that do not come from the teacher."""
    teacher_weight: TeacherWeight = Field(default_factory=FallingWeight)
    """The weight a of the teacher. If it ends after ``self_teacher.switch``, the two phases overlap; if before,
    cross-entropy has the time between them."""
    self_teacher: SelfTeacherConfig = Field(default_factory=SnapshotConfig)
    """The self-teacher and its weight b."""
    temperature: Temperature = Field(default_factory=ConstantTemperature)
    """The temperature T of both divergences."""
    instance_weights: InstanceWeights = UniformInstances()
    """The weight w_i of the teacher's term for a whole utterance."""
    trust_gate: TrustGate = NoGate()
    """The weight g_n of the teacher's term for a token."""
    divergence: Divergence = KlDivergence()
    """The divergence D between a teacher and the student."""
    hidden_states: HiddenStates = Field(default_factory=NoHiddenStates)
    """A loss between encoder states, added to the sum."""
    decoder_states: DecoderStates = Field(default_factory=NoDecoderStates)
    """A loss between decoder states, added to the sum."""
    states_weight: StatesWeight = Field(default_factory=ConstantStatesWeight)
    """The weight s of the teacher's decoder states."""
    intermediate: Intermediate = Field(default_factory=NoIntermediate)
    """The intermediate encoder layers at which a CTC head learns, too."""
    ctc_weight: Positive = 0.3
    """The weight of the CTC head's loss in the loss of a hybrid student."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = cast(FieldValues, values)
        preset = PRESETS.get(str(given.get("preset", "askd")))
        variants = {name: found for name, field in cls.model_fields.items() if (found := Variants.of(field))}
        defaults = _defaults()
        kinds = {name: {v.tag: getattr(defaults[name], v.tag)} for name, v in variants.items()}
        merged = _merged(kinds if preset is None else _merged(kinds, preset.values), given)
        for name, variant in variants.items():
            if isinstance(merged[name], dict):
                of_preset = preset.values.get(name, {}) if preset is not None else {}
                merged[name] = variant.without_other_defaults(merged[name], of_preset)
        _leave_out_unweighted(merged, preset.values if preset is not None else {})
        return merged

    @model_validator(mode="after")
    def _check_preset(self) -> "Objective":
        preset = PRESETS[self.preset]
        fixed = _flat(_merged(_merged({}, _defaults()), preset.values))
        for path, value in _flat(self.model_dump(exclude={"preset"})).items():
            is_open = any(f"{path}.".startswith(f"{prefix}.") for prefix in preset.open)
            if not is_open and path in fixed and value != fixed[path]:
                raise ValueError(
                    f"{path} = {value!r}: preset {self.preset} fixes it at {fixed[path]!r} ({preset.formula})"
                )
        return self

    @model_validator(mode="after")
    def _check_unread_terms(self) -> "Objective":
        why = "the teacher's weight is 0" if self.has_self_teacher else "no teacher has a weight"
        for name in self.unread_terms:
            if getattr(self, name) != _defaults()[name]:
                reason = "decoder_states.kind is none" if name in _STATES_TERMS else why
                raise ValueError(f"{name} would be ignored: {reason}")
        previous_epoch = self.has_self_teacher and self.self_teacher.kind == "previous_epoch"
        if self.decoder_states.kind != "none" and self.decoder_states.self_teacher:
            if not self.has_self_teacher:
                raise ValueError("decoder_states.self_teacher would be ignored: the self-teacher has no weight")
            if previous_epoch:
                raise ValueError(
                    "decoder_states.self_teacher needs states, and self_teacher previous_epoch keeps only "
                    "distributions: use snapshot, ema or best"
                )
        if previous_epoch and self.temperature.schedule != "constant":
            raise ValueError(
                "temperature.schedule must be constant: self_teacher previous_epoch would mix two temperatures"
            )
        return self

    @model_validator(mode="after")
    def _check_intermediate(self) -> "Objective":
        if self.intermediate.kind != "none" and self.intermediate.self_kd and not self.has_self_teacher:
            raise ValueError("intermediate.self_kd would be ignored: the self-teacher has no weight")
        return self

    @property
    def intermediate_layers(self) -> tuple[int, ...]:
        """The intermediate encoder layers that a CTC head reads."""
        return self.intermediate.layers if self.intermediate.kind != "none" else ()

    @property
    def unread_terms(self) -> tuple[str, ...]:
        """The fields of :data:`TERMS` that nothing reads here."""
        return (
            *(() if self.has_teacher else _TEACHER_TERMS),
            *(() if self.has_teacher or self.has_self_teacher else _DIVERGENCE_TERMS),
            *(_STATES_TERMS if self.decoder_states.kind == "none" else ()),
        )

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher's weight is ever above 0."""
        a = self.teacher_weight
        return a.start > 0.0 or (a.schedule != "constant" and a.end > 0.0)

    @property
    def has_self_teacher(self) -> bool:
        """Whether the self-teacher's weight is ever above 0."""
        b = self.self_teacher
        return b.kind != "none" and b.weight > 0.0


def _defaults() -> FieldValues:
    """Return the default of each field of the objective."""
    return {name: field.get_default(call_default_factory=True) for name, field in Objective.model_fields.items()}


def _merged(lower_priority: FieldValues, higher_priority: FieldValues) -> FieldValues:
    """Merge nested values; those of ``higher_priority`` win."""
    merged = dict(lower_priority)
    for name, value in higher_priority.items():
        value = value.model_dump() if isinstance(value, Section) else value
        inner = lower_priority.get(name)
        both_nested = isinstance(inner, dict) and isinstance(value, dict)
        merged[name] = _merged(cast(FieldValues, inner), cast(FieldValues, value)) if both_nested else value
    return merged


def _leave_out_unweighted(merged: FieldValues, preset: FieldValues) -> None:
    """Leave out what a preset sets for a self-teacher to which the recipe gives no weight."""
    self_teacher = merged["self_teacher"]
    if not all(isinstance(merged[name], dict) for name in ("self_teacher", "decoder_states", "intermediate")):
        return
    values = cast(FieldValues, self_teacher)
    if values.get("kind") != "none" and values.get("weight") != 0.0:
        return
    read_by_it = [("self_teacher", name) for name in preset.get("self_teacher", {}) if name not in ("kind", "weight")]
    for section, name in [*read_by_it, ("decoder_states", "self_teacher"), ("intermediate", "self_kd")]:
        of_preset = preset.get(section, {})
        if name in of_preset and merged[section].get(name) == of_preset[name]:
            del merged[section][name]


def _flat(values: FieldValues, prefix: str = "") -> FieldValues:
    """Return nested values keyed by dotted path."""
    flat: FieldValues = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        flat |= _flat(cast(FieldValues, value), f"{path}.") if isinstance(value, dict) else {path: value}
    return flat
