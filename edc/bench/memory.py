"""How much memory of this process belongs to which row, though all rows of a backend live in one process.

Only one row is worked on at a time. What resident memory grows by meanwhile is held by that row from then on; its peak
is what it held before plus how far memory rose above the start. Linux keeps the highest value (VmHWM) and lets a
process reset it; elsewhere there is no telling rows apart, and the figure is None.
"""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["MemoryAccount"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryAccount:
    """The bytes that each row, by its key, holds and has had at its peak."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._peak: dict[str, int] = {}

    @contextmanager
    def working_on(self, key: str) -> Iterator[None]:
        """Books what memory grows by within the block to `key`."""
        start = _reset_peak()
        yield
        peak, end = _status("VmHWM"), _status("VmRSS")
        if start is None or peak is None or end is None:
            return
        held = self._held.get(key, 0)
        self._peak[key] = max(self._peak.get(key, 0), held + peak - start)
        self._held[key] = held + max(0, end - start)

    def peak_bytes(self, key: str) -> int | None:
        """Returns the most that `key` had at once, or None where the system does not tell."""
        return self._peak.get(key)


def _reset_peak() -> int | None:
    """Returns the resident memory after freed memory went back to the system; from here on the peak counts anew."""
    with suppress(AttributeError, OSError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)  # or one row would run in what another has freed, and seem to need nothing
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
