"""NVIDIA GPUs as their driver reports them, with their clock rates now, and why torch can use none."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edc.errors import first_line

__all__ = [
    "Gpu",
    "NoGpu",
    "SmClock",
    "generations_here",
    "gpus_now",
    "gpus_or_reason",
    "has_gpu_file",
    "is_out_of_memory",
    "supports",
    "without_gpu",
]

DEVICES = Path("/dev")
NO_NVML = (
    "there is a GPU, but the driver's NVML is missing (libnvidia-ml, which comes with nvidia-smi): names, clocks and "
    "temperatures are unknown; install the driver's utilities, in a container with NVIDIA_DRIVER_CAPABILITIES=all"
)


@dataclass(frozen=True)
class Gpu:
    """One GPU; None stands where its driver does not say."""

    name: str
    driver: str
    memory_mib: float | None
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    temperature_c: float | None
    power_w: float | None


def gpus_now() -> tuple[Gpu, ...]:
    """Returns the GPUs of this machine as they are now; none where there is no driver, or it does not answer."""
    found = gpus_or_reason()
    return () if isinstance(found, str) else found


def gpus_or_reason() -> tuple[Gpu, ...] | str:
    """Returns the GPUs of this machine, none where there is no driver; or why a driver that is there fails."""
    try:
        import pynvml as nvml
    except ImportError:
        return "there is a GPU, but the package nvidia-ml-py is missing" if has_gpu_file() else ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return NO_NVML if has_gpu_file() else ()
    except nvml.NVMLError as error:
        return first_line(error)
    try:
        return tuple(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:  # a GPU that fell off the bus, say
        return first_line(error)
    finally:
        nvml.nvmlShutdown()


@dataclass(frozen=True)
class NoGpu:
    """Why torch can compute on no GPU here."""

    reason: str
    is_fault: bool
    """There is a GPU, nobody hid it, and torch, which is built for it, fails to use it: its driver is too old, say."""


def without_gpu() -> NoGpu | None:
    """Returns why torch can compute on no GPU here; None: it can. Ask early: torch says its reason once a process."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # torch warns why
        if torch.cuda.is_available():
            return _without_kernels(torch)
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    why = f": {first_line(said[0].message)}" if said and isinstance(said[0].message, Warning) else ""
    is_hidden = torch.version.cuda is None or "CUDA_VISIBLE_DEVICES" in os.environ
    return NoGpu(
        f"no CUDA device that torch can use (torch {torch.__version__} {built}){why}",
        is_fault=bool(why) or (not is_hidden and bool(gpus_now())),
    )


def _without_kernels(torch: Any) -> NoGpu | None:
    """Returns that torch is built for other GPUs than the one here; it would fail at the first thing it computes."""
    major, minor = torch.cuda.get_device_capability()
    built_for = torch.cuda.get_arch_list()
    if torch.version.cuda is None or not built_for or supports(built_for, 10 * major + minor):
        return None
    return NoGpu(
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name()} (SM {major}{minor}), only for "
        f"{', '.join(built_for)}",
        is_fault=True,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether `error` is a GPU's lack of memory, as torch and the libraries under it call it."""
    said = str(error)
    return isinstance(error, RuntimeError) and (
        "CUDA out of memory" in said or "CUDA error: out of memory" in said or "STATUS_ALLOC_FAILED" in said
    )


def has_gpu_file() -> bool:
    """Returns whether the system has a device file of an NVIDIA GPU, whatever its driver's libraries say."""
    return any(DEVICES.glob("nvidia[0-9]*"))


def generations_here() -> list[int]:
    """Returns the compute capability of each GPU as its driver reports it, as a number: 86 for 8.6."""
    if not gpus_now():
        return []
    import pynvml as nvml

    nvml.nvmlInit()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [10 * major + minor for major, minor in map(nvml.nvmlDeviceGetCudaComputeCapability, handles)]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def supports(architectures: Sequence[str], generation: int) -> bool:
    """Returns whether a library built for `architectures` has code for a GPU of `generation` (86 for 8.6).

    sm_80 is machine code, which also runs on later GPUs of the same major number; compute_80 is compiled by the driver,
    for any later GPU. A letter at the end (sm_90a) means that very generation.
    """
    for name in architectures:
        kind, _, number = name.partition("_")
        built = int("".join(digit for digit in number if digit.isdigit()) or 0)
        is_later = number.isdigit() and built < generation
        if built == generation or (is_later and (kind == "compute" or built // 10 == generation // 10)):
            return True
    return False


class SmClock:
    """The clock rate of the processors of the GPU that CUDA takes first, read again and again: NVML stays open.

    Other GPUs of the machine may be at work for others, or rest.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        if isinstance(gpus_or_reason(), str) or not gpus_now():
            return
        import pynvml as nvml

        self._nvml = nvml
        nvml.nvmlInit()
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
        with suppress(nvml.NVMLError):  # a MIG instance, which has no clock of its own, or a number that is none
            self._handle = (
                nvml.nvmlDeviceGetHandleByIndex(int(named))
                if named.isdigit()
                else nvml.nvmlDeviceGetHandleByUUID(named)
            )

    def now_mhz(self) -> list[float]:
        """Returns the rate in MHz now; nothing where the driver does not say."""
        if self._handle is None:
            return []
        try:
            return [float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))]
        except self._nvml.NVMLError:
            return []


def _gpu(nvml: Any, handle: Any) -> Gpu:
    def said(ask: Callable[[], float]) -> float | None:
        try:
            return ask()
        except nvml.NVMLError:  # not supported by this GPU, or not for everybody to know
            return None

    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        driver=nvml.nvmlSystemGetDriverVersion(),
        memory_mib=said(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total / 2**20),
        sm_clock_mhz=said(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
        max_sm_clock_mhz=said(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        memory_clock_mhz=said(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        temperature_c=said(lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power_w=said(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    )
