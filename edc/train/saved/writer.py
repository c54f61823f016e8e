"""The state of a training at one moment, enough to continue bit for bit; and its file, written beside the training."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from edc.errors import EdcError
from edc.system.files import write_atomically
from edc.train.average import RunningAverage, copy_of_state

__all__ = ["FORMAT", "CheckpointWriter", "Position", "save_checkpoint"]

FORMAT = 1


@dataclass
class Position:
    """How far a training is, and its best epoch. Randomness needs no state, because it is derived from the position."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, extra="forbid")
    epoch: Annotated[int, Field(ge=0)] = 0
    batch: Annotated[int, Field(ge=0)] = 0
    """Batches of `epoch` already done."""
    loss_sum: float = 0.0
    """Sum of the losses of those batches."""
    best_score: float = math.inf
    """On validation images; lower is better."""
    best_epoch: int = -1
    seconds: float = 0.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    """Replaced as a whole, never changed: a checkpoint that is being written holds it, too."""

    def keep_if_best(self, score: float, network: nn.Module) -> None:
        """Remembers the network after the present epoch, unless an earlier one had a better score."""
        if score <= self.best_score:
            self.best_score, self.best_epoch, self.best_state = score, self.epoch, copy_of_state(network)


class CheckpointWriter:
    """Writes the checkpoint of one training on a thread, one at a time, while the steps go on.

    What it writes is a copy in host memory, which no later step changes. The file at `path` is always whole: the one
    before until the new one is complete. The end of the block waits for a write that has begun.
    """

    def __init__(
        self,
        path: Path,
        position: Position,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: RunningAverage | None,
    ) -> None:
        self.path = path
        self._training = position, network, optimizer, average
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.shutdown()

    def begin(self) -> None:
        """Begins to write everything that the next step depends on, as it is now.

        Raises:
            DiskError: the checkpoint before could not be written.
        """
        self.wait()
        document = _state_of(*self._training)
        document |= {part: _on_host(document[part]) for part in document.keys() - {"position"}}
        self._pending = self._thread.submit(_write, self.path, document)

    def save(self) -> None:
        """Writes it and waits for it."""
        self.begin()
        self.wait()

    def wait(self) -> None:
        """Waits for the checkpoint that is being written; raises `DiskError` if it could not be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def failure(self) -> EdcError | None:
        """Returns why the last checkpoint could not be written, if that is known already."""
        error = self._pending.exception() if self._pending is not None and self._pending.done() else None
        return error if isinstance(error, EdcError) else None

    def has_written(self) -> bool:
        """Returns whether there is a checkpoint, once none is being written."""
        self.wait()
        return self.path.is_file()


def save_checkpoint(
    path: Path,
    position: Position,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: RunningAverage | None = None,
) -> None:
    """Writes everything that the next step depends on, atomically."""
    _write(path, _state_of(position, network, optimizer, average))


def _state_of(
    position: Position, network: nn.Module, optimizer: torch.optim.Optimizer, average: RunningAverage | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "format": FORMAT,
        "position": dict(vars(position)),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    return document if average is None else document | {"average": average.state()}


def _on_host(value: Any) -> Any:
    """Returns a document with copies of its tensors in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_host(each) for key, each in value.items()}
    return [_on_host(each) for each in value] if isinstance(value, list) else value


def _write(path: Path, document: dict[str, Any]) -> None:
    with write_atomically(path) as temporary:
        torch.save(document, temporary)
