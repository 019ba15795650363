"""The recipe's ``tune``: the search space, the searcher and scheduler, and the score of a search (docs/search.md)."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from askd_ray.config.objective import Objective
from askd_ray.config.renamed import RENAMED
from askd_ray.config.section import Count, Positive, Section, Share
from askd_ray.config.train import Optimization
from askd_ray.config.variants import Variants
from askd_ray.errors import did_you_mean

Value = bool | int | float | str | None
"""The type of a searched field's value."""


class Between(Section):
    """A range of numbers."""

    low: float
    """The lower bound, included."""
    high: float
    """The upper bound, included."""
    log: bool = False
    """Draw evenly on a logarithmic scale."""

    @model_validator(mode="after")
    def _check_bounds(self) -> "Between":
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        if self.log and self.low <= 0.0:
            raise ValueError(f"low = {self.low:g}: with log it must be above 0")
        return self


Domain = Between | tuple[Value, ...]
Space = dict[str, Domain]

DEFAULT_SPACE: Space = {
    "objective.teacher_weight.schedule": ("constant", "linear", "cosine"),
    "objective.teacher_weight.start": Between(low=0.5, high=0.9),
    "objective.teacher_weight.end": Between(low=0.0, high=0.4),
    "objective.self_teacher.weight": Between(low=0.0, high=0.3),
}

_LEARNING_RATES = tuple(f"train.optimizer.{name}" for name in ("lr", "encoder_lr", "embedding_lr", "head_lr"))
_NOT_SEARCHED = ("objective.preset", "objective.hidden_states.layers", "objective.decoder_states.layers")
_SHAPES_STATE = (
    "objective.self_teacher.kind",
    "objective.self_teacher.top_k",
    "objective.hidden_states.kind",
    "objective.decoder_states.kind",
)


@cache
def searchable() -> dict[str, TypeAdapter[Value]]:
    """Return the paths that a search may vary, each with the validator of its values.

    They are the numbers and names of ``objective``, except the preset (`askd study` compares presets), and the
    learning rates.
    """
    rates = {path: Optimization.model_fields[path.rpartition(".")[2]] for path in _LEARNING_RATES}
    fields = {**dict(_leaves(Objective, "objective.")), **rates}
    # The field holds the bounds; pyright does not understand annotations made at run time.
    kinds = {path: cast(Any, Annotated)[field.annotation, field] for path, field in fields.items()}
    return {path: TypeAdapter(kind) for path, kind in kinds.items() if path not in _NOT_SEARCHED}


def _leaves(section: type[Section], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the paths below a section with their fields; of a union, those of all its sections and its tag."""
    for name, field in section.model_fields.items():
        variants, kind = Variants.of(field), field.annotation
        if variants is not None:
            for variant in variants.sections.values():
                yield from _leaves(variant, f"{prefix}{name}.")
            kinds = cast(Any, Literal[tuple(variants.sections)])
            yield f"{prefix}{name}.{variants.tag}", FieldInfo.from_annotation(kinds)
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _domain(path: str, given: Any) -> Domain:
    """Return the values to search for a path; raises :class:`ValueError` that names the path."""
    if path not in searchable():
        section = path.partition(".")[0]
        if path in RENAMED:
            raise ValueError(f"{path} is called {RENAMED[path]} now")
        allowed = f"the fields of objective except its preset, and {', '.join(_LEARNING_RATES)}"
        unknown = did_you_mean(path, list(searchable())) if section in ("objective", "train") else ""
        raise ValueError(f"{path} cannot be searched: only {allowed} can{unknown}")
    if isinstance(given, Mapping):
        given = _between(path, cast(Mapping[str, Any], given))
    if isinstance(given, Between):
        ends = [_checked(path, end) for end in (given.low, given.high)]
        if not all(type(end) in (int, float) for end in ends):
            raise ValueError(f"{path} is not a number: give a list of values")
        return given
    if not isinstance(given, list | tuple) or not given:
        raise ValueError(f"{path} = {given!r}: give a list of values, or {{low: ..., high: ..., log: true}}")
    values = tuple(_checked(path, value) for value in cast(list[Any], given))
    if len({repr(value) for value in values}) < len(values):
        raise ValueError(f"{path} = {given!r}: each value may appear once")
    return values


def _between(path: str, given: Mapping[str, Any]) -> Between:
    try:
        return Between.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([path, *(str(part) for part in first["loc"])])
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def _checked(path: str, value: Any) -> Value:
    try:
        return searchable()[path].validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{path} = {value!r}: {error.errors()[0]['msg']}") from None


def is_integer(path: str) -> bool:
    """Whether a searchable path takes only integers."""
    return searchable()[path].json_schema().get("type") == "integer"


class Tune(Section):
    """The search of `askd tune` (docs/search.md): candidates are trained briefly and scored by WER on dev.

    Fields that a candidate's kinds do not read are left out, and weights are limited so that they add up to at most 1.
    """

    trials: Count = 4
    """The number of candidates."""
    epochs: Positive = 2
    """The length of a trial, in epochs."""
    evals_per_epoch: Count = 2
    """The number of dev evaluations per epoch."""
    concurrent: Count = 1
    """The number of trials at the same time."""
    trial_workers: Count = 1
    """The number of Ray Train workers of a trial, which divide its micro-batches; with ``train.workers.gpu``, each of
    several workers has a GPU. Except for rounding it does not change the scores."""
    cpus_per_trial: Positive = 1.0
    """The CPUs that Ray reserves for a trial, for all of its workers together."""
    gpus_per_trial: Positive = 1.0
    """The GPUs that Ray reserves for a trial of one worker, with ``train.workers.gpu``; 0.25: four trials share one."""
    space: Space = Field(default_factory=DEFAULT_SPACE.copy)
    """Maps a path to a list of values or to ``{low, high}``; for a learning rate to ``{low, high, log: true}``."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """``tpe`` learns from earlier trials, ``random`` draws, ``grid`` tries every combination of lists."""
    scheduler: Literal["asha", "pbt", "none"] = "asha"
    """``asha`` stops a trial that is worse than others at the same evaluation; ``pbt`` continues it from a better
    trial's checkpoint with similar values, so that values change during a trial; ``none`` does neither."""
    ood_domains: tuple[str, ...] = ()
    """Domains of dev that are not in the training data, for the score."""
    ood_weight: Share = 0.5
    """The score is this times the WER of ``ood_domains`` plus the rest times the WER of the others, from 0 to 1."""
    max_features_gb: Annotated[float, Field(ge=0.0)] = 32.0
    """Decode clips once for all trials if the files take at most so many GB (and half of the disk's free space): 115 to
    184 MB per hour of speech, 230 MB with augmentation. They are deleted when the search ends. 0: never."""

    @field_validator("space", mode="before")
    @classmethod
    def _read_space(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not given:
            raise ValueError(
                "space maps paths, such as train.optimizer.lr, to lists of values or {low: ..., high: ...}"
            )
        return {str(path): _domain(str(path), domain) for path, domain in cast(Mapping[Any, Any], given).items()}

    @model_validator(mode="after")
    def _check_scheduler(self) -> "Tune":
        if self.searcher == "grid":
            self.refuse_unread(["trials"], "searcher grid tries every combination")
            ranges = [path for path, domain in self.space.items() if isinstance(domain, Between)]
            if ranges:
                raise ValueError(f"searcher grid tries lists of values, and {', '.join(ranges)} is a range")
        if self.scheduler != "pbt":
            return self
        if self.searcher != "random":
            raise ValueError(f"scheduler pbt finds new values itself: searcher must be random, not {self.searcher}")
        if fixed := [path for path in self.space if path in _SHAPES_STATE]:
            raise ValueError(f"scheduler pbt continues from checkpoints, and {', '.join(fixed)} decides their contents")
        if self.trial_workers > 1:
            raise ValueError(
                f"scheduler pbt moves checkpoints between trials: trial_workers must be 1, not {self.trial_workers}"
            )
        if self.trials < 2 or self.epochs * self.evals_per_epoch < 2:
            raise ValueError("scheduler pbt needs at least 2 trials, and 2 evaluations of each")
        return self

    @model_validator(mode="after")
    def _check_unread_fields(self) -> "Tune":
        if not self.ood_domains:
            self.refuse_unread(["ood_weight"], "ood_domains is empty")
        if self.trial_workers > 1:
            self.refuse_unread(["gpus_per_trial"], f"each of {self.trial_workers} workers (trial_workers) has a GPU")
        return self
