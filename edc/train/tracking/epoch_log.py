"""Where the figures of an epoch go: metrics.jsonl, the curves for TensorBoard beside it, and the user's trackers."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from edc.train.saved.epochs import append_metrics
from edc.train.tracking.trackers import Tracked, Trackers

__all__ = ["EpochLog", "Tracked"]

VALIDATED = ("validation_acc", "validation_calibrated_nll")
CURVES = ("loss", *VALIDATED, *(f"ema_{name}" for name in VALIDATED), "learning_rate")


class EpochLog:
    """Takes the line of an epoch; on the main process alone it is opened, and added to."""

    def __init__(self, folder: Path, tracked: Tracked | None, accelerator: Accelerator) -> None:
        self.folder, self.tracked, self.accelerator = folder, tracked, accelerator
        self.curves: Any = None
        self.trackers: Trackers | None = None

    def open(self, *, purge_step: int | None) -> None:
        """Begins, or goes on; points of the curves from `purge_step` on, left by a run that was cut off, are dropped.

        Raises:
            FailedError: a tracker does not begin.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.trackers = Trackers(self.folder, self.tracked, self.accelerator)
        with suppress(OSError):
            self.curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=purge_step)

    def add(self, record: Mapping[str, Any]) -> None:
        """Writes the line. On a full disk points of the curves are lost without an error; metrics.jsonl, with the same
        figures, raises it.
        """
        append_metrics(self.folder / "metrics.jsonl", dict(record))
        with suppress(OSError):
            for name in CURVES if self.curves else ():
                if name in record:
                    self.curves.add_scalar(name, record[name], record["step"])
            for name, value in record.get("observed", {}).items() if self.curves else ():
                self.curves.add_scalar(f"observed/{name}", value, record["step"])
        if self.trackers:
            self.trackers.send()

    def close(self) -> None:
        """Ends what was opened."""
        if self.trackers:
            self.trackers.finish()
        with suppress(OSError):
            if self.curves:
                self.curves.close()
