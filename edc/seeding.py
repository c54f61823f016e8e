"""Randomness that depends on names, never on history.

Every random choice of a run is drawn from a generator seeded by what it is for: the run's seed, the epoch, the step.
A resumed run therefore draws exactly what an undisturbed one would have drawn, without any generator state on disk, and
every process of a distributed run draws the same.
"""

import hashlib

import torch

__all__ = ["derive_seed", "generator_for"]


def derive_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that is a fixed function of `parts`; different parts give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Returns a CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
