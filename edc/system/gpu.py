"""NVIDIA GPUs as their driver reports them, with their clock rates now."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edc.errors import first_line

__all__ = ["Gpu", "gpus_now", "gpus_or_reason"]


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
    except ImportError:  # `edc doctor` says so
        return ()
    try:
        nvml.nvmlInit()
    except nvml.NVMLError_LibraryNotFound:
        return ()
    except nvml.NVMLError as error:
        return first_line(error)
    try:
        return tuple(_gpu(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount()))
    except nvml.NVMLError as error:  # a GPU that fell off the bus, say
        return first_line(error)
    finally:
        nvml.nvmlShutdown()


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
