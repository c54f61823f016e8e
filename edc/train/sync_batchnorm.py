"""Batch statistics over all processes on any device, and batches that processes and BatchNorm can work with.

torch.nn.SyncBatchNorm does not take CPU tensors. CUDA uses it, every other device uses this module.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edc.errors import RecipeError
from edc.recipe import TrainingSection

__all__ = [
    "convert_sync_batchnorm",
    "require_batchnorm_rows",
    "require_sharable",
    "require_synchronisable",
    "share_buffers",
]


class AllReduceBatchNorm(nn.BatchNorm2d):
    """BatchNorm whose training statistics are those of the rows of all processes. Shapes: (N, C, ...).

    Like torch's, it has no scale and shift with `affine=False`, and no running statistics if told so.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        dims = [d for d in range(input.ndim) if d != 1]
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        # Two rounds (mean, then centred squares): E[x^2] - E[x]^2 loses what 1e-5 agreement needs. Rows are counted
        # too: a member of a student with divided answers may have one more on one process than on another.
        sums = _sum_over_processes(torch.cat([x.sum(dims), x.new_tensor([len(x)])]))
        count = float(sums.detach()[-1]) * math.prod(x.shape[2:])
        mean = sums[:-1] / count
        centred = x - mean.view(1, -1, *[1] * (input.ndim - 2))
        variance = _sum_over_processes(centred.square().sum(dims)) / count
        self._update_running_statistics(mean.detach(), variance.detach() * count / max(count - 1, 1))
        scale = torch.rsqrt(variance + self.eps)
        shape = (1, -1, *[1] * (input.ndim - 2))
        if not self.affine:
            return (centred * scale.view(shape)).to(input.dtype)
        return (centred * (scale * self.weight).view(shape) + self.bias.view(shape)).to(input.dtype)

    def _update_running_statistics(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


class AllReduceBatchNormAct(AllReduceBatchNorm):
    """timm's BatchNormAct2d, which drops out and activates what it has normalised, over all processes."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over processes; every process's input acts on every process's output, backward too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def convert_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Returns `network` with its BatchNorm layers synchronised over processes; state dict keys stay the same."""
    if device.type == "cuda":
        from timm import layers  # torch's own conversion drops timm's built-in activations

        converted: nn.Module = layers.convert_sync_batchnorm(network)  # type: ignore[attr-defined, no-untyped-call]
        return converted
    require_synchronisable(network, device)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # Changing the class keeps parameters, buffers and every reference to them.
            module.__class__ = _synchronised(type(module))
    return network


def require_synchronisable(network: nn.Module, device: torch.device) -> None:
    """Raises `RecipeError` if `network` has a BatchNorm that processes on `device` cannot synchronise."""
    for name, module in network.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and device.type != "cuda" and _synchronised(type(module)) is None:
            raise RecipeError(
                f"training.sync_batchnorm: {name} is a {type(module).__name__}, which cannot be synchronised over CPU "
                "processes; set training.sync_batchnorm to false, or run one process"
            )


def _synchronised(norm: type[nn.Module]) -> Any:
    """Returns the class that does the work of `norm` over all processes, None if there is none."""
    if norm in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, AllReduceBatchNorm):
        return AllReduceBatchNorm
    from timm.layers.norm_act import BatchNormAct2d

    return AllReduceBatchNormAct if norm in (BatchNormAct2d, AllReduceBatchNormAct) else None


def share_buffers(network: nn.Module) -> None:
    """Gives all processes the buffers of process 0, because each gathers running statistics from its own rows.

    torch's DistributedDataParallel does so too, but only before a forward pass, and not within `no_sync`.
    """
    buffers = list(network.buffers())
    if not dist.is_initialized() or not buffers:
        return
    with torch.no_grad():
        flat = torch.cat([buffer.double().flatten() for buffer in buffers])  # exact for float32, and for counters
        dist.broadcast(flat, src=0)
        sizes = [buffer.numel() for buffer in buffers]
        for buffer, values in zip(buffers, torch.split(flat, sizes), strict=True):
            buffer.copy_(values.view_as(buffer))


def require_sharable(training: TrainingSection, *, num_processes: int, field: str = "training") -> None:
    """Raises `RecipeError` unless every process gets the same number of images of a batch, and at least one."""
    found = f"{field}.batch_size: {training.batch_size} is not divisible by {num_processes} processes"
    if training.batch_size < num_processes:
        raise RecipeError(f"{found}: there are more processes than images; start fewer, or make the batch larger")
    if training.batch_size % num_processes:
        raise RecipeError(f"{found}; make it a multiple of {num_processes}, or start another number of processes")


def require_batchnorm_rows(
    network: nn.Module, training: TrainingSection, *, num_processes: int, label: str, field: str = "training"
) -> None:
    """Raises `RecipeError` if `network` has BatchNorm and would ever take its batch statistics from a single image.

    Such statistics are those of the image itself, so the network would train on what it never sees again in eval mode
    (and torch raises if the image is one pixel). Networks without BatchNorm may train on one image at a time.
    """
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    share = training.batch_size // num_processes
    micro, smallest = training.rows_at_once(num_processes)
    if smallest * (num_processes if training.sync_batchnorm else 1) > 1:
        return
    processes = "" if num_processes == 1 else f" on {num_processes} processes"
    pieces = "" if micro == share else f" in micro-batches of {micro}"
    pieces += "" if smallest == micro else f" (the last one of {smallest})"
    advice = "make the batch larger" if micro == share else f"choose another {field}.micro_batch_size"
    if num_processes > 1 and not training.sync_batchnorm:
        advice += ", or set training.sync_batchnorm to true"
    raise RecipeError(
        f"{field}.batch_size: {training.batch_size}{processes}{pieces} leaves a single image for the batch statistics "
        f"of {label}, which has {len(norms)} BatchNorm layers ({norms[0]}, ...); 2 or more are needed: {advice}"
    )
