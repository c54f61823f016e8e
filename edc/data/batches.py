"""Batches that are a function of (seed, epoch, position), so that a resumed or distributed run sees the same images.

Every process draws the same order for the global batch and takes its own rows. Augmentation is seeded too: per batch
for images in memory, per image for files.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edc.data.images import FileImages, Images, MemoryImages, sample_seed
from edc.errors import DataError, EdcError
from edc.recipe import DataSection
from edc.seeding import generator_for
from edc.system.machine import num_cpus
from edc.system.memory import keep_no_freed_memory
from edc.system.signals import STOP_SIGNALS

__all__ = ["crop_and_flip", "evaluation_batches", "steps_per_epoch", "train_batches"]


def steps_per_epoch(images: Images, batch_size: int) -> int:
    """Returns the number of full batches in an epoch; an incomplete last batch is left out, as in the official code."""
    if len(images) < batch_size:
        raise DataError(
            f"training.batch_size: found {batch_size}, but only {len(images)} training images; make it smaller"
        )
    return len(images) // batch_size


def train_batches(
    images: Images,
    data: DataSection,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    first_batch: int = 0,
    rank: int = 0,
    num_processes: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields this process's rows of every global batch of an epoch, from `first_batch` on.

    On a machine with a GPU they are in pinned memory, from which it copies while the CPU continues.

    Shapes: images (batch_size / num_processes, C, H, W) uint8, labels (batch_size / num_processes,) int64.

    Raises:
        DataError: an image that cannot be read, or fewer images than a batch has, or than there are processes.
    """
    if batch_size < num_processes:
        raise DataError(
            f"training.batch_size: found {batch_size} for {num_processes} processes, expected at least one each"
        )
    order = torch.randperm(len(images), generator=generator_for(seed, "order", epoch))
    num_batches = steps_per_epoch(images, batch_size)
    mine = slice(rank * batch_size // num_processes, (rank + 1) * batch_size // num_processes)
    batches = [order[b * batch_size : (b + 1) * batch_size] for b in range(first_batch, num_batches)]
    if isinstance(images, FileImages):
        resized = data.augmentation == "resized_crop_flip"
        # Made batch by batch: a million tuples would be copied page by page between this process and its workers.
        requests = ([(i, sample_seed(seed, epoch, i) if resized else None) for i in b[mine].tolist()] for b in batches)
        loaded = _loaded(images, requests, data.num_workers, replace=True)
    else:
        loaded = (images[batch[mine]] for batch in batches)
    for number, (unchanged, labels) in enumerate(loaded, start=first_batch):
        pixels = unchanged
        if data.augmentation in ("crop", "crop_flip"):
            pixels = crop_and_flip(
                unchanged,
                padding=data.crop_padding,
                flip=data.augmentation == "crop_flip",
                generator=generator_for(seed, "augment", epoch, number),
                rows=mine,
                num_rows=batch_size,
            )
        yield _pinned(pixels), _pinned(labels)


def evaluation_batches(
    images: Images, *, batch_size: int, num_workers: int = 0, rank: int = 0, num_processes: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields every image once over all processes, in order within a process (rows rank, rank + P, ...).

    Raises:
        DataError: an image that cannot be read, whatever `max_bad_fraction` is, because figures need whole splits.
    """
    order = torch.arange(len(images))[rank::num_processes]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if isinstance(images, MemoryImages):
        for pixels, labels in (images[batch] for batch in batches):
            yield _pinned(pixels), _pinned(labels)
    elif batches:
        requests = ([(i, None) for i in batch.tolist()] for batch in batches)
        yield from _loaded(images, requests, num_workers, replace=False)


def _pinned(rows: Tensor) -> Tensor:
    """Returns `rows` in memory that a GPU copies from without the CPU's help; without a GPU, as they are."""
    return rows.pin_memory() if torch.cuda.is_available() else rows


def crop_and_flip(
    images: Tensor,
    *,
    padding: int,
    flip: bool,
    generator: torch.Generator,
    rows: slice = slice(None),
    num_rows: int | None = None,
) -> Tensor:
    """Returns each image padded with zeros, cropped back at a random place, and mirrored half the time.

    Args:
        rows, num_rows: which rows of a global batch of `num_rows` images these are; the draws are made for all of them.

    Shapes: (N, C, H, W) to the same, any dtype.
    """
    num_images, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    num_drawn = num_rows or num_images
    top, left = torch.randint(0, 2 * padding + 1, (2, num_drawn, 1), generator=generator)[:, rows]
    lines = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flip:
        mirrored = torch.rand((num_drawn, 1), generator=generator)[rows] < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[
        torch.arange(num_images)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        lines[:, None, :, None],
        columns[:, None, None, :],
    ]


WHOLE_SPLITS = "edc replaces no validation or test image, because every figure is about a whole split."


class _Requests(Dataset[Any]):
    """Answers (index, augmentation seed) requests; an unreadable image comes back as its error.

    An exception raised in a worker would reach the user wrapped in the worker's traceback.
    """

    def __init__(self, images: FileImages, *, replace: bool) -> None:
        self.images, self.replace = images, replace

    def __getitem__(self, request: Any) -> Any:
        index, augment_seed = request
        try:
            if self.replace:
                return self.images.load_or_replace(index, augment_seed=augment_seed)
            return *self.images.load(index, augment_seed=augment_seed), {}
        except DataError as error:
            return error if self.replace else DataError(f"{error} {WHOLE_SPLITS}")
        except EdcError as error:
            return error


def _collate(items: Sequence[Any]) -> Any:
    error = next((item for item in items if isinstance(item, EdcError)), None)
    if error is not None:
        return error
    pixels, labels, unreadable = zip(*items, strict=True)
    return torch.stack(pixels), torch.stack(labels), {name: why for one in unreadable for name, why in one.items()}


def _begin_worker(_worker: int) -> None:
    """Ignores signals to the whole process group, because the main process saves first; and frees memory."""
    keep_no_freed_memory()  # every image has a block of another size, so the heap would only grow
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _loaded(
    images: FileImages, batches: Iterable[Any], num_workers: int, *, replace: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    num_workers = min(num_workers, num_cpus())  # torch warns at every epoch about more
    loader = DataLoader(
        _Requests(images, replace=replace),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        if isinstance(batch, EdcError):
            raise batch
        pixels, labels, unreadable = batch
        for name, reason in unreadable.items():
            images.bad.add(name, reason, num_images=len(images))
        yield pixels, labels
    images.bad.report()
