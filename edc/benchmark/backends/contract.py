"""The contract of every backend: its input and its methods."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edc.deploy.artifact.manifest import Preprocessing
from edc.subject import Subject

__all__ = [
    "Backend",
    "EngineFile",
    "EngineSource",
    "Floats",
    "Loaded",
    "Nanoseconds",
    "OnnxSource",
    "Source",
    "TorchSource",
    "WhatRan",
]

Floats = NDArray[np.float32]
Nanoseconds = NDArray[np.int64]


@dataclass(frozen=True)
class TorchSource:
    """A network of a run."""

    run: Path
    subject: Subject
    data_root: Path | None = None
    """Where the run's images are now, if not where its recipe says."""


@dataclass(frozen=True)
class OnnxSource:
    """One ONNX file, or the members of an ensemble to be run in turn and their probabilities averaged."""

    files: tuple[Path, ...]
    member_temperature: float = 1.0
    """Divides each member's logits before they are averaged."""
    feed: Preprocessing | None = None
    """The input that the files take; None: images as they are, (N, C, H, W) float32 in [0, 1]."""
    not_for_openvino: str | None = None
    """Why OpenVINO does not run it: what the export found; None: it may."""


@dataclass(frozen=True)
class EngineFile:
    """An engine and the digest that the manifest gives it: one that was changed is not loaded."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class EngineSource:
    """One engine, or the members of an ensemble to be run in turn; none where the artifact has none of `subject`.

    Engines keep the precision of the graph that they were built from: the subject's. A CUDA graph records the calls to
    the GPU once and replays them, so that the host has less to do.
    """

    subject: Subject
    files: tuple[EngineFile, ...]
    member_temperature: float = 1.0
    """As of `OnnxSource`."""
    feed: Preprocessing | None = None


Source = TorchSource | OnnxSource | EngineSource
"""What a backend is to run, and where it is."""


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
    """A source ready to run. Attributes with a default hold for most backends, which inherit them."""

    what_ran: WhatRan
    file_bytes: int
    """Of the files; for torch, of the parameters and buffers in memory."""
    max_batch: int | None = None
    """The largest batch that `infer` takes; None: as large as memory allows."""
    on_gpu: bool = False

    def infer(self, batch: Any, /) -> Floats:
        """Returns logits or log-probabilities (N, K) of a batch as the source takes it.

        That is images (N, C, H, W) float32 in [0, 1], unless the source's `feed` says otherwise. This is timed, so it
        does nothing but run. Raises `FailedError` if the backend cannot run the batch.
        """
        ...

    def num_compilations(self) -> int:
        """Returns how often something was compiled so far; nothing may be compiled during a timing."""
        return 0

    def probe_ns(self) -> int | None:
        """Returns how long a fixed piece of work takes on the device now; None: the host's own probe says enough."""
        return None

    def parts_of_last(self, num_runs: int) -> dict[str, Nanoseconds]:
        """Returns the parts of the last `num_runs` inferences, (num_runs,) each; nothing on a CPU.

        copy_in, compute and copy_out as the GPU's own clock has them, and enqueue: how long the host took to ask.
        """
        return {}


class Backend(Protocol):
    """A library, imported and set to a number of threads. Making one raises `NotInstalledError` if it is absent."""

    is_warm: bool = False
    """Whether `prepare` did the library's one-time set-up; else the first source is loaded, run and discarded."""

    def is_lost(self) -> bool:
        """Returns whether the device fails every later call of this process, as a GPU does after an invalid access."""
        return False

    def take_process(self) -> None:
        """Sets up what only a backend in its own process may; called once, before anything is loaded."""
        return

    def prepare(self, source: Source) -> None:
        """Prepares for loading (reads the data set for its shapes, for example); not timed, may do nothing."""
        ...

    def load(self, source: Source) -> Loaded:
        """Returns `source` ready to run, raising an `EdcError` if it cannot be loaded or would fall back; timed."""
        ...
