"""Batches that are a function of (seed, epoch, position), so that a resumed or distributed run sees the same images.

Every process draws the same order for the global batch and takes its own rows. Augmentation is seeded too: per batch
for images in memory, per image for files; `randaugment` per image for both.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import RandAugment

from edc.data.extra import ExtraImages, Rows, rows_of_batches, steps_per_epoch
from edc.data.images import FileImages, Images, MemoryImages
from edc.errors import DataError, EdcError
from edc.method.perturb import sent_to
from edc.recipe import DataSection
from edc.seeding import generator_for
from edc.system.machine import num_cpus
from edc.system.memory import keep_no_freed_memory
from edc.system.signals import STOP_SIGNALS

__all__ = ["crop_and_flip", "evaluation_batches", "images_at", "rand_augmented", "train_batches"]


def train_batches(
    images: Images,
    data: DataSection,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    extra: ExtraImages | None = None,
    first_batch: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    randaugment: bool = False,
    shuffled: bool = False,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields this process's rows of every global batch of an epoch, from `first_batch` on.

    For a GPU they are in pinned memory, from which it copies while the CPU continues; those of a split that lies on it
    (`near`) are made there.

    Args:
        device: where they will go; None: to a GPU, if there is one.
        extra: images without labels (`NO_LABEL`) that have their share of each batch; an epoch is one of `images`.
        randaugment: changes each image (see `rand_augmented`) before a crop with padding and its flip, and after a
            random area has been cut out of a file's image.
        shuffled: whether extra images stand in random rows, as views that mix neighbouring rows need it.

    Shapes: images (batch_size / num_processes, C, H, W) uint8, labels (batch_size / num_processes,) int64.

    Raises:
        DataError: an image that cannot be read, or fewer images than a batch has, or than there are processes.
    """
    if batch_size < num_processes:
        raise DataError(
            f"training.batch_size: found {batch_size} for {num_processes} processes, expected at least one each"
        )
    sources, pinned = (images, *extra.parts) if extra else (images,), _are_pinned_for(device)
    mine = slice(rank * batch_size // num_processes, (rank + 1) * batch_size // num_processes)
    rows_of = rows_of_batches(images, extra, batch_size=batch_size, seed=seed, epoch=epoch, shuffled=shuffled)
    rows = (rows_of(number)[mine] for number in range(first_batch, steps_per_epoch(images, batch_size, extra)))
    loaded: Iterator[tuple[Tensor, Tensor]]
    in_memory = [source for source in sources if isinstance(source, MemoryImages)]
    if len(in_memory) == len(sources):
        loaded = (_gathered(in_memory, batch, batch.view_seeds(seed) if randaugment else None) for batch in rows)
    else:
        seeded = data.crops_areas
        # Drawn up batch by batch: a million tuples would be copied page by page between this process and its workers.
        requests = (batch.requests(seed, seeded=seeded, randaugment=randaugment) for batch in rows)
        loaded = _loaded(sources, requests, data.num_workers, replace=True, pinned=pinned)
    for number, (unchanged, labels) in enumerate(loaded, start=first_batch):
        pixels = unchanged
        if data.augmentation in ("crop", "crop_flip"):
            pixels = crop_and_flip(
                unchanged,
                padding=data.crop_padding,
                flip=data.flips,
                generator=generator_for(seed, "augment", epoch, number),
                rows=mine,
                num_rows=batch_size,
            )
        is_there = pixels.device.type != "cpu"
        yield (pixels.pin_memory(), labels.pin_memory()) if pinned and not is_there else (pixels, labels)


def evaluation_batches(
    images: Images,
    *,
    batch_size: int,
    num_workers: int = 0,
    rank: int = 0,
    num_processes: int = 1,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields every image once over all processes, in order within a process (rows rank, rank + P, ...).

    Args:
        device: where they will go, as in `train_batches`.

    Raises:
        DataError: an image that cannot be read, whatever `max_bad_fraction` is, because figures need whole splits.
    """
    order = torch.arange(len(images))[rank::num_processes]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    pinned = _are_pinned_for(device)
    if isinstance(images, MemoryImages):
        for pixels, labels in (images[batch] for batch in batches):
            yield (pixels.pin_memory(), labels.pin_memory()) if pinned else (pixels, labels)
    elif batches:
        requests = ([(0, i, None, None) for i in batch.tolist()] for batch in batches)
        yield from _loaded((images,), requests, num_workers, replace=False, pinned=pinned)


def images_at(sources: Sequence[Images], indices: Tensor, *, num_workers: int = 0) -> Tensor:
    """Returns the images at `indices` of all sources together (N, C, H, W) uint8, in the evaluation crop.

    Unreadable ones are replaced as in training.
    """
    ends = torch.tensor([len(images) for images in sources]).cumsum(0)
    numbers = torch.searchsorted(ends, indices.contiguous(), right=True)
    own = indices - (ends - ends.diff(prepend=torch.zeros(1, dtype=torch.int64)))[numbers]
    requests = [(number, index, None, None) for number, index in zip(numbers.tolist(), own.tolist(), strict=True)]
    batches = [requests[start : start + 32] for start in range(0, len(requests), 32)]
    if all(isinstance(images, MemoryImages) for images in sources):
        num_workers = 0
    parts = [pixels for pixels, _ in _loaded(sources, batches, num_workers, replace=True, pinned=False)]
    return torch.cat(parts) if parts else torch.empty(0, *sources[0].image_shape, dtype=torch.uint8)


def _gathered(sources: Sequence[MemoryImages], rows: Rows, view_seeds: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """Returns the images, after RandAugment if there are seeds for it, and labels of some rows of a batch."""
    pixels, labels = _from_memory(sources, rows)
    if view_seeds is not None:
        pixels = torch.stack([rand_augmented(one, seed) for one, seed in zip(pixels, view_seeds, strict=True)])
    return pixels, labels


def _from_memory(sources: Sequence[MemoryImages], rows: Rows) -> tuple[Tensor, Tensor]:
    if len(sources) == 1:
        return sources[0][sent_to(rows.indices, sources[0].images.device)]
    first = sources[0].images
    pixels = torch.empty(len(rows.indices), *first.shape[1:], dtype=first.dtype)
    labels = torch.empty(len(rows.indices), dtype=torch.int64)
    for number, source in enumerate(sources):
        here = rows.sources == number
        pixels[here], labels[here] = source[rows.indices[here]]
    return pixels, labels


def _are_pinned_for(device: torch.device | None) -> bool:
    """Returns whether batches for `device` are in memory that a GPU copies from without the CPU's help."""
    return torch.cuda.is_available() if device is None else device.type == "cuda"


_RAND_AUGMENT = RandAugment()


def rand_augmented(pixels: Tensor, seed: int | None) -> Tensor:
    """Returns one image after two random operations of RandAugment; without a seed, as it is.

    torchvision's, with its defaults: two of 14 operations, at magnitude 9 of 31 (Cubuk et al. 2020, arXiv 1909.13719).
    It draws from torch's own generator, which is seeded for this image and left as it was.

    Shapes: (C, H, W) uint8 to the same.
    """
    if seed is None:
        return pixels
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented: Tensor = _RAND_AUGMENT(pixels)
    return augmented


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
    device = images.device
    top, left = sent_to(torch.randint(0, 2 * padding + 1, (2, num_drawn, 1), generator=generator)[:, rows], device)
    lines = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    if flip:
        mirrored = sent_to(torch.rand((num_drawn, 1), generator=generator)[rows] < 0.5, device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    # One place of the padded image for each pixel, the same in all channels.
    places = lines[:, :, None] * padded.shape[3] + columns[:, None, :]
    places = places.view(num_images, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, places).view(images.shape)


WHOLE_SPLITS = "edc replaces no validation or test image, because every figure is about a whole split."


class _Requests(Dataset[Any]):
    """Answers (source, index, seed of augmentation, of RandAugment) requests; an error comes back in place of an image.

    An exception raised in a worker would reach the user wrapped in the worker's traceback.
    """

    def __init__(self, sources: Sequence[Images], *, replace: bool) -> None:
        self.sources, self.replace = sources, replace

    def __getitem__(self, request: Any) -> Any:
        number, index, augment_seed, view_seed = request
        source = self.sources[number]
        if isinstance(source, MemoryImages):
            pixels, label = source[index]
            return rand_augmented(pixels, view_seed), label, number, {}
        try:
            if self.replace:
                pixels, label, unreadable = source.load_or_replace(index, augment_seed=augment_seed)
                return rand_augmented(pixels, view_seed), label, number, unreadable
            return *source.load(index, augment_seed=augment_seed), number, {}
        except DataError as error:
            return error if self.replace else DataError(f"{error} {WHOLE_SPLITS}")
        except EdcError as error:
            return error


def _collate(items: Sequence[Any]) -> Any:
    error = next((item for item in items if isinstance(item, EdcError)), None)
    if error is not None:
        return error
    pixels, labels, numbers, unreadable = zip(*items, strict=True)
    bad = {(n, name): why for n, met in zip(numbers, unreadable, strict=True) for name, why in met.items()}
    return torch.stack(pixels), torch.stack(labels), bad


def _begin_worker(_worker: int) -> None:
    """Ignores signals to the whole process group, because the main process saves first; and frees memory."""
    keep_no_freed_memory()  # every image has a block of another size, so the heap would only grow
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _loaded(
    sources: Sequence[Images], batches: Iterable[Any], num_workers: int, *, replace: bool, pinned: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    num_workers = min(num_workers, num_cpus())  # torch warns at every epoch about more
    loader = DataLoader(
        _Requests(sources, replace=replace),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=pinned,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        if isinstance(batch, EdcError):
            raise batch
        pixels, labels, unreadable = batch
        for (number, name), reason in unreadable.items():
            images = sources[number]
            assert isinstance(images, FileImages)  # of those in memory all are readable
            images.bad.add(name, reason, num_images=len(images))
        yield pixels, labels
    for images in sources:
        if isinstance(images, FileImages):
            images.bad.report()
