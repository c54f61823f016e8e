"""How good each row's predictions are: all rows see the same test images, and validation images for a temperature."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edc import metrics
from edc.benchmark.backends.contract import Floats
from edc.benchmark.judge.rows import RowQuality, quality_of
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool
from edc.data import DataSet, Images, evaluation_batches
from edc.data.data_set import take
from edc.metrics import ByClass, Labels, ReliabilityBin, reliability_bins
from edc.seeding import generator_for

__all__ = [
    "Predictions",
    "Qualities",
    "Reliability",
    "drawn",
    "float_batches",
    "predict_all",
    "score_all",
]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of every row, (N, K) logits or log-probabilities, on the same images."""

    test: Mapping[RowSpec, Floats | NotRun]
    validation: Mapping[RowSpec, Floats | NotRun]
    test_images: Images
    test_indices: NDArray[np.int64]
    """Of `test_images` in the whole test split."""
    test_labels: Labels
    validation_labels: Labels

    def digest(self) -> str:
        """Returns a digest of the numbers and labels of the test images."""
        return hashlib.sha256(self.test_indices.tobytes() + self.test_labels.tobytes()).hexdigest()


@dataclass(frozen=True)
class Reliability:
    """A row's reliability diagram as it is, and with the temperature refitted for it."""

    raw: tuple[ReliabilityBin, ...]
    calibrated: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, eq=False)
class Qualities:
    """By row that ran on both splits: its figures, its diagram, and its answer for each test image.

    Per image: whether it is right, its loss -log p(label), its class and that class's probability, all (N,). The last
    three are with the temperature refitted for this row.
    """

    quality: dict[RowSpec, RowQuality | NotRun]
    reliability: dict[RowSpec, Reliability]
    correct: dict[RowSpec, NDArray[np.bool_]]
    losses: dict[RowSpec, NDArray[np.float64]]
    answers: dict[RowSpec, NDArray[np.int64]]
    confidences: dict[RowSpec, NDArray[np.float64]]
    validation_acc: dict[RowSpec, float]
    """The accuracy that may choose a file; test images may not."""
    by_class: dict[RowSpec, ByClass]


def predict_all(
    pool: WorkerPool, specs: Sequence[RowSpec], data: DataSet, *, limit: int | None, seed: int
) -> Predictions:
    """Runs test and validation images through every row, `limit` of each at most."""
    test, test_indices = drawn(data.test, limit, seed=seed)
    validation, _ = drawn(data.validation, limit, seed=seed)
    return Predictions(
        test=pool.predict(specs, float_batches(test)),
        validation=pool.predict(specs, float_batches(validation)),
        test_images=test,
        test_indices=test_indices,
        test_labels=test.labels.numpy(),
        validation_labels=validation.labels.numpy(),
    )


def drawn(images: Images, limit: int | None, *, seed: int) -> tuple[Images, NDArray[np.int64]]:
    """Returns `limit` of the images and their indices, or all. Drawn, not the first: files may be sorted by class."""
    if limit is None or limit >= len(images):
        return images, np.arange(len(images))
    indices = torch.randperm(len(images), generator=generator_for(seed, "quick"))[:limit]
    return take(images, indices), indices.numpy()


def float_batches(images: Images, batch_size: int = 256) -> Iterator[Floats]:
    """Yields images as the networks take them, (n, C, H, W) in [0, 1]."""
    # To other processes, so that nothing here may open a GPU.
    for pixels, _ in evaluation_batches(images, batch_size=batch_size, device=torch.device("cpu")):
        yield (pixels.float() / 255).numpy()


def score_all(predictions: Predictions, specs: Sequence[RowSpec]) -> Qualities:
    """Returns the figures of every row; one that failed on either split has none."""
    found = Qualities({}, {}, {}, {}, {}, {}, {}, {})
    for spec in specs:
        test, validation = predictions.test[spec], predictions.validation[spec]
        if isinstance(test, NotRun) or isinstance(validation, NotRun):
            found.quality[spec] = test if isinstance(test, NotRun) else validation  # type: ignore[assignment]
            continue
        quality = quality_of(
            test,
            predictions.test_labels,
            validation_outputs=validation,
            validation_labels=predictions.validation_labels,
            ensemble_outputs=_ensemble_outputs(predictions, specs, spec),
        )
        raw = metrics.log_probs_from_logits(test)
        calibrated = metrics.log_probs_from_logits(raw / (quality.calibration_temperature or 1.0))
        found.quality[spec] = quality
        found.reliability[spec] = Reliability(
            *(reliability_bins(log_probs, predictions.test_labels) for log_probs in (raw, calibrated))
        )
        found.answers[spec] = test.argmax(1)
        found.correct[spec] = found.answers[spec] == predictions.test_labels
        found.losses[spec] = -calibrated[np.arange(len(calibrated)), predictions.test_labels]
        found.validation_acc[spec] = float(np.mean(validation.argmax(1) == predictions.validation_labels))
        found.confidences[spec] = np.exp(calibrated.max(1))
        found.by_class[spec] = metrics.by_class(found.answers[spec], predictions.test_labels, num_classes=test.shape[1])
    return found


def _ensemble_outputs(predictions: Predictions, specs: Sequence[RowSpec], spec: RowSpec) -> Floats | None:
    """Returns the outputs of the artifact's ensemble, on this row's backend and in fp32 if those ran; all forms agree.

    What the ensemble answers needs no backend: a row whose own backend cannot run it is compared with another's.
    """
    forms = [other for other in specs if other.is_own_ensemble]
    forms.sort(key=lambda form: (form.backend != spec.backend, form.precision != "fp32"))
    outputs = (predictions.test[form] for form in forms)
    return next((each for each in outputs if not isinstance(each, NotRun)), None)
