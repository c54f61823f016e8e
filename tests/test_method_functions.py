"""Operations with gradients of their own, against torch's derivation of the operations they stand for."""

import pytest
import torch
from torch import Tensor

from edc.method.functions import rounded_product, scale_gradient


def case(memory_format: torch.memory_format) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=draws).contiguous(memory_format=memory_format)
    return weight.requires_grad_(), torch.randn(4, 8, 4, 1, 1, generator=draws).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rounded_product_is_a_product_and_a_cast_bit_for_bit_with_its_gradients(dtype, memory_format):
    inputs = case(memory_format)
    found, wanted = rounded_product(*inputs, dtype), (inputs[0] * inputs[1]).to(dtype)
    assert torch.equal(found, wanted)
    assert (found.dtype, found.stride()) == (dtype, wanted.stride())
    gradient = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    of_found, of_wanted = (torch.autograd.grad(each, inputs, gradient) for each in (found, wanted))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(of_found, of_wanted, strict=True))


def test_rounded_product_gives_no_gradient_to_what_needs_none():
    weight, outer = case(torch.contiguous_format)
    rounded_product(weight.detach(), outer, torch.bfloat16).float().sum().backward()
    assert weight.grad is None
    assert outer.grad is not None


def test_scaled_gradient_is_the_gradient_times_a_constant():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = scale_gradient(x, 4.0)
    (y**2).sum().backward()
    assert torch.equal(y, x)
    assert x.grad.tolist() == [8.0, 16.0]
