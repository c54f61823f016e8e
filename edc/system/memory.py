"""Host memory that a training on the CPU has freed: the process keeps it for the next step and does not return it.

glibc maps every large block when it is allocated and unmaps it when it is freed. So each step would fault in the pages
of all its activations again, after the kernel has cleared them (measured in results/step_cost.md). The price: blocks of
many sizes in one heap leave gaps, so that a process may hold more memory than it uses.

Nothing changes with another C library, or if the user has set glibc's thresholds:
MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=67108864 in the environment give freed memory back, at the
thresholds that glibc itself arrives at in such a process.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["freed_memory_kept", "give_back_freed_memory", "keep_no_freed_memory"]

# The numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
"""No block gets its own mapping, and the top of the heap is never returned."""
GIVING_BACK = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20}
"""Where glibc's own thresholds end up in a process that has freed large blocks; they cannot be made to move again."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block, freed memory stays with the process; after it, it is returned. Results are bit-equal."""
    if _set_by_user():
        yield
        return
    _set(KEEPING)
    try:
        yield
    finally:
        keep_no_freed_memory()
        give_back_freed_memory()


def keep_no_freed_memory() -> None:
    """Makes glibc return freed memory again, in a process forked within the block, for example to load images."""
    if not _set_by_user():
        _set(GIVING_BACK)


def _set_by_user() -> bool:
    variables = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    return any(name in os.environ for name in variables) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def give_back_freed_memory() -> None:
    """Returns all freed memory to the system, wherever in the heap it is."""
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError, TypeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)
