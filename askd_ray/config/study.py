"""The recipe's ``study``: a comparison of objectives at equal budget (docs/study.md)."""

from typing import Annotated

from pydantic import Field, model_validator

from askd_ray.config.evaluate import Name
from askd_ray.config.objective import Objective
from askd_ray.config.section import Count, Positive, Section


class Study(Section):
    """A comparison of objectives; data, student, steps and everything else are the recipe's."""

    arms: Annotated[dict[Name, Objective], Field(min_length=2)]
    """The objectives by name, at least two."""
    against: Name
    """The name of the arm that the others are compared with."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Each arm is trained with each of these seeds."""
    concurrent: Count = 1
    """How many runs train at the same time."""
    cpus_per_run: Positive = 1.0
    """The CPUs that Ray reserves for a run."""
    gpus_per_run: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """The GPUs that Ray reserves for a run, up to 1, with ``train.workers.gpu``."""

    @model_validator(mode="after")
    def _check_arms(self) -> "Study":
        if self.against not in self.arms:
            raise ValueError(f"against = {self.against!r} is not one of the arms: {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: each seed may appear once")
        return self
