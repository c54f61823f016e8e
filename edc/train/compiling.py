"""torch.compile for networks, tried before it is relied on."""

import copy
from itertools import chain
from weakref import WeakSet

import torch
import torch._dynamo.config
from accelerate import Accelerator
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from edc.console import console
from edc.errors import first_line
from edc.method.batch_ensemble import ensemble_size_of
from edc.recipe import TrainingSection
from edc.train.distributed import anyone
from edc.train.placement import autocast

__all__ = ["compile_network", "example_for"]

MOST_GRAPHS = 64
"""Limit on graphs per piece of Python code. All networks begin in `Classifier.forward`; each has one graph for
training, one for either part in the pair that perturbs, and one for answers. Past torch's limit, 8, they run eager."""

_compiled: WeakSet[nn.Module] = WeakSet()
_failed: WeakSet[nn.Module] = WeakSet()
"""Networks that have been tried: teachers are shared by students, and a trial takes minutes."""


def compile_network(
    network: nn.Module, example: Tensor, *, training: TrainingSection, label: str, accelerator: Accelerator
) -> bool:
    """Compiles `network` in place, its state dict unchanged, and returns whether that worked, now or before.

    A copy runs `example` (N, C, H, W) first, in the run's precision, with a backward pass if something is trained or
    the example asks for its gradient. If that fails, for example without a C++ compiler, this is reported once and
    the network stays as it is, on all processes if it fails on one. Pass a network that does not exchange anything
    between processes, because its trial would wait for one that has failed.
    """
    if network in _compiled or network in _failed:
        return network in _compiled
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    problem = _problem_of_compiling(network, example, training)
    if problem:
        console.print(f"{label}: runs without torch.compile, which failed ({problem})", highlight=False, markup=False)
    if anyone(bool(problem), accelerator):
        _failed.add(network)
        return False
    network.compile()
    _compiled.add(network)
    return True


def _problem_of_compiling(network: nn.Module, example: Tensor, training: TrainingSection) -> str:
    """Returns what is wrong with a compiled copy of `network` on `example`; nothing if it works."""
    trial = copy.deepcopy(network)
    trial.compile()
    try:
        with autocast(example.device, training):
            output: Tensor = trial(example)
        if output.requires_grad:
            output.float().sum().backward()  # type: ignore[no-untyped-call]
    except (TorchDynamoException, RuntimeError) as error:
        return first_line(error)
    return ""


def example_for(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    training: TrainingSection,
    num_processes: int = 1,
    to_images: bool = False,
) -> Tensor:
    """Returns a batch as large as the network gets in a step, with the device and type of its parameters.

    For a network with members it has the rows of one member, divided among all (at least two each). So the trial needs
    the memory of the sequential form, whichever form the run uses.

    Args:
        to_images: whether gradients will be asked for with respect to the images, as perturbations do of teachers.
    """
    parameter = next(
        chain(network.parameters(), network.buffers())
    )  # a whole network from a file may have no parameter
    rows = min(training.batch_size // num_processes, training.micro_batch_size or training.batch_size)
    num_members = ensemble_size_of(network)
    rows = num_members * max(rows // num_members, 2)
    images = torch.rand(rows, *image_shape, dtype=parameter.dtype, device=parameter.device)
    if training.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.requires_grad_(to_images)
