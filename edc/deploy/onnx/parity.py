"""The gate: a file is exported only if it computes what the network computes, on real images.

Figures are relative to the logit scale, the largest |reference logit|. Measured on nine torchvision and timm networks,
float32 torch against ONNX Runtime on the CPU differ by 4e-7 to 1.2e-6 of it: rounding. On a small CNN on digits, a
standard deviation of 0.371 for 0.370 differs by 2.6e-3, bfloat16 by 4e-3, and the sign of one median weight of any
layer by 1e-2 or more. The fp32 bound stands between, at 5e-5.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import nn

from edc.deploy.artifact.feed import Fed, as_fed
from edc.deploy.artifact.manifest import Preprocessing
from edc.deploy.onnx.precision import Precision, require_precision
from edc.deploy.onnx.session import ort_errors, ort_session
from edc.errors import FailedError, ParityError, first_line

__all__ = [
    "PairedAccuracy",
    "Parity",
    "batch_sizes_for",
    "check_onnx_parity",
    "check_parity",
    "compare_outputs",
    "network_outputs",
    "onnx_outputs",
    "paired_accuracy_drop",
]

FP32_TOLERANCE = 5e-5  # of the logit scale
FP16_COSINE = 0.999  # of each image's centred logits
FP16_AGREEMENT = 0.99
# A difference of this share of the logit scale between the two best classes is a tie at that precision.
_TIE = {"fp32": FP32_TOLERANCE, "fp16": 2e-3, "int8-cpu": 0.0, "int8-trt": 0.0}

Floats = NDArray[np.float32]
Batch = TypeVar("Batch", bound=NDArray[Any])


@dataclass(frozen=True)
class Parity:
    """How far a candidate's logits are from the reference's, over all images and batch sizes."""

    max_abs_diff: float
    mean_abs_diff: float
    logit_scale: float  # largest |reference logit|
    cosine_min: float  # least cosine between an image's logits, each centred on its mean over classes
    argmax_agreement: float  # share of images with the same best class, ties aside
    num_images: int
    batch_sizes: tuple[int, ...]

    @property
    def relative_diff(self) -> float:
        """The largest difference as a share of the logit scale."""
        return self.max_abs_diff / max(self.logit_scale, 1e-12)


@dataclass(frozen=True)
class PairedAccuracy:
    """Two classifiers on the same images: `drop` in accuracy, and McNemar's exact two-sided p that there is none."""

    reference_accuracy: float
    candidate_accuracy: float
    drop: float
    num_lost: int  # right in the reference, wrong in the candidate
    num_gained: int
    p_value: float
    num_images: int

    def within(self, max_drop: float) -> bool:
        """Returns whether no more is lost than `max_drop`, a share of 1: 7 images of 1,000 are within 0.7 points."""
        return self.num_lost - self.num_gained <= max_drop * self.num_images + 1e-6  # 0.7 / 100 is below 7 / 1000


def compare_outputs(
    reference: Floats, candidate: Floats, *, tie: float = 0.0, batch_sizes: Sequence[int] = ()
) -> Parity:
    """Returns the distance between two arrays of logits.

    Args:
        tie: an image whose best class differs still agrees when the reference's logit of the candidate's choice is
            within this share of the logit scale of the reference's best.

    Shapes:
        reference, candidate (N, K)

    Raises:
        ParityError: the shapes differ, or the candidate is not finite.
    """
    if reference.shape != candidate.shape or reference.ndim != 2 or not len(reference):
        raise ParityError(f"outputs: the candidate has shape {candidate.shape}, the reference {reference.shape}")
    if not np.isfinite(candidate).all():
        raise ParityError(f"outputs: {int((~np.isfinite(candidate)).sum())} values of the candidate are not finite")
    wanted, got = reference.astype(np.float64), candidate.astype(np.float64)
    scale = float(np.abs(wanted).max())
    rows = np.arange(len(wanted))
    lost = wanted.max(axis=1) - wanted[rows, got.argmax(axis=1)]
    difference = np.abs(wanted - got)
    return Parity(
        max_abs_diff=float(difference.max()),
        mean_abs_diff=float(difference.mean()),
        logit_scale=scale,
        cosine_min=float(_centred_cosine(wanted, got).min()),
        argmax_agreement=float((lost <= tie * scale).mean()),
        num_images=len(wanted),
        batch_sizes=tuple(batch_sizes),
    )


def check_parity(parity: Parity, *, precision: Precision, what: str) -> None:
    """Raises ParityError with the figures unless `parity` is good enough for `precision`.

    int8 is judged by `paired_accuracy_drop` and passes here.
    """
    figures = (
        f"largest difference {parity.max_abs_diff:.3g} at logit scale {parity.logit_scale:.3g} "
        f"({parity.relative_diff:.2g} of it), least cosine {parity.cosine_min:.6f}, "
        f"same class on {parity.argmax_agreement:.2%} of {parity.num_images} images"
    )
    if precision == "fp32" and (parity.relative_diff > FP32_TOLERANCE or parity.argmax_agreement < 1.0):
        raise ParityError(f"{what}: {figures}; fp32 allows {FP32_TOLERANCE:g} of the scale and no other class")
    if precision == "fp16" and (parity.cosine_min < FP16_COSINE or parity.argmax_agreement < FP16_AGREEMENT):
        raise ParityError(f"{what}: {figures}; fp16 needs cosine {FP16_COSINE} and {FP16_AGREEMENT:.0%} agreement")


def check_onnx_parity(
    path: Path,
    network: nn.Module,
    images: Floats,
    *,
    max_batch: int,
    precision: Precision,
    how: Preprocessing | None = None,
) -> Parity:
    """Returns the parity of the ONNX file at `path` with `network` in float32 torch, both on this machine's CPU.

    The file is run at batch 1, an odd size and `max_batch` (images are repeated where there are too few), because a
    graph can be right at the batch it was traced with and wrong at others.

    Args:
        how: the input that the file takes; None: images as they are.

    Shapes:
        images (N, C, H, W), real ones, in [0, 1]

    Raises:
        ParityError: the graph is not of `precision`, or its figures are out of tolerance.
        FailedError: ONNX Runtime cannot load or run it.
    """
    require_precision(path, precision)
    num_images = len(images)
    if num_images < max_batch:
        images = np.resize(images, (max_batch, *images.shape[1:]))
    reference = network_outputs(network, images, batch_size=max_batch)
    session, fed = ort_session(path), as_fed(images, how)
    wanted, got, sizes = [], [], batch_sizes_for(max_batch)
    for size in sizes:
        # Every image at the largest batch; a few full batches of the small ones, which would only repeat it slowly.
        few = len(images) if size == max_batch else min(len(images), 8 * size)
        wanted.append(reference[:few])
        got.append(onnx_outputs(session, fed[:few], batch_size=size))
    parity = compare_outputs(np.concatenate(wanted), np.concatenate(got), tie=_TIE[precision], batch_sizes=sizes)
    parity = replace(parity, num_images=num_images)  # some were compared at several batch sizes
    check_parity(parity, precision=precision, what=str(path))
    return parity


def batch_sizes_for(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes to check a file at: 1, an odd one, and the largest."""
    odd = min(7, max_batch - 1 + max_batch % 2)
    return tuple(sorted({1, odd, max_batch}))


def network_outputs(network: nn.Module, images: Floats, *, batch_size: int) -> Floats:
    """Returns the logits (N, K) of a float32 copy of `network` on the CPU, where no TF32 or autocast interferes."""
    plain = copy.deepcopy(network).eval().cpu().float()
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        outputs = [plain(torch.from_numpy(batch)).numpy() for batch in _batches(images, batch_size)]
    return np.concatenate(outputs)


def onnx_outputs(session: Any, images: Fed, *, batch_size: int) -> Floats:
    """Returns the first output (N, K) of an ONNX Runtime session with one image input, of images as it takes them."""
    name = session.get_inputs()[0].name
    try:
        return np.concatenate([session.run(None, {name: batch})[0] for batch in _batches(images, batch_size)])
    except ort_errors() as error:
        raise FailedError(f"ONNX Runtime cannot run batch {batch_size}: {first_line(error)}") from error


def paired_accuracy_drop(reference_correct: NDArray[np.bool_], candidate_correct: NDArray[np.bool_]) -> PairedAccuracy:
    """Returns the drop in accuracy from reference to candidate and McNemar's exact p.

    Of the images that exactly one of the two gets right, each is as likely to be the reference's as the candidate's if
    they are equally good: a binomial test at 1/2.

    Shapes:
        reference_correct, candidate_correct (N,)
    """
    if reference_correct.shape != candidate_correct.shape or not len(reference_correct):
        raise ValueError(f"paired masks of shapes {reference_correct.shape} and {candidate_correct.shape}")
    num_lost = int((reference_correct & ~candidate_correct).sum())
    num_gained = int((~reference_correct & candidate_correct).sum())
    num_differ = num_lost + num_gained
    return PairedAccuracy(
        reference_accuracy=float(reference_correct.mean()),
        candidate_accuracy=float(candidate_correct.mean()),
        drop=(num_lost - num_gained) / len(reference_correct),
        num_lost=num_lost,
        num_gained=num_gained,
        p_value=float(binomtest(num_lost, num_differ, 0.5).pvalue) if num_differ else 1.0,
        num_images=len(reference_correct),
    )


def _batches(images: Batch, batch_size: int) -> Iterator[Batch]:
    for start in range(0, len(images), batch_size):
        yield np.ascontiguousarray(images[start : start + batch_size])  # type: ignore[misc]


def _centred_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each row's cosine, centred: softmax does not see a constant added to all classes."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.maximum(norms, 1e-30))
