"""Test images on which the student and its ensemble answer differently, for people to look at."""

import base64
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edc.benchmark.measure.quality import Predictions, Qualities
from edc.benchmark.workers.pool import RowSpec
from edc.data import Images
from edc.seeding import derive_seed

__all__ = ["Answer", "DisagreementImage", "Disagreements", "disagreements", "png_base64"]

NUM_SHOWN = 16


@dataclass(frozen=True)
class Answer:
    """The most probable class and its probability, with the temperature refitted for that row."""

    class_index: int
    probability: float


@dataclass(frozen=True)
class DisagreementImage:
    """`index` is the image's place in the test split."""

    index: int
    png_base64: str
    label: int
    student: Answer
    ensemble: Answer


@dataclass(frozen=True)
class Disagreements:
    """On how many of the images two rows choose different classes, and up to sixteen of them."""

    student: str
    ensemble: str
    num_images: int
    num_disagree: int
    images: tuple[DisagreementImage, ...]


def disagreements(
    predictions: Predictions, qualities: Qualities, *, student: RowSpec, ensemble: RowSpec, seed: int
) -> Disagreements:
    """Returns the images on which two rows that ran differ; those to be shown are drawn, by the seed, over classes."""
    differ = np.flatnonzero(qualities.answers[student] != qualities.answers[ensemble])
    rng = np.random.default_rng(derive_seed(seed, "disagreements"))
    shown = np.sort(drawn_over(predictions.test_labels, rng.permutation(differ), NUM_SHOWN))
    return Disagreements(
        student=student.key,
        ensemble=ensemble.key,
        num_images=len(qualities.answers[student]),
        num_disagree=len(differ),
        images=tuple(
            DisagreementImage(
                index=int(predictions.test_indices[row]),
                png_base64=png_base64(predictions.test_images, row),
                label=int(predictions.test_labels[row]),
                student=_answer(qualities, student, row),
                ensemble=_answer(qualities, ensemble, row),
            )
            for row in shown.tolist()
        ),
    )


def drawn_over(labels: NDArray[np.int64], shuffled: NDArray[np.int64], number: int) -> NDArray[np.int64]:
    """Returns `number` of the shuffled indices: the first of each class, then the second of each, and so on."""
    seen: Counter[int] = Counter()
    turns = []
    for index in shuffled.tolist():
        seen[int(labels[index])] += 1
        turns.append(seen[int(labels[index])])
    return shuffled[np.argsort(turns, kind="stable")[:number]]


def png_base64(images: Images, index: int) -> str:
    """Returns one image, as the networks see it, as a PNG in base64."""
    pixels = images[index][0].permute(1, 2, 0).contiguous().numpy()  # uint8 (H, W, C)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


def _answer(qualities: Qualities, spec: RowSpec, row: int) -> Answer:
    return Answer(int(qualities.answers[spec][row]), float(qualities.confidences[spec][row]))
