"""The student as its own teacher: a frozen copy taken at the switch."""

import copy
import math

import torch

from askd_ray.config.schema import SelfTeacher
from askd_ray.models.windows import WindowedWhisper


class Snapshot:
    """The student frozen at ``switch``, and again after every ``refresh`` of progress. Holds nothing before."""

    def __init__(self, settings: SelfTeacher):
        self.settings = settings
        self.model: WindowedWhisper | None = None
        self.taken = -1
        """Which snapshot is held: 0 the one at the switch, then one more for every refresh."""

    def update(self, student: WindowedWhisper, u: float) -> None:
        """Take a snapshot if one is due at progress ``u``."""
        due = self._due(u)
        if due > self.taken:
            self.model, self.taken = copy.deepcopy(student).eval().requires_grad_(False), due

    def _due(self, u: float) -> int:
        if self.settings.kind == "none" or self.settings.weight == 0.0 or u < self.settings.switch:
            return -1
        if self.settings.refresh == 0.0:
            return 0
        return math.floor((u - self.settings.switch) / self.settings.refresh + 1e-9)

    @torch.no_grad()
    def logits(self, log_mel: torch.Tensor, decoder_ids: torch.Tensor) -> torch.Tensor | None:
        """Return the snapshot's logits ``(batch, length, n_vocab)``, or None while there is no snapshot."""
        return None if self.model is None else self.model(log_mel, decoder_ids)

    def restore(self, student: WindowedWhisper, state: dict[str, torch.Tensor], taken: int) -> None:
        """Put back a snapshot from a checkpoint."""
        self.model, self.taken = copy.deepcopy(student).eval().requires_grad_(False), taken
        self.model.load_state_dict(state, strict=True)
