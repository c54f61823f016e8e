"""Photos of house numbers, as an owner keeps them: scikit-learn's handwritten digits in colour, in folders by class.

Leaves photos/{train,val,test}/<class>/*.png, and in unlabelled/ images without labels, which nobody sorted. The
digits are of 8 x 8 grey levels; each is enlarged, tilted and painted on a background, by a seed of its own.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["CLASSES", "write_photos"]

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLITS = ("train", "val", "test")


def write_photos(photos: Path, unlabelled: Path, *, sizes: dict[str, int], side: int) -> None:
    """Writes as many images as `sizes` says of each split and of "unlabelled"; the folders appear whole.

    Args:
        side: the sides of an image are this many pixels, or up to half as many more.
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.images))
    ends = dict(zip(sizes, np.cumsum([*sizes.values()]).tolist(), strict=True))
    for folder, splits in ((photos, SPLITS), (unlabelled, ("unlabelled",))):
        if folder.exists():
            print(f"{folder.name} is there")
            continue
        draft = folder.with_name(f"{folder.name}.unfinished")
        for split in splits:
            for number in order[ends[split] - sizes[split] : ends[split]].tolist():
                where = draft / split / CLASSES[digits.target[number]] if folder == photos else draft
                where.mkdir(parents=True, exist_ok=True)
                photo_of(digits.images[number] / 16, number, side).save(where / f"{number:04}.png")
        draft.rename(folder)


def photo_of(digit: np.ndarray, seed: int, side: int) -> Image.Image:
    """Returns the digit (8, 8) in [0, 1] as a colour photo."""
    draw = np.random.default_rng([1, seed])
    width, height = (int(n) for n in draw.integers(side, side * 3 // 2, 2))
    scale = int(min(width, height) * draw.uniform(0.7, 0.95))
    ink = Image.fromarray((digit * 255).astype(np.uint8)).resize((scale, scale), Image.Resampling.BICUBIC)
    ink = ink.rotate(draw.uniform(-15, 15), Image.Resampling.BILINEAR)
    mask = Image.new("L", (width, height))
    mask.paste(ink, ((width - scale) // 2, (height - scale) // 2))
    paint, wall = draw.uniform(0, 110, 3), draw.uniform(120, 255, 3)
    pixels = wall + (paint - wall) * (np.asarray(mask)[..., None] / 255) + draw.normal(0, 15, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
