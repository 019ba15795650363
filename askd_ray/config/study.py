"""The recipe's ``study``: a comparison of objectives at equal budget (docs/study.md)."""

from typing import Annotated

from pydantic import Field, model_validator

from askd_ray.config.evaluate import Name
from askd_ray.config.objective import Objective
from askd_ray.config.section import Count, Positive, Section


class Study(Section):
    """Objectives by name, each trained with each of ``seeds`` and compared with the one named ``against``.

    Only the objective differs: data, student, steps and everything else are the recipe's. ``concurrent`` runs train at
    the same time, each with ``cpus_per_run`` and, with ``train.use_gpu``, ``gpus_per_run``.
    """

    arms: Annotated[dict[Name, Objective], Field(min_length=2)]
    against: Name
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    concurrent: Count = 1
    cpus_per_run: Positive = 1.0
    gpus_per_run: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _check_arms(self) -> "Study":
        if self.against not in self.arms:
            raise ValueError(f"against = {self.against!r} is not one of the arms: {', '.join(self.arms)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {list(self.seeds)}: each seed may appear once")
        return self
