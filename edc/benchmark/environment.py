"""The machine and the versions that figures depend on, and how busy it was before and after."""

import os
import platform
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edc.system.gpu import Gpu, gpus_now, gpus_or_reason
from edc.system.machine import cpu_name, memory_bytes, num_cpus, processors_in_use

__all__ = ["Environment", "environment_now"]

PACKAGES = (
    "edc",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "numpy",
    "scipy",
)
CPU_FOLDER = Path("/sys/devices/system/cpu")
QUIET = 0.3
"""Processors that others may use without a flag: an otherwise idle machine shows as many now and then."""


@dataclass(frozen=True)
class Environment:
    """What a bench ran on. None where the system does not say."""

    cpu: str
    num_cpus: int
    """Processors this process may use."""
    memory_bytes: int
    system: str
    python: str
    packages: dict[str, str]
    threads: int
    governor: str | None
    turbo: bool | None
    started: str
    load_at_start: tuple[float, float, float] | None
    """Load averages over 1, 5 and 15 minutes."""
    in_use_at_start: float
    """Processors that other programs kept busy, watched for half a second."""
    load_at_end: tuple[float, float, float] | None = None
    in_use_at_end: float | None = None
    ended: str | None = None
    gpu: str | None = None
    """The names of all GPUs."""
    gpus_at_start: tuple[Gpu, ...] = ()
    """As the driver reports them, clocks and temperature included; empty without a GPU."""
    gpus_at_end: tuple[Gpu, ...] = ()
    flags: tuple[str, ...] = field(default=())

    def at_end(self) -> "Environment":
        """Returns the record with the time, the load and the GPUs' clocks of now."""
        in_use = processors_in_use()
        return replace(
            self,
            ended=_now(),
            load_at_end=_load(),
            in_use_at_end=in_use,
            gpus_at_end=gpus_now() if self.gpus_at_start else (),
            flags=(*self.flags, *_busy(in_use, "after it ended")),
        )

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def environment_now(*, threads: int) -> Environment:
    """Returns the record as it is before the bench begins; a machine that is busy already is flagged.

    The use by other programs counts, not the load average, which still includes the bench before this one.
    """
    load, found, in_use = _load(), gpus_or_reason(), processors_in_use()
    gpus = () if isinstance(found, str) else found
    flags = _busy(in_use, "before the bench began")
    if isinstance(found, str):
        flags.append(f"GPU: {found}")
    if threads > num_cpus():
        flags.append(f"{threads} threads on {num_cpus()} processors: threads wait for each other")
    return Environment(
        cpu=cpu_name(),
        num_cpus=num_cpus(),
        memory_bytes=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        threads=threads,
        governor=_read(CPU_FOLDER / "cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(),
        started=_now(),
        load_at_start=load,
        in_use_at_start=in_use,
        gpu=", ".join(gpu.name for gpu in gpus) or None,
        gpus_at_start=gpus,
        flags=tuple(flags),
    )


def _busy(in_use: float, when: str) -> list[str]:
    return [f"busy machine: other programs used {in_use:.1f} processors {when}"] if in_use > QUIET else []


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _turbo() -> bool | None:
    """Returns whether the processor may clock up by itself: Intel's driver says no_turbo, the others boost."""
    no_turbo = _read(CPU_FOLDER / "intel_pstate/no_turbo")
    boost = _read(CPU_FOLDER / "cpufreq/boost")
    if no_turbo is not None:
        return no_turbo == "0"
    return boost == "1" if boost is not None else None


def _load() -> tuple[float, float, float] | None:
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
