"""A sample of a split: the same images for all students, epochs and seeds, so that figures of them compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from edc import metrics
from edc.data import Images
from edc.data.batches import images_at
from edc.recipe import TrainingSection
from edc.seeding import generator_for
from edc.train.distributed import raised_together
from edc.train.evaluate import gathered
from edc.train.placement import float32_as, to_device

__all__ = ["Asked", "Sample", "ask", "read_sample"]

Array = NDArray[np.float64]
Asked = Callable[[Tensor, slice], Tensor]
"""Answers some images (N, C, H, W) of a sample, of which it is told the rows, with logits (L, N, K)."""


@dataclass(frozen=True)
class Sample:
    """Images of one split: how many, and those of this process, rows rank, rank + P, ... of them.

    Shapes: `indices` (num_images,) int64, counted through all sources; `pixels` (num_mine, C, H, W) uint8.
    """

    indices: Tensor
    pixels: Tensor

    @property
    def num_images(self) -> int:
        return len(self.indices)


def read_sample(
    sources: Sequence[Images], name: str, num_images: int, *, num_workers: int, accelerator: Accelerator
) -> Sample:
    """Returns so many images of all `sources` together, or all, drawn at random by the name of the split.

    They are in their evaluation crop. An unreadable one is replaced as in training.
    """
    total = sum(len(images) for images in sources)
    indices = torch.randperm(total, generator=generator_for("sample", name))[:num_images].sort().values
    mine = indices[accelerator.process_index :: accelerator.num_processes]
    with raised_together(accelerator):
        return Sample(indices, images_at(sources, mine, num_workers=num_workers))


def ask(asked: Asked, sample: Sample, *, training: TrainingSection, accelerator: Accelerator) -> Array:
    """Returns the log-probabilities (L, N, K) of `asked` on all images of a sample, the same on every process.

    No more images go through the networks at once than in training. Like every evaluation, it is never in TF32.
    """
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    at_once, _ = training.rows_at_once(num_processes)
    mine: list[NDArray[np.floating[Any]]] = []
    with torch.no_grad(), float32_as("ieee"):
        for first in range(0, len(sample.pixels), at_once):
            part = to_device(sample.pixels[first : first + at_once], accelerator.device, training)
            rows = slice(rank + num_processes * first, rank + num_processes * (first + len(part)), num_processes)
            mine.append(asked(part, rows).float().cpu().numpy())
    return metrics.log_probs_from_logits(gathered(mine, sample.num_images, accelerator))
