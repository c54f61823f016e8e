"""One network in every precision that is asked for, each file through its gate."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edc import metrics
from edc.console import console
from edc.deploy.artifact.manifest import NOT_FOR_OPENVINO, ParityFigures, Preprocessing
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.half import fp16_from_onnx
from edc.deploy.onnx.openvino import has_openvino, openvino_outputs
from edc.deploy.onnx.parity import (
    PairedAccuracy,
    Parity,
    batch_sizes_for,
    check_onnx_parity,
    compare_outputs,
    network_outputs,
    onnx_outputs,
)
from edc.deploy.onnx.precision import Precision, require_precision
from edc.deploy.onnx.quantize import Flavour, int8_within_budget
from edc.deploy.onnx.session import ort_session
from edc.deploy.onnx.uint8_input import take_uint8_pixels
from edc.errors import FailedError, first_line

__all__ = ["Judged", "Samples", "Written", "with_uint8_input", "write_precisions"]

Judged = Callable[[Path, Precision], AbstractContextManager[None]]
"""A block that writes one file: the file is kept only if it passes its gate."""
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Samples:
    """Real images in [0, 1] (N, C, H, W): validation for parity and budgets, training for ranges, test for metrics."""

    parity: Floats
    calibration: Floats
    validation: Floats
    validation_labels: Labels
    test: Floats
    test_labels: Labels


@dataclass(frozen=True)
class Written:
    """One ONNX file that passed."""

    path: Path
    precision: Precision
    parity: ParityFigures
    metrics: dict[str, float]
    notes: dict[str, str]


def write_precisions(
    reference: nn.Module,
    exported: nn.Module,
    stem: Path,
    *,
    precisions: tuple[Precision, ...],
    samples: Samples,
    class_names: tuple[str, ...],
    metadata: dict[str, Any],
    max_batch: int,
    max_drop: float,
    known_metrics: dict[str, float],
    computes_known: bool,
    judged: Judged,
) -> list[Written]:
    """Writes `stem`.onnx and `stem`.<precision>.onnx, each in a block of `judged`; returns those that passed.

    The others are made from the fp32 file: without it there are none. A file fails that is out of tolerance, or an int8
    file that loses more than `max_drop` on every rung.

    Args:
        reference: what the files must compute.
        exported: the same function with norms (and perhaps the temperature) folded: what is written.
        known_metrics: of the torch network on test images.
        computes_known: they stand for the fp32 file, which is equal to rounding; else it is measured, because it has a
            temperature that they are without.
    """
    source = stem.with_name(f"{stem.name}.onnx")
    written: list[Written] = []
    with judged(source, "fp32"):
        onnx_from_network(
            exported, source, input_shape=samples.parity.shape[1:], class_names=class_names, metadata=metadata
        )
        parity = check_onnx_parity(source, reference, samples.parity, max_batch=max_batch, precision="fp32")
        figures, note = known_metrics, {"metrics": "of the torch network on the test images"}
        if not computes_known:
            figures, note = known_metrics | _measured(source, samples), {"metrics": "of this file on test images"}
        written.append(Written(source, "fp32", _figures(parity), figures, note))
    for precision in precisions:
        path = stem.with_name(f"{stem.name}.{precision}.onnx")
        if precision == "fp32":
            continue
        with judged(path, precision):
            if not source.is_file():
                raise FailedError(f"{path}: is made from {source.name}, which is not written")
            if precision == "fp16":
                half = fp16_from_onnx(source, path, images=samples.calibration[:64])
                parity = check_onnx_parity(path, reference, samples.parity, max_batch=max_batch, precision="fp16")
                notes = {"kept_fp32": f"{len(half.kept_float)} nodes", "largest_value": f"{half.largest_value:.4g}"}
            else:
                parity, notes = _write_int8(reference, source, path, precision, samples, max_batch, max_drop)
            written.append(Written(path, precision, _figures(parity), _measured(path, samples), notes))
    return written


def with_uint8_input(
    written: list[Written],
    reference: nn.Module,
    samples: Samples,
    how: Preprocessing,
    *,
    max_batch: int,
    judged: Judged,
) -> list[Written]:
    """Rewrites the files to take pixels as `how` says, judges them again, and returns those that pass."""
    for each in written:
        with judged(each.path, each.precision):
            take_uint8_pixels(each.path)
            check_onnx_parity(
                each.path, reference, samples.parity, max_batch=max_batch, precision=each.precision, how=how
            )
    return [each for each in written if each.path.is_file()]


def _write_int8(
    reference: nn.Module,
    source: Path,
    path: Path,
    flavour: Flavour,
    samples: Samples,
    max_batch: int,
    max_drop: float,
) -> tuple[Parity, dict[str, str]]:
    def right(logits: Floats) -> NDArray[np.bool_]:
        result: NDArray[np.bool_] = logits.argmax(1) == samples.validation_labels
        return result

    def correct(file: Path) -> NDArray[np.bool_]:
        return right(onnx_outputs(ort_session(file), samples.validation, batch_size=64))

    refusals: list[str] = []

    def correct_on_openvino(file: Path) -> NDArray[np.bool_]:
        try:
            return right(openvino_outputs(file, samples.validation, batch_size=64))
        except (FailedError, ImportError) as error:  # ONNX Runtime's file is none the worse for it
            refusals.append(first_line(error))
            return np.zeros(len(samples.validation_labels), np.bool_)

    quantized = int8_within_budget(
        source,
        path,
        flavour=flavour,
        images=samples.calibration,
        reference_correct=correct(source),
        accuracy_of=correct,
        max_drop=max_drop,
        elsewhere_of=correct_on_openvino if flavour == "int8-cpu" and has_openvino() else None,
    )
    require_precision(path, flavour)
    notes = {
        "rung": quantized.rung,
        "kept_fp32": f"{len(quantized.kept_float)} layers",
        "validation": _in_words(quantized.accuracy),
    }
    if 1 / (num_images := len(samples.validation_labels)) > max_drop:
        console.print(
            f"warning: {path.name} was judged on {num_images} validation images, of which one is "
            f"{100 / num_images:.2g} points and --max-drop {100 * max_drop:g}: it may lose more than that on others",
            highlight=False,
            markup=False,
        )
    if (elsewhere := quantized.elsewhere) is not None:
        notes["validation on OpenVINO"] = _in_words(elsewhere)
        if not elsewhere.within(max_drop):
            loss = f"it loses {100 * elsewhere.drop:.2f} points there, more than the {100 * max_drop:g} allowed"
            reason = refusals[-1] if refusals else loss
            notes[NOT_FOR_OPENVINO] = reason
            console.print(f"warning: {path.name} is not for OpenVINO: {reason}", highlight=False, markup=False)
    # For the record, not a gate: int8 is judged by the answers it gets right.
    wanted = network_outputs(reference, samples.parity, batch_size=max_batch)
    session = ort_session(path)
    sizes = batch_sizes_for(max_batch)
    for size in sizes[:-1]:
        onnx_outputs(session, samples.parity[: 2 * size], batch_size=size)
    got = onnx_outputs(session, samples.parity, batch_size=max_batch)
    return compare_outputs(wanted, got, batch_sizes=sizes), notes


def _in_words(accuracy: PairedAccuracy) -> str:
    return (
        f"drop {100 * accuracy.drop:.2f} points on {accuracy.num_images} images "
        f"(lost {accuracy.num_lost}, gained {accuracy.num_gained}, McNemar p {accuracy.p_value:.3g})"
    )


def _measured(path: Path, samples: Samples) -> dict[str, float]:
    """Returns the file's own quality on test images, raw and with a temperature refitted for it."""
    session = ort_session(path)
    test, validation = (
        metrics.log_probs_from_logits(onnx_outputs(session, images, batch_size=64))
        for images in (samples.test, samples.validation)
    )
    result = metrics.evaluate(
        test,
        samples.test_labels,
        validation_log_probs=validation,
        validation_labels=samples.validation_labels,
    )
    calibrated = {f"calibrated_{name}": value for name, value in asdict(result.calibrated).items()}
    return {**asdict(result.raw), **calibrated, "refitted_temperature": result.calibration_temperature}


def _figures(parity: Parity) -> ParityFigures:
    return ParityFigures(**asdict(parity))
