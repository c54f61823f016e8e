"""Predictions of trained networks on a split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import nn

from edc import metrics
from edc.data import DataSet, Images, evaluation_batches, train_batches
from edc.method.batch_ensemble import member_logits
from edc.recipe import BestBy, DataSection, TrainingSection
from edc.train.distributed import by_main, raised_together
from edc.train.placement import autocast, float32_as, to_device

__all__ = [
    "Validated",
    "evaluate_accuracy",
    "gathered",
    "labels_of",
    "norms_of",
    "predict_logits",
    "reestimate_batchnorm",
    "validated",
]


@dataclass(frozen=True)
class Validated:
    """Figures of a network on the validation images, after an epoch."""

    acc: float
    calibrated_nll: float | None = None
    """With the temperature that is best on these images; None where accuracy is the measure."""

    @property
    def score(self) -> float:
        """What the best epoch is chosen by; lower is better. NaN, of answers that are not finite, is the worst."""
        if self.calibrated_nll is not None:
            return metrics.selection_score(self.acc, self.calibrated_nll)
        return -self.acc if math.isfinite(self.acc) else math.inf

    def figures(self, prefix: str = "") -> dict[str, float]:
        """Returns the fields of an epoch's record."""
        found = {"validation_acc": self.acc, "validation_calibrated_nll": self.calibrated_nll}
        return {prefix + name: value for name, value in found.items() if value is not None}


def validated(
    network: nn.Module,
    images: Images,
    data: DataSection,
    training: TrainingSection,
    accelerator: Accelerator,
    *,
    by: BestBy,
) -> Validated:
    """Returns figures of `network` on labelled images, one and the same on all processes.

    In bf16 if the training is, because each epoch waits for it; never in TF32.
    """
    if by == "accuracy":  # answers alone need neither to be gathered nor calibrated
        return Validated(evaluate_accuracy(network, images, data, training, accelerator))
    with autocast(accelerator.device, training):
        logits = predict_logits(network, images, data, training, accelerator)[0]
    labels = labels_of(images)

    def measured() -> Validated:
        log_probs = metrics.log_probs_from_logits(logits)
        calibrated = metrics.calibrated_log_probs(log_probs[None], metrics.fit_temperature(log_probs, labels))
        return Validated(metrics.accuracy(log_probs, labels), metrics.nll(calibrated, labels))

    return by_main(measured, accelerator)


def evaluate_accuracy(
    network: nn.Module, images: Images, data: DataSection, training: TrainingSection, accelerator: Accelerator
) -> float:
    """Returns the accuracy of `network` in eval mode over all processes; every image is counted once.

    In bf16 if the training is, because each epoch waits for it; never in TF32.
    """
    network = network.to(accelerator.device).eval()
    counts = torch.zeros(2, dtype=torch.int64, device=accelerator.device)
    batches = evaluation_batches(
        images,
        batch_size=max(training.batch_size // accelerator.num_processes, 1) * 2,
        num_workers=data.num_workers,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
        device=accelerator.device,
    )
    precision = autocast(accelerator.device, training)
    with raised_together(accelerator), torch.inference_mode(), precision, float32_as("ieee"):
        for pixels, labels in batches:
            predicted = network(to_device(pixels, accelerator.device, training)).argmax(-1)
            counts[0] += (predicted == labels.to(accelerator.device)).sum()
            counts[1] += len(labels)
    correct, total = accelerator.reduce(counts, "sum").tolist()
    return float(correct / total)


def predict_logits(
    network: nn.Module, images: Images, data: DataSection, training: TrainingSection, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Returns logits (M, N, K) of every image in order, in float32 (never bf16, as in the exported network).

    M is the number of members of a converted network, 1 otherwise. Every process gets the whole result.
    """
    network = network.to(accelerator.device).eval()
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    batches = evaluation_batches(
        images,
        batch_size=256,
        num_workers=data.num_workers,
        rank=rank,
        num_processes=num_processes,
        device=accelerator.device,
    )
    with raised_together(accelerator), torch.inference_mode(), float32_as("ieee"):
        mine = [
            member_logits(network, to_device(pixels, accelerator.device, training)).float().cpu().numpy()
            for pixels, _ in batches
        ]
    return gathered(mine, len(images), accelerator)


def gathered(
    mine: Sequence[NDArray[np.floating[Any]]], num_images: int, accelerator: Accelerator
) -> NDArray[np.float32]:
    """Returns logits (M, num_images, K) in order, on every process.

    Args:
        mine: those of this process (M, n, K), one part after another, of rows rank, rank + P, ...
    """
    num_processes = accelerator.num_processes
    shares = [np.concatenate(mine, axis=1)] if mine else []
    if num_processes > 1:
        shares = gather_object(shares)
    result = np.empty((shares[0].shape[0], num_images, shares[0].shape[2]), np.float32)
    for first, share in enumerate(shares):  # process r had rows r, r + P, ...
        result[:, first::num_processes] = share
    return result


def labels_of(images: Images) -> NDArray[np.int64]:
    """Returns the labels (N,)."""
    labels: NDArray[np.int64] = images.labels.numpy()
    return labels


def norms_of(network: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Returns the BatchNorm layers of `network` by name."""
    norm = nn.modules.batchnorm._BatchNorm
    return {name: module for name, module in network.named_modules() if isinstance(module, norm)}


def reestimate_batchnorm(
    network: nn.Module,
    data: DataSet,
    *,
    data_section: DataSection,
    training: TrainingSection,
    seed: int,
    accelerator: Accelerator,
    num_images: int = 10_000,
) -> nn.Module:
    """Sets the running statistics of `network` to the mean over batches of clean, augmented training images.

    A batch here has at most 256 images, because all of it goes through the network at once, and at most all of them:
    a batch of the training may have had more, with extra images in it.
    """
    batch_size = min(training.batch_size, 256, len(data.train))
    norms = list(norms_of(network).values())
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    network.to(accelerator.device).eval()
    for norm in norms:
        norm.train()
    batches = train_batches(
        data.train, data_section, batch_size=batch_size, seed=seed, epoch=-1, device=accelerator.device
    )
    with torch.inference_mode(), float32_as("ieee"):
        for number, (pixels, _) in enumerate(batches):
            if number * batch_size >= num_images:
                break
            network(to_device(pixels, accelerator.device, training))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
