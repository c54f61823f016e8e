"""The machine's processor and memory, and how much of both this process may use."""

import os
import platform
from pathlib import Path

import psutil

__all__ = [
    "cgroup_free_bytes",
    "cpu_flags",
    "cpu_has_bfloat16",
    "cpu_name",
    "free_memory_bytes",
    "memory_bytes",
    "num_cpus",
    "processors_in_use",
]


def cpu_name() -> str:
    """Returns the processor's name as the system has it."""
    names = (line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpu_flags() -> set[str] | None:
    """Returns the processor's features by the names Linux has for them; None where the system does not say."""
    lines = (line for line in _cpu_lines() if line.lower().startswith(("flags", "features")))
    first = next(lines, None)
    return None if first is None else set(first.split(":", 1)[1].split())


def cpu_has_bfloat16() -> bool | None:
    """Returns whether the processor computes in bfloat16; None where the system does not say."""
    flags = cpu_flags()
    return None if flags is None else not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


def num_cpus() -> int:
    """Returns how many processors this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the memory that the machine has, used or not."""
    return int(psutil.virtual_memory().total)


def free_memory_bytes() -> int:
    """Returns the memory that this process could have now: what the system has free, and its container allows."""
    allowed = cgroup_free_bytes(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    available = int(psutil.virtual_memory().available)
    return available if allowed is None else min(available, allowed)


def cgroup_free_bytes(mount: Path, memberships: Path) -> int | None:
    """Returns what the control groups of this process (containers, SLURM jobs) leave it; None: they set no limit.

    Every group from the process's own up to the root counts. The cache of files that nobody reads counts as free, as
    it does for the kernel before it kills a process.

    Args:
        mount: where control groups are mounted; version 1 has its memory controller in a folder of its own there.
        memberships: /proc/self/cgroup, with lines number:controllers:path.
    """
    try:
        lines = [line.split(":", 2) for line in memberships.read_text().splitlines()]
    except OSError:  # not Linux
        return None
    paths = {controllers: path for _, controllers, path in lines}
    found = []
    for root, path, limit, usage, cache in (
        (mount, paths.get(""), "memory.max", "memory.current", "inactive_file"),
        (
            mount / "memory",
            paths.get("memory"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        own = root / (path or "/").strip("/")
        for group in [folder for folder in (own, *own.parents) if folder.is_relative_to(root)]:
            try:
                most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except OSError:  # the root of version 2 has no limit; inside a container, neither has a path of the host
                continue
            if most != "max" and int(most) < 1 << 60:  # no limit, in the words of version 2 and of version 1
                found.append(max(int(most) - used + int(stat.get(cache, 0)), 0))
    return min(found, default=None)


def processors_in_use(*, seconds: float = 0.5) -> float:
    """Returns how many processors all programs together keep busy, watched for so long; the caller sleeps."""
    return float(psutil.cpu_percent(interval=seconds)) / 100 * (os.cpu_count() or 1)
