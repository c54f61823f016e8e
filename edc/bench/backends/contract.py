"""What every backend does and is given: the contract behind which torch, ONNX Runtime and OpenVINO look alike."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backend", "Floats", "Loaded", "OnnxSubject", "Subject", "TorchSubject", "WhatRan", "log_mean_probs"]

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TorchSubject:
    """A network of a run, by the name it has in summary.json: "teacher 0", "ensemble", "kd", "latent_be (members)"."""

    run: Path
    subject: str
    data_root: Path | None = None
    """Where the run's images are now, if not where its recipe says."""


@dataclass(frozen=True)
class OnnxSubject:
    """One ONNX file, or the members of an ensemble to be run in turn and their probabilities averaged."""

    files: tuple[Path, ...]


Subject = TorchSubject | OnnxSubject


@dataclass(frozen=True)
class WhatRan:
    """What really computed, as the backend reports it after loading; never what was asked for."""

    provider: str
    precision: str
    """fp32, bf16, fp16 or int8: that of the convolutions and matrix products."""
    version: str
    threads: int
    notes: tuple[str, ...] = ()


class Loaded(Protocol):
    """A subject ready to run."""

    @property
    def what_ran(self) -> WhatRan: ...

    @property
    def file_bytes(self) -> int:
        """Bytes of the files; for torch, of the parameters and buffers in memory."""
        ...

    def infer(self, batch: Floats, /) -> Floats:
        """Returns logits or log-probabilities (N, K) of images (N, C, H, W) in [0, 1].

        This is what is timed, so it does nothing but run. Raises `FailedError` when the backend refuses.
        """
        ...


class Backend(Protocol):
    """A library, imported and set to a number of threads. Making one raises `NotInstalledError` if it is absent."""

    def prepare(self, subject: Subject) -> None:
        """Does what loading needs and is not loading (reads the data set for its shapes); not timed, may be nothing."""
        ...

    def load(self, subject: Subject) -> Loaded:
        """Returns `subject` ready to run, raising an `EdcError` if it cannot be loaded or would fall back; timed."""
        ...


def log_mean_probs(logits: list[Floats]) -> Floats:
    """Returns the log of the mean of the members' probabilities (N, K), for the logits (N, K) of each.

    In a handful of numpy calls: it is part of what running an ensemble member by member costs.
    """
    stacked = np.stack(logits)
    stacked -= stacked.max(axis=-1, keepdims=True)
    stacked -= np.log(np.exp(stacked).sum(axis=-1, keepdims=True))
    result: Floats = np.logaddexp.reduce(stacked, axis=0) - np.float32(np.log(len(logits)))
    return result
