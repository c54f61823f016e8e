"""Randomness by name: the same for the same parts in every process and version, unrelated for different ones."""

import torch

from edc.seeding import derive_seed, generator_for


def test_seed_is_a_fixed_function_of_its_parts():
    """A changed value here changes what every resumed run draws."""
    assert derive_seed("teacher", 0) == derive_seed("teacher", 0) == 4644936488246104952
    assert derive_seed(7, "order", 3) != derive_seed(7, "order", 4)


def test_different_parts_give_different_seeds():
    parts = [(a, b, c) for a in range(20) for b in ("order", "augment", "perturb") for c in range(20)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)
    assert derive_seed("a", "b") != derive_seed("ab") != derive_seed("a b")
    assert derive_seed(1, "1") != derive_seed("1", 1)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_seed_fits_torch_and_its_bits_are_even():
    seeds = [derive_seed("x", i) for i in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 0.44 < sum(seed >> bit & 1 for seed in seeds) / 2000 < 0.56


def test_generator_does_not_touch_the_global_one():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    first = torch.rand(3, generator=generator_for(5, "order", 0))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(torch.rand(3, generator=generator_for(5, "order", 0)), first)
