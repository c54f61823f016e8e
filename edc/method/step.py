"""One training step: the gradients of a batch, computed in as few parts as memory allows.

A loss is given as parts whose sum it is: one for the whole batch, or one a member. A batch larger than
`micro_batch_size` is cut first. Each part has a backward pass of its own, so only one part's activations exist at a
time; in a distributed run only the last part waits for the other processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from edc.recipe import TrainingSection

__all__ = ["Batch", "LossOf", "autocast", "backward_through", "place", "to_device"]


@dataclass(frozen=True)
class Batch:
    """One step's images (N, C, H, W) in [0, 1] and labels (N,), and where they stand in the global batch."""

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    rows: slice
    num_rows: int

    def in_parts(self, size: int | None) -> Iterator["Batch"]:
        """Yields the batch in parts of `size` images, each with the same random draws ahead of it."""
        if size is None or size >= len(self.images):
            yield self
            return
        state, first = self.generator.get_state(), self.rows.start or 0
        for start in range(0, len(self.images), size):
            images = self.images[start : start + size]
            generator = torch.Generator()
            generator.set_state(state)
            rows = slice(first + start, first + start + len(images))
            yield Batch(images, self.labels[start : start + size], generator, rows, self.num_rows)


Network = TypeVar("Network", bound=nn.Module)
LossPart = Callable[[], Tensor]
LossOf = Callable[[nn.Module, nn.Module, Batch], Sequence[LossPart]]
"""(wrapped network, bare network, batch) to the parts whose sum is the loss. Each is called once, in order, followed by
its backward pass; gradients that train go through the wrapped network, exactly once a part."""


def backward_through(
    loss_of: LossOf,
    model: nn.Module,
    network: nn.Module,
    batch: Batch,
    *,
    training: TrainingSection,
    accelerator: Accelerator,
) -> Tensor:
    """Adds the gradients of the mean loss of `batch` to the parameters and returns that loss, without waiting for it.

    Args:
        model: the network as the accelerator wrapped it; `network`: the same one, bare.
    """
    losses: list[Tensor] = []
    micro_batches = list(batch.in_parts(training.micro_batch_size))
    for number, micro_batch in enumerate(micro_batches, start=1):
        share = len(micro_batch.images) / len(batch.images)
        with autocast(accelerator.device, training):
            parts = loss_of(model, network, micro_batch)
        for part_number, part in enumerate(parts, start=1):
            is_last = number == len(micro_batches) and part_number == len(parts)
            with nullcontext() if is_last else accelerator.no_sync(model):
                with autocast(accelerator.device, training), record_function("edc:forward"):
                    loss = part() * share
                with record_function("edc:backward"):
                    accelerator.backward(loss)
            losses.append(loss.detach())
    return torch.stack(losses).sum()


def autocast(device: torch.device, training: TrainingSection) -> Any:
    """Returns the context in which networks run: bfloat16 where the recipe says so."""
    return torch.autocast(device.type, torch.bfloat16) if training.precision == "bf16" else nullcontext()


def place(network: Network, device: torch.device, training: TrainingSection) -> Network:
    """Returns the network on `device`, its convolutions channels last if the recipe says so."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if training.channels_last else network


def to_device(pixels: Tensor, device: torch.device, training: TrainingSection) -> Tensor:
    """Returns uint8 pixels as float32 images in [0, 1] on `device`, channels last if the recipe says so."""
    images = pixels.to(device, non_blocking=True).float().div_(255)
    return images.contiguous(memory_format=torch.channels_last) if training.channels_last else images
