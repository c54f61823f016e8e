"""Quality on corrupted images, with the temperature that was fitted on clean ones.

People pay for ensembles because of their calibration, and that is lost first when images change. The calibration
temperature is never refitted here, because nobody has labels for the images that a deployed network will see.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from edc import metrics
from edc.benchmark.backends import BACKENDS, BackendName
from edc.benchmark.backends.contract import Floats
from edc.benchmark.judge.statistics import compare_accuracy
from edc.benchmark.measure.corruptions import SEVERITIES, CorruptionKind, corrupt, kinds_for
from edc.benchmark.measure.quality import float_batches
from edc.benchmark.workers.pool import NotRun, RowSpec, WorkerPool
from edc.data import Images
from edc.data.data_set import take
from edc.seeding import generator_for
from edc.subject import Subject

__all__ = ["levels_for", "robustness", "robustness_of", "robustness_specs", "robustness_subset"]

Level = tuple[CorruptionKind | Literal["none"], int]
PREFERENCE: tuple[BackendName, ...] = ("onnxruntime", "openvino", "torch")
MAX_IMAGES, MAX_IMAGES_QUICK = 2_000, 500
MAX_PIXELS = 1 << 24
"""Of all images together, one channel: everything runs 21 times or more, so 334 images of 224 x 224 must do."""
LEAST_IMAGES = 100
BATCH_SIZE = 256


def levels_for(image_shape: tuple[int, ...]) -> tuple[Level, ...]:
    """Returns every kind that such images get, at every severity, after the same images as they are."""
    return (("none", 0), *((kind, severity) for kind in kinds_for(image_shape) for severity in SEVERITIES))


def robustness_specs(specs: Sequence[RowSpec]) -> list[RowSpec]:
    """Returns one row per subject in fp32, and one per student's 8-bit file, which may be shipped too.

    All backends compute the same, so one of them is enough: the first of onnxruntime, openvino, torch and the
    rest that has the subject; of an ensemble's forms, the merged one.
    """
    chosen: dict[tuple[str | None, Subject, str], RowSpec] = {}
    for backend in (*PREFERENCE, *BACKENDS):
        here = [spec for spec in specs if spec.backend == backend]
        for spec in sorted(here, key=lambda spec: spec.subject.ensemble_form != "merged"):
            if spec.precision == "fp32" or (spec.precision == "int8" and spec.subject.is_student):
                chosen.setdefault((spec.artifact, spec.subject.network, spec.precision), spec)
    return [spec for spec in specs if spec in chosen.values()]


def robustness_subset(images: Images, *, quick: bool, seed: int) -> Images:
    """Returns the images that are corrupted: drawn, not the first, and in the order of the split."""
    side = images[0][0].shape[-1]
    limit = min(MAX_IMAGES_QUICK if quick else MAX_IMAGES, max(LEAST_IMAGES, MAX_PIXELS // side**2))
    if len(images) <= limit:
        return images
    drawn = torch.randperm(len(images), generator=generator_for(seed, "robustness"))[:limit]
    return take(images, drawn.sort().values)


def robustness(
    pool: WorkerPool,
    specs: Sequence[RowSpec],
    images: Images,
    *,
    temperatures: Mapping[RowSpec, float | None],
    quick: bool,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Returns, by `RowSpec.key`, a record for each corruption and severity; "none" at 0 comes first.

    A row that stops running keeps the records it has; one that never ran is not there.

    Args:
        specs: rows loaded into the pool; `robustness_specs` chooses them.
        images: the test split; what is used of it is `robustness_subset`.
        temperatures: each row's calibration temperature, fitted on clean validation images; None leaves calibrated
            figures None.
    """
    subset = robustness_subset(images, quick=quick, seed=seed)
    batches = list(float_batches(subset, BATCH_SIZE))
    labels = subset.labels.numpy()
    records: dict[str, list[dict[str, Any]]] = {}
    for kind, severity in levels_for(tuple(subset[0][0].shape)):
        corrupted = (
            batch if kind == "none" else corrupt(batch, kind, severity, seed=seed, first_index=number * BATCH_SIZE)
            for number, batch in enumerate(batches)
        )
        ran = {spec: each for spec, each in pool.predict(specs, corrupted).items() if not isinstance(each, NotRun)}
        of_ensemble = next((ran[spec] for spec in ran if spec.is_own_ensemble), None)
        for spec, outputs in ran.items():
            record = robustness_of(
                outputs,
                labels,
                kind=kind,
                severity=severity,
                calibration_temperature=temperatures.get(spec),
                ensemble_outputs=None if outputs is of_ensemble else of_ensemble,
                seed=seed,
            )
            records.setdefault(spec.key, []).append(record)
    return records


def robustness_of(
    outputs: Floats,
    labels: NDArray[np.int64],
    *,
    kind: CorruptionKind | Literal["none"],
    severity: int,
    calibration_temperature: float | None,
    ensemble_outputs: Floats | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the record of one corruption: quality raw, and divided by a temperature that is given, never fitted.

    With the ensemble's outputs on the same images: on how many both answer alike, and the paired difference in accuracy
    (row - ensemble) with its 95 % interval.

    Shapes:
        outputs, ensemble_outputs (N, K), logits or log-probabilities; labels (N,)
    """
    agreement = difference = None
    if ensemble_outputs is not None:
        answers, of_ensemble = outputs.argmax(1), ensemble_outputs.argmax(1)
        agreement = float(np.mean(answers == of_ensemble))
        difference = dataclasses.asdict(
            compare_accuracy(of_ensemble == labels, answers == labels, seed=seed).difference
        )
    log_probs = metrics.log_probs_from_logits(outputs.astype(np.float64))
    raw = metrics.quality(log_probs, labels)
    calibrated = None
    if calibration_temperature is not None:
        scaled = metrics.log_probs_from_logits(log_probs / calibration_temperature)
        calibrated = metrics.quality(scaled, labels)
    return {
        "corruption": kind,
        "severity": severity,
        "num_images": len(labels),
        "agreement": agreement,
        "acc_difference": difference,
        "acc": raw.acc,
        "nll": raw.nll,
        "ece": raw.ece,
        "brier": raw.brier,
        "calibrated_nll": calibrated and calibrated.nll,
        "calibrated_ece": calibrated and calibrated.ece,
        "calibrated_brier": calibrated and calibrated.brier,
    }
