"""NVIDIA GPUs as the driver's own program reports them: is there one, and how fast do its clocks run right now."""

import shutil
import subprocess
from dataclasses import dataclass

__all__ = ["Gpu", "gpus_from_csv", "gpus_now"]

_FIELDS = (
    "name,driver_version,memory.total,clocks.current.sm,clocks.max.sm,clocks.current.memory,temperature.gpu,power.draw"
)
_QUERY = (f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")


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
    """Returns the GPUs of this machine as they are now; none where there is no driver, or no GPU under it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    try:
        done = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return gpus_from_csv(done.stdout) if done.returncode == 0 else ()


def gpus_from_csv(text: str) -> tuple[Gpu, ...]:
    """Returns the GPUs in what `nvidia-smi --query-gpu=... --format=csv,noheader,nounits` prints, one a line.

    Lines that are no GPU ("No devices were found") are left out, and figures like "[N/A]" are None.
    """
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    num_fields = _FIELDS.count(",") + 1
    return tuple(Gpu(row[0], row[1], *map(_number, row[2:])) for row in rows if len(row) == num_fields)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
