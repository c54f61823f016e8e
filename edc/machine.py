"""What processor this is, and how much of it we may use."""

import os
import platform
from pathlib import Path

import psutil

__all__ = ["cpu_flags", "cpu_name", "free_memory_bytes", "num_cpus", "processors_in_use"]


def cpu_name() -> str:
    """Returns the processor's name as the system has it."""
    names = (line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpu_flags() -> set[str] | None:
    """Returns the processor's features by the names Linux has for them; None where the system does not say."""
    lines = (line for line in _cpu_lines() if line.lower().startswith(("flags", "features")))
    first = next(lines, None)
    return None if first is None else set(first.split(":", 1)[1].split())


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


def num_cpus() -> int:
    """Returns how many processors this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes() -> int:
    """Returns the memory that the system could give to programs now."""
    return int(psutil.virtual_memory().available)


def processors_in_use(*, seconds: float = 0.5) -> float:
    """Returns how many processors all programs together keep busy, watched for so long; the caller sleeps."""
    return float(psutil.cpu_percent(interval=seconds)) / 100 * (os.cpu_count() or 1)
