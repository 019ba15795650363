"""Seeded random draws: each is a pure function of its purpose, so a resumed run repeats it and no state is stored."""

import hashlib
import random
from dataclasses import dataclass


def draw_seed(seed: int, epoch: int, utterance_id: str, purpose: str, copy: int = 0) -> int:
    """Return a 63-bit seed for one random draw of one utterance in one epoch.

    ``copy`` counts from 0 where an epoch holds the utterance more than once.
    """
    name = f"{seed}/{epoch}/{utterance_id}/{purpose}" + (f"/{copy}" if copy else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Draw:
    """The utterance and epoch that random numbers are drawn for; see :func:`draw_seed`."""

    seed: int
    epoch: int
    utterance_id: str
    copy: int = 0

    def seed_of(self, purpose: str) -> int:
        """Return the seed of one draw."""
        return draw_seed(self.seed, self.epoch, self.utterance_id, purpose, self.copy)

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of one draw's numbers."""
        return random.Random(self.seed_of(purpose))
