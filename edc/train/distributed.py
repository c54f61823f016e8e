"""What the processes of one run agree on: what is on disk, which error ends it, how many images were unreadable.

A process must tell the others what it alone knows at a place where all of them meet, or they wait for it
forever. Every process calls these functions, in the same order; a single process never waits.

All processes raise the same `EdcError`. After any other error (a bug, no memory left) the others wait until the
launcher ends them.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.profiler import record_function

from edc.data import Images, MemoryImages
from edc.errors import EdcError
from edc.system.files import exclusive_lock

__all__ = [
    "anyone",
    "by_main",
    "kept_coming",
    "locked_by_main",
    "one_of_a_machine_first",
    "pool_bad_images",
    "raise_together",
    "raised_together",
]

Result = TypeVar("Result")


def anyone(mine: bool, accelerator: Accelerator) -> bool:
    """Returns whether `mine` is so on any process."""
    return bool(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum") > 0)


def by_main(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Runs `work` on the main process alone; returns its result, or raises its `EdcError`, on every process.

    Use it to look at files, too, because a shared file system may answer two machines differently.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except EdcError as error:
            outcome[1] = error
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    result, met = outcome
    if met is not None:
        raise met
    found: Result = result
    return found


@contextmanager
def raised_together(accelerator: Accelerator) -> Iterator[None]:
    """Raises an `EdcError` that any process meets in the block on all of them, at the end of the block.

    The block must not wait for other processes: one that fails would not come to meet them there.
    """
    met: EdcError | None = None
    try:
        yield
    except EdcError as error:
        met = error
    raise_together(met, accelerator)


def raise_together(met: EdcError | None, accelerator: Accelerator) -> None:
    """Raises, on every process, the first error by process number that any of them has met; nothing if none has."""
    if not anyone(met is not None, accelerator):
        return
    for error in gather_object([met]):
        if error is not None:
            raise error


def kept_coming(
    batches: Iterator[tuple[Tensor, Tensor]],
    failed: list[EdcError],
    *,
    share: int,
    image_shape: tuple[int, int, int],
    accelerator: Accelerator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches of a training; the wait for one is visible in a profile.

    An error while other processes are in the middle of their step goes into `failed`, and all raise it at the next
    look. Until then `share` black images replace each batch.
    """
    try:
        while True:
            with record_function("edc:data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except EdcError as error:
        if accelerator.num_processes == 1:
            raise
        failed.append(error)
    while True:
        yield torch.zeros(share, *image_shape, dtype=torch.uint8), torch.zeros(share, dtype=torch.int64)


def one_of_a_machine_first(work: Callable[[], Result], accelerator: Accelerator) -> Result:
    """Runs `work` on every process, on one of each machine ahead of the others, and returns each one's own result.

    For work that fills a folder the first time, by a download for example: the others find it filled. An `EdcError`
    that any process meets is raised on all.
    """
    results: list[Result] = []
    for is_first in (True, False):
        with raised_together(accelerator):
            if accelerator.is_local_main_process == is_first:
                results.append(work())
    return results[0]


@contextmanager
def locked_by_main(
    path: Path, *, held_by_other: str, accelerator: Accelerator, vanishes: bool = False
) -> Iterator[None]:
    """The main process holds an `exclusive_lock` for the block; all raise `RunError` if another job has it."""
    with ExitStack() as held:

        def lock() -> None:
            held.enter_context(exclusive_lock(path, held_by_other=held_by_other, vanishes=vanishes))

        by_main(lock, accelerator)
        yield


def pool_bad_images(images: Images, accelerator: Accelerator) -> None:
    """Compares the unreadable images of all processes together with the limit of the split.

    Raises:
        DataError: they are too many; raised on every process.
    """
    if accelerator.num_processes == 1 or isinstance(images, MemoryImages) or not images.bad.max_fraction:
        return
    images.bad.pool(gather_object([images.bad.names]), num_images=len(images))
