"""Extra images, which have no labels: the images themselves, and their rows in a batch.

Each batch has the same number of them in the same rows, spread evenly, so every process and every micro-batch has its
share. Where views mix neighbouring rows, the rows of each batch are in random order instead: spread evenly, every
labelled image could be mixed with an extra one alone. An epoch goes once through the labelled images. A turn is one
pass through the extra images, in a new order, and can continue in the next epoch. All of it is a function of seed,
epoch and position.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from edc.data.images import Images, sample_seed
from edc.errors import DataError
from edc.recipe.data_section import num_extra_rows
from edc.seeding import derive_seed, generator_for

__all__ = ["ExtraImages", "Rows", "rows_of_batches", "steps_per_epoch"]


@dataclass(frozen=True, eq=False)
class ExtraImages:
    """Images from one or more places, whose labels are all `NO_LABEL`; `share` is their share of a batch."""

    parts: tuple[Images, ...]
    share: float

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def num_rows(self, batch_size: int) -> int:
        return num_extra_rows(batch_size, self.share)

    def fingerprint(self) -> str:
        """Returns a digest of the images that does not depend on their place on disk."""
        return hashlib.sha256(repr([part.fingerprint() for part in self.parts]).encode()).hexdigest()


@dataclass(frozen=True)
class Rows:
    """The images in some rows of a batch. Source 0 is the labelled images; the extra images' parts count from 1.

    Shapes: all (N,) int64. `turns` counts the earlier passes through a source.
    """

    sources: Tensor
    indices: Tensor
    turns: Tensor

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        return Rows(self.sources[rows], self.indices[rows], self.turns[rows])

    def requests(
        self, seed: int, *, seeded: bool, randaugment: bool = False
    ) -> list[tuple[int, int, int | None, int | None]]:
        """Returns each row's source, index, augmentation seed (if `seeded`) and RandAugment seed (if `randaugment`)."""
        rows = zip(self.sources.tolist(), self.indices.tolist(), self.turns.tolist(), strict=True)
        augment = [_augment_seed(seed, turn, source, i) if seeded else None for source, i, turn in rows]
        view = self.view_seeds(seed) if randaugment else [None] * len(augment)
        return list(zip(self.sources.tolist(), self.indices.tolist(), augment, view, strict=True))

    def view_seeds(self, seed: int) -> list[int]:
        """Returns the RandAugment seed of each row, which depends on the image and on its source's turn."""
        rows = zip(self.sources.tolist(), self.indices.tolist(), self.turns.tolist(), strict=True)
        return [derive_seed(seed, "randaugment", turn, *([source] if source else []), i) for source, i, turn in rows]


def _augment_seed(seed: int, turn: int, source: int, index: int) -> int:
    if not source:
        return sample_seed(seed, turn, index)
    return derive_seed(seed, "augment extra", turn, source, index)


def steps_per_epoch(
    images: Images, batch_size: int, extra: ExtraImages | None = None, *, field: str = "training"
) -> int:
    """Returns the number of full batches of the labelled `images` together with the `extra` ones.

    Images of an incomplete last batch are left out, as in the official code.

    Args:
        field: the section of the recipe that says `batch_size`, for errors.

    Raises:
        DataError: not one batch.
    """
    num_labelled = batch_size - (extra.num_rows(batch_size) if extra else 0)
    if len(images) < num_labelled:
        beside = f" and {num_labelled} of a batch are labelled" if extra else ""
        raise DataError(
            f"{field}.batch_size: found {batch_size}{beside}, but only {len(images)} training images; make it smaller"
        )
    return len(images) // num_labelled


def rows_of_batches(
    images: Images, extra: ExtraImages | None, *, batch_size: int, seed: int, epoch: int, shuffled: bool = False
) -> Callable[[int], Rows]:
    """Returns a function from the number of a batch in the epoch to the images in its rows.

    Args:
        shuffled: whether labelled and extra rows stand in random order, drawn for each batch, not spread evenly.
    """
    order = torch.randperm(len(images), generator=generator_for(seed, "order", epoch))
    if extra is None:
        zeros, epochs = torch.zeros(batch_size, dtype=torch.int64), torch.full((batch_size,), epoch)
        return lambda number: Rows(zeros, order[number * batch_size :][:batch_size], epochs)
    num_extra, num_steps = extra.num_rows(batch_size), steps_per_epoch(images, batch_size, extra)
    num_labelled = batch_size - num_extra
    is_extra = is_extra_row(batch_size, num_extra)
    in_turn = _in_turn(extra, seed)

    def rows_of(number: int) -> Rows:
        sources, indices, turns = torch.zeros(3, batch_size, dtype=torch.int64)
        indices[~is_extra], turns[~is_extra] = order[number * num_labelled :][:num_labelled], epoch
        first = (epoch * num_steps + number) * num_extra
        sources[is_extra], indices[is_extra], turns[is_extra] = in_turn(first, num_extra)
        rows = Rows(sources, indices, turns)
        if not shuffled:
            return rows
        return rows[torch.randperm(batch_size, generator=generator_for(seed, "rows", epoch, number))]

    return rows_of


def is_extra_row(batch_size: int, num_extra: int) -> Tensor:
    """Returns which rows are extra images, (batch_size,) bool: any part of a batch has its share of them, +-1."""
    row = torch.arange(batch_size)
    return (row + 1) * num_extra // batch_size > row * num_extra // batch_size


def _in_turn(extra: ExtraImages, seed: int) -> Callable[[int, int], tuple[Tensor, Tensor, Tensor]]:
    """Returns a function (position, number of images) -> (sources, indices, turns); positions count from epoch 0 on."""
    lengths = torch.tensor([len(part) for part in extra.parts])
    ends = lengths.cumsum(0)
    order = lru_cache(2)(lambda turn: torch.randperm(len(extra), generator=generator_for(seed, "extra order", turn)))

    def in_turn(first: int, num_images: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = torch.arange(first, first + num_images)
        turns, places = positions // len(extra), positions % len(extra)
        chosen = torch.empty_like(places)
        for turn in range(int(turns[0]), int(turns[-1]) + 1):
            chosen[turns == turn] = order(turn)[places[turns == turn]]
        part = torch.searchsorted(ends, chosen, right=True)
        return part + 1, chosen - (ends - lengths)[part], turns

    return in_turn
