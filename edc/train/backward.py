"""The gradients of one step, computed in as few parts as memory allows; and its loss, read back later.

A batch larger than `micro_batch_size` is cut first; a step then gives its loss in parts (`edc.method.step`). Each part
has its own backward pass, so only one part's activations exist at a time. In a distributed run only the last part waits
for the other processes.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from edc.errors import DivergedError
from edc.method.step import Batch, Step
from edc.train.checkpoint import CheckpointWriter

__all__ = ["backward_through", "read_back"]


def backward_through(
    step: Step,
    model: nn.Module,
    network: nn.Module,
    batch: Batch,
    *,
    micro_batch_size: int | None,
    accelerator: Accelerator,
) -> Tensor:
    """Adds the gradients of the mean loss of `batch` to the parameters; returns that loss, without waiting for it.

    Args:
        model: the network as the accelerator wrapped it; `network`: the same one, unwrapped.
    """
    losses: list[Tensor] = []
    micro_batches = list(batch.in_parts(micro_batch_size))
    last = len(micro_batches) * step.num_parts(network)
    for micro_batch in micro_batches:
        share = len(micro_batch.images) / len(batch.images)
        parts = step.losses(model, network, micro_batch)
        for _ in range(step.num_parts(network)):
            with nullcontext() if len(losses) + 1 == last else accelerator.no_sync(model):
                loss = next(parts) * share
                with record_function("edc:backward"):
                    accelerator.backward(loss)
            losses.append(loss.detach())
    return torch.stack(losses).sum()


def read_back(
    pending: Sequence[Tensor],
    last_step: int,
    *,
    steps_per_epoch: int,
    label: str,
    writer: CheckpointWriter,
    accelerator: Accelerator,
) -> list[float]:
    """Returns the losses of the steps up to `last_step`, the means over all processes; waits for them.

    Raises:
        DivergedError: one of them is not finite.
    """
    losses: list[float] = accelerator.reduce(torch.stack(list(pending)).float(), "mean").tolist()
    for number, loss in enumerate(losses, start=last_step - len(losses) + 1):
        if not math.isfinite(loss):
            saved = writer.has_written()
            kept = f"{writer.path} holds the last good state" if saved else "there was no checkpoint yet"
            raise DivergedError(
                f"{label}: the loss became {loss} at step {number} (epoch {number // steps_per_epoch}); {kept}. "
                "Try a smaller training.learning_rate, a longer warm-up, or precision fp32."
            )
    return losses
