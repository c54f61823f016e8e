"""Images that could not be read: counted, named once, and an error if there are too many."""

from collections.abc import Sequence

from edc.console import console
from edc.errors import DataError

__all__ = ["BadImages"]

NUM_NAMED = 5


class BadImages:
    """The unreadable images of one split: those that this process has met, and those that others have reported.

    Args:
        max_fraction: the largest part of the split that may be unreadable; 0: none.
        num_lost: samples already known to be missing (the rest of a truncated shard).
        section: of the recipe, that the split comes from.
    """

    def __init__(self, max_fraction: float = 0.0, *, num_lost: int = 0, section: str = "data") -> None:
        self.max_fraction, self.num_lost, self.section = max_fraction, num_lost, section
        self.names: dict[str, str] = {}
        """The name of each, and what is wrong with it, in the order they were met."""
        self.pooled: dict[str, str] = {}
        """Those of all processes, as of the last time they met."""
        self.num_reported = 0

    def add(self, name: str, reason: str, *, num_images: int) -> None:
        """Counts one more image of a split of `num_images`; raises `DataError` if that makes too many."""
        self.names[name] = reason
        self._require_few(reason, num_images)

    def pool(self, everyone: Sequence[dict[str, str]], *, num_images: int) -> None:
        """Counts the names that each process has met; raises `DataError`, the same one everywhere, if too many."""
        self.pooled = {name: reason for names in everyone for name, reason in names.items()}
        if self.pooled:
            self._require_few(next(reversed(self.pooled.values())), num_images)

    def _require_few(self, reason: str, num_images: int) -> None:
        num_found = len(self.names.keys() | self.pooled.keys())
        if num_found + self.num_lost > self.max_fraction * (num_images + self.num_lost):
            lost = f" and {self.num_lost} lost with damaged shards" if self.num_lost else ""
            raise DataError(
                f"{reason}\n  {num_found} of {num_images} images could not be read{lost}: more than "
                f"{self.section}.max_bad_fraction, {self.max_fraction:g}, allows"
            )

    def report(self) -> None:
        """Prints which images this process has replaced since the last report, once each."""
        new = list(self.names)[self.num_reported :]
        if new:
            more = f" and {len(new) - NUM_NAMED} more" if len(new) > NUM_NAMED else ""
            listed = ", ".join(new[:NUM_NAMED]) + more
            console.print(
                f"{self.section}: {len(new)} unreadable images, each replaced by another of its class: {listed}",
                highlight=False,
            )
        self.num_reported = len(self.names)
