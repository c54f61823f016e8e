"""Which images a row is right on, as text: small enough for bench.json, and what makes two benches pairable."""

import base64

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]


def packed(correct: NDArray[np.bool_]) -> str:
    """Returns a row of yes and no (N,) as text, eight to a byte in base64, for bench.json."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def unpacked(text: str, *, num_images: int) -> NDArray[np.bool_]:
    """Returns what `packed` was given; raises `ValueError` if the text does not hold `num_images` of them."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text, validate=True), np.uint8))
    if (len(bits) + 7) // 8 != (num_images + 7) // 8:
        raise ValueError(f"holds {len(bits)} answers, where {num_images} images were tested")
    return bits[:num_images].astype(bool)
