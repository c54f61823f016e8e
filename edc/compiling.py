"""torch.compile for networks, tried before it is relied on."""

import copy

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from edc.batch_ensemble import ensemble_size_of
from edc.report.progress import console

__all__ = ["compile_network", "example_for"]


def compile_network(network: nn.Module, example: Tensor, *, label: str) -> bool:
    """Compiles `network` in place, its state dict unchanged, and returns whether that worked.

    A copy runs `example` (N, C, H, W) first, with a backward pass where something is trained: what the compiler cannot
    do, for want of a C++ compiler for example, is said once, and the network stays as it is.
    """
    trial = copy.deepcopy(network)
    trial.compile()
    try:
        output: Tensor = trial(example)
        if output.requires_grad:
            output.float().sum().backward()  # type: ignore[no-untyped-call]
    except (TorchDynamoException, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        console.print(f"{label}: runs without torch.compile, which failed ({reason})", highlight=False, markup=False)
        return False
    network.compile()
    return True


def example_for(network: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Returns a batch of two images a member, where and as the network's parameters are."""
    parameter = next(network.parameters())
    rows = 2 * ensemble_size_of(network)
    return torch.rand(rows, *image_shape, dtype=parameter.dtype, device=parameter.device)
