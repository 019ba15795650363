"""Seeded random draws: each is a pure function of its purpose, so a resumed run repeats it and no state is stored."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]


def draw_seed(seed: int, epoch: int, utterance_id: str, purpose: str, copy: int = 0) -> int:
    """Return a 63-bit seed for one random draw of one utterance in one epoch.

    ``copy`` counts from 0 where an epoch holds the utterance more than once.
    """
    name = f"{seed}/{epoch}/{utterance_id}/{purpose}" + (f"/{copy}" if copy else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def utterance_key(utterance_id: str) -> int:
    """Return a 64-bit hash of an utterance's id, by which :func:`hashes` draws for it."""
    bits = utterance_id.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(bits).digest()[:8], "little")


def hashes(keys: Hashes, seed: int, epoch: int, purpose: str, copies: NDArray[np.integer] | int = 0) -> Hashes:
    """Return a 64-bit hash for each key, for one draw of each utterance: the same in any order and in any company.

    It is the mixer of SplitMix64 (Steele, Lea and Flood 2014), applied twice.
    """
    base = np.uint64(draw_seed(seed, epoch, "", purpose))
    return _mixed(_mixed(keys ^ base) + np.asarray(copies).astype(np.uint64))


def uniforms(
    keys: Hashes, seed: int, epoch: int, purpose: str, copies: NDArray[np.integer] | int = 0
) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each key: :func:`hashes` with 53 bits."""
    return (hashes(keys, seed, epoch, purpose, copies) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(values: Hashes) -> Hashes:
    values = values + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


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

    def uniform(self, purpose: str) -> float:
        """Return one number in [0, 1): that of :func:`uniforms` for this utterance."""
        keys = np.array([utterance_key(self.utterance_id)], np.uint64)
        return float(uniforms(keys, self.seed, self.epoch, purpose, self.copy)[0])

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of one draw's numbers."""
        return random.Random(self.seed_of(purpose))
