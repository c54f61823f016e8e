"""Operations with gradients of their own."""

from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["rounded_product", "scale_gradient"]


class _ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """Returns `x`, its gradient multiplied by a constant."""
    return cast(Tensor, _ScaleGradient.apply(x, scale))


class _RoundedProduct(torch.autograd.Function):
    """The product of two float32 tensors in a narrower type: on a GPU one kernel where a product and a cast are two,
    forwards as backwards. Values and gradients are those of the two, bit for bit.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, outer: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight, outer)
        return torch.mul(weight, outer, out=weight.new_empty(0, dtype=dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight, outer = ctx.saved_tensors
        (gradient,) = gradients
        of_weight = (gradient * outer).sum_to_size(weight.shape) if ctx.needs_input_grad[0] else None
        of_outer = (gradient * weight).sum_to_size(outer.shape) if ctx.needs_input_grad[1] else None
        return of_weight, of_outer, None


def rounded_product(weight: Tensor, outer: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `weight * outer`, broadcast and rounded to `dtype`, with the gradients of doing one after the other."""
    if dtype == weight.dtype:
        return weight * outer
    if torch.compiler.is_compiling():  # compilers fuse the two themselves
        return (weight * outer).to(dtype)
    return cast(Tensor, _RoundedProduct.apply(weight, outer, dtype))
