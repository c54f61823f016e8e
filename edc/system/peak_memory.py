"""How much memory a piece of work takes, in a process that holds other things as well.

Linux keeps the highest resident memory of a process (VmHWM) and lets it be reset: the growth from there is the work's
own. `resource.getrusage` has the same figure but cannot be reset, so it could not tell rows apart; where there is no
resetting (macOS, Windows) the figure is None.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edc.system.memory import give_back_freed_memory

__all__ = ["PeakGrowth", "peak_growth"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class PeakGrowth:
    """How far resident memory rose above what it was; None until the block has ended, or where nobody can tell."""

    peak_bytes: int | None = None


@contextmanager
def peak_growth() -> Iterator[PeakGrowth]:
    """Yields a record that holds the growth of the block once it has ended."""
    growth = PeakGrowth()
    give_back_freed_memory()  # or the block would reuse memory that others have freed, and seem to need none
    try:
        CLEAR.write_text("5")
    except OSError:
        yield growth
        return
    start = _status_bytes("VmRSS")
    yield growth
    peak = _status_bytes("VmHWM")
    if start is not None and peak is not None:
        growth.peak_bytes = max(0, peak - start)


def _status_bytes(field: str) -> int | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
