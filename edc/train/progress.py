"""The progress of a training for people: a bar on a terminal or an occasional line in a log file, always on stderr."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edc.console import console

__all__ = ["TrainingProgress", "training_progress"]

SECONDS_BETWEEN_LINES = 15.0


class TrainingProgress:
    """Takes what the loop knows and shows it; costs nothing where it is disabled."""

    def __init__(self, bar: Progress | None, label: str, *, first_step: int, total_steps: int, visible: bool) -> None:
        self.bar, self.label, self.total_steps, self.visible = bar, label, total_steps, visible
        self.validation_acc: float | None = None
        self.loss: float | None = None
        self.started, self.first_step, self.images_seen, self.last_line = (
            time.monotonic(),
            first_step,
            0,
            time.monotonic(),
        )
        self.task = bar.add_task(label, total=total_steps, completed=first_step, details="") if bar else None

    def step(self, step: int, *, num_images: int) -> None:
        self.images_seen += num_images
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, details=self._details())
        elif self.visible and (time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES or step == self.total_steps):
            self.last_line = time.monotonic()
            elapsed = self.last_line - self.started
            left = elapsed / max(step - self.first_step, 1) * (self.total_steps - step)
            console.print(
                f"{self.label}: step {step}/{self.total_steps} {self._details()} {left:.0f} s left",
                soft_wrap=True,
                highlight=False,
            )

    def _details(self) -> str:
        rate = self.images_seen / max(time.monotonic() - self.started, 1e-9)
        validation = "" if self.validation_acc is None else f"val {self.validation_acc:.2%} "
        loss = "" if self.loss is None else f"loss {self.loss:.4f} "
        return f"{loss}{validation}{rate:,.0f} images/s"


@contextmanager
def training_progress(label: str, *, first_step: int, total_steps: int, visible: bool) -> Iterator[TrainingProgress]:
    """Yields the progress of one training; `visible` is false on all processes but the main one."""
    if not (visible and console.is_terminal):
        yield TrainingProgress(None, label, first_step=first_step, total_steps=total_steps, visible=visible)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[details]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bar:
        yield TrainingProgress(bar, label, first_step=first_step, total_steps=total_steps, visible=visible)
