"""What a student minimises. Callers widen bf16 logits to float32 first."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "NO_LABEL",
    "cross_entropy_between",
    "kd_loss",
    "kd_losses",
    "label_loss",
    "latent_be_loss",
    "latent_be_losses",
    "student_loss",
    "wide",
]

NO_LABEL = -1
"""The label of an image that has none."""


def cross_entropy_between(target_probs: Tensor, logits: Tensor) -> Tensor:
    """Returns H(target, softmax(logits)) in nats, shape (...) for inputs (..., K)."""
    return -(target_probs * F.log_softmax(logits, dim=-1)).sum(-1)


def latent_be_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns T^2 times the mean over members and images of H(teacher m, member m), both tempered: one to one.

    Shapes: both logits (M, N, K); the result is a scalar.
    """
    return latent_be_losses(student_logits, teacher_logits, temperature=temperature).mean()


def latent_be_losses(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns what `latent_be_loss` is the mean of, (M, N)."""
    targets = F.softmax(teacher_logits / temperature, dim=-1)
    return cross_entropy_between(targets, student_logits / temperature) * temperature**2


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns T^2 times the mean over images of H(mean of the teachers' tempered probabilities, student).

    Shapes: student (1, N, K), teachers (M, N, K); the result is a scalar.
    """
    return kd_losses(student_logits, teacher_logits, temperature=temperature).mean()


def kd_losses(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns what `kd_loss` is the mean of, (1, N)."""
    targets = F.softmax(teacher_logits / temperature, dim=-1).mean(0, keepdim=True)
    return cross_entropy_between(targets, student_logits / temperature) * temperature**2


def student_loss(distillation: Tensor | None, student_logits: Tensor, labels: Tensor, *, alpha: float) -> Tensor:
    """Returns the mean over members and images of (1 - alpha) * H(label, member) + alpha * distillation.

    An image without a label (`NO_LABEL`) has the alpha 1, and counts as much as the others.

    Shapes: logits (M, N, K), labels (N,), or (N, K) if views have mixed them into probabilities; distillation (M, N),
    or None where alpha is 0 and every image has a label. The result is a scalar.
    """
    if distillation is None:
        return _by_label(student_logits, labels).mean()
    if alpha == 1:
        return distillation.mean()
    by_label = _by_label(student_logits, labels)
    if labels.ndim == 1:
        by_label = torch.where(labels == NO_LABEL, distillation, by_label)
    return ((1 - alpha) * by_label + alpha * distillation).mean()


def _by_label(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns H(label, member) (M, N); 0 for an image without a label."""
    if labels.ndim == 2:
        return cross_entropy_between(labels, student_logits)
    labels = labels.expand(student_logits.shape[:2])
    return F.cross_entropy(student_logits.movedim(-1, 1), labels, ignore_index=NO_LABEL, reduction="none")


def label_loss(student_logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Returns the mean over members and images of the cross-entropy with the labels, times the weight of the label.

    It is divided by the number of images, not by their weights: parts of a batch add up to the batch.

    Shapes: (M, N, K), (N,), weights (K,); the result is a scalar.
    """
    logits, labels = student_logits.flatten(0, 1), labels.repeat(student_logits.shape[0])
    if class_weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, class_weights.to(logits), reduction="none").mean()


def wide(x: Tensor) -> Tensor:
    """Returns `x` in float32, or as it is if it is wider."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
