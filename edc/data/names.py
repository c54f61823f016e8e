"""Names of images by the million, in memory that forked workers share."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Names"]


class Names:
    """Strings by number, kept as their joined bytes and the start and end of each.

    A tuple of strings is several times larger, and each worker process would end up with its own copy: a look at a
    Python object counts a reference in it, which copies its page. Here workers only read.

    Shapes: `starts` and `ends` are (N,) int64, places in `text`.
    """

    def __init__(self, text: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.text, self.starts, self.ends = text, starts, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Returns the names in their order; an iterator is not kept as a whole."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode("utf-8", "surrogateescape")  # file names are bytes, whatever they mean
            ends.append(len(text))
        places = np.array(ends, np.int64)
        return cls(bytes(text), places[:-1], places[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> str:
        return self.text[self.starts[index] : self.ends[index]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, rows: NDArray[np.int64]) -> "Names":
        """Returns the names at `rows`, in that order; the text is shared."""
        return Names(self.text, self.starts[rows], self.ends[rows])

    def encoded(self) -> Iterator[bytes]:
        """Yields each name followed by a zero byte, which no name contains."""
        return (self.text[start:end] + b"\0" for start, end in zip(self.starts, self.ends, strict=True))
