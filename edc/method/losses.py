"""What a student minimises. Callers widen bf16 logits to float32 first."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cross_entropy_between", "kd_loss", "label_loss", "latent_be_loss", "wide"]


def cross_entropy_between(target_probs: Tensor, logits: Tensor) -> Tensor:
    """Returns H(target, softmax(logits)) in nats, shape (...) for inputs (..., K)."""
    return -(target_probs * F.log_softmax(logits, dim=-1)).sum(-1)


def latent_be_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns T^2 times the mean over members and images of H(teacher m, member m), both tempered: one to one.

    Shapes: both logits (M, N, K); the result is a scalar.
    """
    targets = F.softmax(teacher_logits / temperature, dim=-1)
    return cross_entropy_between(targets, student_logits / temperature).mean() * temperature**2


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Returns T^2 times the mean over images of H(mean of the teachers' tempered probabilities, student).

    Shapes: student (1, N, K), teachers (M, N, K); the result is a scalar.
    """
    targets = F.softmax(teacher_logits / temperature, dim=-1).mean(0, keepdim=True)
    return cross_entropy_between(targets, student_logits / temperature).mean() * temperature**2


def label_loss(student_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy of every member with the labels: class numbers, or probabilities of classes.

    Shapes: logits (M, N, K); labels (N,), or (N, K) where views have mixed them.
    """
    return F.cross_entropy(student_logits.flatten(0, 1), torch.cat([labels] * student_logits.shape[0]))


def wide(x: Tensor) -> Tensor:
    """Returns `x` in float32, or as it is if it is wider."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
