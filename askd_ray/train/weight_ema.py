"""The moving average of the student's weights. With ``ema_decay`` it is what dev scores and the run saves."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from askd_ray.models.student import StudentModel

Tensors = dict[str, torch.Tensor]


class WeightEma:
    """An exponential moving average of all parameters; ``decay`` None disables it.

    The decay is ``min(decay, (1 + n) / (10 + n))`` after ``n`` steps, so that the average soon forgets the initial
    weights.
    """

    def __init__(self, decay: float | None):
        self._decay = decay
        self._mean: Tensors = {}
        self._n_steps = 0

    @torch.no_grad()
    def update(self, student: StudentModel) -> None:
        """Add the weights after a step to the average."""
        if self._decay is None:
            return
        self._n_steps += 1
        average = get_ema_multi_avg_fn(min(self._decay, (1 + self._n_steps) / (10 + self._n_steps)))
        # Not torch's AveragedModel: it copies the student, and a sharded student cannot be copied.
        weights = {name: parameter.detach() for name, parameter in student.named_parameters()}
        if self._mean:
            average(tuple(self._mean[name] for name in weights), tuple(weights.values()), None)
        else:
            self._mean = {name: weight.clone() for name, weight in weights.items()}

    @contextmanager
    def applied(self, student: StudentModel) -> Generator[None]:
        """Give the student the averaged weights within the block."""
        if not self._mean:
            yield
            return
        self._swap(student)
        try:
            yield
        finally:
            self._swap(student)

    @torch.no_grad()
    def _swap(self, student: StudentModel) -> None:
        """Swap the averages and the student's weights, in place: a sharded parameter's storage cannot be replaced."""
        for name, parameter in student.named_parameters():
            current = parameter.detach().clone()
            parameter.copy_(self._mean[name])
            self._mean[name].copy_(current)

    def restart(self) -> None:
        """Discard the average, because the student's layers have changed."""
        self._mean, self._n_steps = {}, 0

    def state(self) -> tuple[Tensors, int]:
        """Return the averaged weights and the number of steps in them, for a checkpoint."""
        return self._mean, self._n_steps

    def restore(self, mean: Tensors, n_steps: int, device: torch.device) -> None:
        """Restore what :meth:`state` returned."""
        self._mean, self._n_steps = {name: value.to(device) for name, value in mean.items()}, n_steps
