"""Images that could not be read: counted, named once, and refused where there are too many."""

from edc.errors import DataError
from edc.report.progress import console

__all__ = ["BadImages"]

NUM_NAMED = 5


class BadImages:
    """The unreadable images of one split that this process has met.

    Args:
        max_fraction: the largest part of the split that may be unreadable; 0: none.
        num_lost: samples already known to be missing (the rest of a truncated shard).
    """

    def __init__(self, max_fraction: float = 0.0, *, num_lost: int = 0) -> None:
        self.max_fraction, self.num_lost = max_fraction, num_lost
        self.names: dict[str, str] = {}
        """The name of each, and what is wrong with it, in the order they were met."""
        self.num_reported = 0

    def add(self, name: str, reason: str, *, num_images: int) -> None:
        """Counts one more image of a split of `num_images`; raises `DataError` if that makes too many."""
        self.names[name] = reason
        found = len(self.names) + self.num_lost
        if found > self.max_fraction * (num_images + self.num_lost):
            lost = f" and {self.num_lost} lost with damaged shards" if self.num_lost else ""
            raise DataError(
                f"{reason}\n  {len(self.names)} of {num_images} images could not be read{lost}: more than "
                f"data.max_bad_fraction, {self.max_fraction:g}, allows"
            )

    def report(self) -> None:
        """Says which images were replaced since the last report, once each."""
        new = list(self.names)[self.num_reported :]
        if new:
            more = f" and {len(new) - NUM_NAMED} more" if len(new) > NUM_NAMED else ""
            listed = ", ".join(new[:NUM_NAMED]) + more
            console.print(
                f"data: {len(new)} unreadable images, each replaced by another of its class: {listed}", highlight=False
            )
        self.num_reported = len(self.names)
