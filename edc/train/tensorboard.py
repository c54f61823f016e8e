"""The curves of a training for TensorBoard, beside its metrics.jsonl."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardCurves", "tensorboard_curves"]

CURVES = ("loss", "validation_acc", "learning_rate")


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
