"""The progress of a training for people: a bar on a terminal or an occasional line in a log file, always on stderr; and
the curves for TensorBoard, beside metrics.jsonl.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from edc.console import console

__all__ = ["TensorBoardCurves", "TrainingProgress", "tensorboard_curves", "training_progress"]

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


CURVES = ("loss", "validation_acc", "ema_validation_acc", "learning_rate")


class TensorBoardCurves:
    """Takes the line of an epoch and adds a point to each curve that it has.

    On a full disk points are lost here without an error; writing metrics.jsonl, with the same figures, raises it.
    """

    def __init__(self, folder: Path, *, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = None
        with suppress(OSError):
            self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, record: Mapping[str, Any]) -> None:
        with suppress(OSError):
            for name in CURVES if self.writer else ():
                if name in record:
                    self.writer.add_scalar(name, record[name], record["step"])
            for name, value in record.get("observed", {}).items() if self.writer else ():
                self.writer.add_scalar(f"observed/{name}", value, record["step"])


@contextmanager
def tensorboard_curves(folder: Path, *, purge_step: int | None) -> Iterator[TensorBoardCurves]:
    """Yields the curves in `folder`; points from `purge_step` on, left by a run that was cut off, are dropped."""
    curves = TensorBoardCurves(folder, purge_step=purge_step)
    try:
        yield curves
    finally:
        with suppress(OSError):
            if curves.writer:
                curves.writer.close()
