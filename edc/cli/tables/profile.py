"""The table of `edc distill --profile`: where the time of a training step goes."""

from rich import box
from rich.console import Console
from rich.table import Table

from edc.runs.profile import StepProfile

__all__ = ["print_profile"]


def print_profile(profile: StepProfile, *, console: Console) -> None:
    """Prints the parts of a step, the operators that take longest, and where the trace is."""
    processes = "" if profile.num_processes == 1 else f", process 0 of {profile.num_processes}"
    parts = Table(
        title=f"one step of {profile.student}: {profile.step_ms:.1f} ms "
        f"({profile.batch_size} images on {profile.device}{processes}; mean of {profile.num_steps} steps)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    on_gpu = any(part.kernels_ms is not None for part in profile.ranges)
    parts.add_column("part")
    for column in ("ms", "share %", "calls", *(["kernels ms"] if on_gpu else [])):
        parts.add_column(column, justify="right")
    for part in profile.ranges:
        kernels = [] if part.kernels_ms is None else [f"{part.kernels_ms:.2f}"]
        parts.add_row(part.name, f"{part.ms:.2f}", f"{100 * part.share:.1f}", f"{part.calls:g}", *kernels)
    console.print(parts)
    if profile.exchange_ms is not None:
        console.print(
            f"exchange between processes: during {profile.exchange_ms:.1f} ms of the step, inside the parts above; "
            "includes the wait for the slowest process\n",
            highlight=False,
        )
    operators = Table(title="operators, by their own time", title_justify="left", box=box.SIMPLE_HEAD)
    operators.add_column("operator")
    for column in ("GPU ms" if on_gpu else "ms", "calls"):
        operators.add_column(column, justify="right")
    for operator in profile.operators:
        operators.add_row(operator.name, f"{operator.ms:.2f}", f"{operator.calls:g}")
    console.print(operators)
    if profile.peak_memory_bytes is not None:
        console.print(f"peak memory: {profile.peak_memory_bytes / 1e6:.0f} MB", highlight=False)
    if profile.teachers == "untrained":
        console.print("teachers: untrained ones of the same size (not all are trained yet); the time is the same")
    console.print(f"trace: {profile.trace} (open it in ui.perfetto.dev or chrome://tracing)", soft_wrap=True)
