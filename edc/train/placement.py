"""Device, memory format and precision of networks and images in training."""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from edc.console import console
from edc.errors import RecipeError
from edc.method.step import autocast_to
from edc.recipe import TrainingSection
from edc.system.machine import cpu_has_bfloat16

__all__ = [
    "Float32",
    "autocast",
    "autocast_dtype",
    "casts_kept",
    "convolutions_tuned",
    "deterministic_if",
    "float32_as",
    "float32_of",
    "place",
    "require_tf32_has_effect",
    "say_precision",
    "set_float32",
    "to_device",
]

Network = TypeVar("Network", bound=nn.Module)
Float32 = Literal["ieee", "tf32"]
"""How a GPU computes convolutions and matrix products of float32: as they are, or in TF32, ten bits of mantissa."""

_WORDS = {
    "fp32": "float32 (IEEE, TF32 off; training.precision=tf32 or bf16 is faster)",
    "tf32": "TF32",
    "bf16": "bf16, the rest in float32 (IEEE, TF32 off)",
}

_EMULATED = (
    "this CPU has no instructions for bf16, which is then slower than fp32 (a step took 2.3 times as long where edc "
    "measured it); --set training.precision=fp32 is faster"
)


def autocast_dtype(training: TrainingSection) -> torch.dtype | None:
    """Returns the type for autocast: bfloat16 if the recipe says so, None for float32 alone."""
    return torch.bfloat16 if training.precision == "bf16" else None


def autocast(device: torch.device, training: TrainingSection) -> AbstractContextManager[object]:
    """Returns the context in which networks run."""
    return autocast_to(autocast_dtype(training), device)


def place(network: Network, device: torch.device, training: TrainingSection) -> Network:
    """Returns the network on `device`, its convolutions channels last if the recipe says so."""
    network = network.to(device)
    return network.to(memory_format=torch.channels_last) if training.channels_last else network


def to_device(pixels: Tensor, device: torch.device, training: TrainingSection) -> Tensor:
    """Returns uint8 pixels as float32 images in [0, 1] on `device`, channels last if the recipe says so."""
    images = pixels.to(device, non_blocking=True).float().div_(255)
    return images.contiguous(memory_format=torch.channels_last) if training.channels_last else images


def casts_kept(network: nn.Module, dtype: torch.dtype | None, image_shape: tuple[int, int, int]) -> nn.Module:
    """Returns a frozen network as it is asked under autocast to `dtype`: what autocast would cast anew in every pass,
    the weights of convolutions and linear layers, is cast here once. It shares all else with `network`.

    Returns `network` itself without autocast, if it is compiled (compilers fuse these casts), and if its answers would
    be others: some networks read a layer's weight without calling the layer.
    """
    layers = [name for name, module in network.named_modules() if _is_cast(module)]
    if dtype is None or not layers or network._compiled_call_impl is not None:
        return network
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    kept = copy.deepcopy(network, shared)
    for layer in map(kept.get_submodule, layers):
        for name, value in list(layer._parameters.items()):
            if value is not None:
                layer._parameters[name] = nn.Parameter(value.detach().to(dtype), requires_grad=False)
    device = next(network.parameters()).device
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode(), autocast_to(dtype, device):
        return kept if torch.equal(network(images), kept(images)) else network


def _is_cast(module: nn.Module) -> bool:
    """Returns whether autocast casts the parameters of `module`, all float32, whenever it is called."""
    parameters = [value for value in module._parameters.values() if value is not None]
    return type(module) in (nn.Conv2d, nn.Linear) and all(value.dtype == torch.float32 for value in parameters)


def require_tf32_has_effect(training: TrainingSection, device: torch.device, *, field: str = "training") -> None:
    """Raises `RecipeError` if a recipe asks for TF32 on a device that has none."""
    if training.precision == "tf32" and device.type != "cuda":
        raise RecipeError(
            f"{field}.precision: found tf32, which only NVIDIA GPUs have, and the device is {device.type}; "
            "use fp32 or bf16, or a GPU"
        )


def say_precision(training: TrainingSection, device: torch.device, *, label: str) -> None:
    """Prints what a GPU computes in, for torch's own default is TF32 for convolutions and float32 for products.

    On a CPU it warns of bf16 that the processor has no instructions for.
    """
    if device.type == "cuda":
        console.print(f"{label}: computes in {_WORDS[training.precision]}", highlight=False, markup=False)
    elif device.type == "cpu" and training.precision == "bf16" and cpu_has_bfloat16() is False:
        console.print(f"{label}: warning: {_EMULATED}", highlight=False, markup=False, soft_wrap=True)


def float32_of(training: TrainingSection) -> AbstractContextManager[None]:
    """Returns the context in which float32 is what the recipe says."""
    return float32_as("tf32" if training.precision == "tf32" else "ieee")


@contextmanager
def float32_as(kind: Float32) -> Iterator[None]:
    """Within the block, a GPU computes convolutions, recurrent layers and matrix products of float32 as `kind` says.

    torch has an older flag for each besides, and refuses to read one that contradicts the new ones. So all are set
    together, also at the end. No other thread may depend on them: they are the process's.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [each.fp32_precision for each in settings]
    try:
        set_float32(kind)
        yield
    finally:
        _set(*before)


@contextmanager
def convolutions_tuned(device: torch.device, *, shapes_stay: bool) -> Iterator[None]:
    """Within the block, cuDNN tries its convolutions on each new shape and takes the fastest: where shapes stay."""
    before = torch.backends.cudnn.benchmark
    tuned = device.type == "cuda" and shapes_stay and not torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.benchmark = before or tuned
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def deterministic_if(asked: bool) -> Iterator[None]:
    """Within the block, if it is asked for, a GPU uses torch's deterministic algorithms alone.

    The settings are the process's, as those of `float32_as` are.

    Raises:
        RecipeError: an operation has none.
    """
    if not asked:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    before = (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic)
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise RecipeError(
            f"training.deterministic: torch has no deterministic algorithm for an operation of this training "
            f"({str(error).split('.')[0]}); set it to false, or use a network without that operation"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.deterministic = before[1]
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def set_float32(kind: Float32) -> None:
    """Does for the rest of the process what `float32_as` does for a block."""
    _set(kind, kind, kind)


def _set(matmul: str, conv: str, rnn: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the older flags will go some day
        torch.backends.cuda.matmul.allow_tf32 = matmul == "tf32"
        torch.backends.cudnn.allow_tf32 = conv == "tf32"
    torch.backends.cuda.matmul.fp32_precision = matmul
    torch.backends.cudnn.conv.fp32_precision = conv  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = rnn  # type: ignore[attr-defined]
