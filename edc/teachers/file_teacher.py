"""A frozen network as a teacher: its image size, normalisation, precision and class order around it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.recipe import CheckpointSection
from edc.teachers.reading import OwnTeacher, Reading

__all__ = ["FileTeacher", "fit_precision", "in_order_of_data", "look_for_half_probabilities"]

HALF_OF_THE_SMALLEST_HALF = 2.0**-25
"""What a probability that half precision rounded to zero was at most."""


class FileTeacher(nn.Module):
    """A frozen network with its own image size and normalisation, never in train mode.

    Images are resized bilinearly with antialiasing, inside the network, so that gradients reach the images as they are.
    Its answers are brought into the order of the data's classes: class k of the data is its column `class_order[k]`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        input_size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        output: Literal["logits", "probabilities"] = "logits",
        exportable: bool = True,
    ) -> None:
        super().__init__()
        self.exportable = exportable
        """Whether torch's exporter can write it as ONNX; TorchScript and converted ONNX can only teach."""
        self.in_half = False
        """Whether the network takes half precision alone, and so gets it."""
        self.smallest: float | None = None
        """What stands for a probability of zero; None: the smallest number of its type."""
        self.class_order: Tensor | None
        self.register_buffer("class_order", None, persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.network, self.input_size, self.output = network, input_size, output
        for parameter in network.parameters():  # a ScriptModule has no requires_grad_ of its own
            parameter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FileTeacher":
        # An exported program has no train() and eval(); its modes were fixed at export.
        self.training = False
        return self

    def answer(self, images: Tensor) -> Tensor:
        """Returns what the network itself answers."""
        size = self.input_size
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        normalised = (images - self.mean) / self.std
        answer: Tensor = self.network(normalised.half() if self.in_half else normalised)
        return answer.to(images.dtype) if self.in_half and isinstance(answer, Tensor) else answer

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, K); of probabilities, their logarithm, whose softmax they are."""
        answer = self.answer(images)
        if self.output == "probabilities":
            answer = answer.clamp_min(self.smallest or torch.finfo(answer.dtype).tiny).log()
        return answer if self.class_order is None else answer.index_select(1, self.class_order)


def in_order_of_data(
    teacher: nn.Module, reading: Reading, checkpoint: CheckpointSection, order: tuple[int, ...] | None
) -> OwnTeacher:
    """Returns the teacher with its answers in the order of the data's classes, as `order_of` gave it."""
    if checkpoint.classes is not None:
        words = checkpoint.classes if isinstance(checkpoint.classes, str) else "as listed"
        reading = replace(reading, classes=words, class_order=order)
    if order is not None:
        if not isinstance(teacher, FileTeacher):  # it normalises by itself
            channels = len(reading.mean)
            teacher = FileTeacher(teacher, input_size=None, mean=(0.0,) * channels, std=(1.0,) * channels)
        teacher.class_order = torch.tensor(order)
    return OwnTeacher(teacher, reading)


def fit_precision(teacher: FileTeacher, reread: Callable[[], nn.Module], image_shape: tuple[int, int, int]) -> str:
    """Lets a network of half precision answer images of single precision; returns what was done, "" if nothing.

    It is computed in single precision if it can be, with its rounded weights; otherwise it gets images in half.

    Args:
        reread: returns the network once more, as it is in the file.
    """
    values = [*teacher.network.parameters(), *teacher.network.buffers()]
    if not any(value.dtype == torch.float16 for value in values) or _takes(teacher, image_shape):
        return ""
    teacher.network.float()
    if _takes(teacher, image_shape):
        return "half precision in its file: computed in single precision"
    teacher.network, teacher.in_half = reread().requires_grad_(False), True
    if _takes(teacher, image_shape):
        return "takes half precision alone: images are rounded to it, and so are its answers"
    teacher.in_half = False  # it does not take the images for another reason, which is said later
    return ""


def look_for_half_probabilities(teacher: FileTeacher, image_shape: tuple[int, int, int]) -> str:
    """Returns a word if the network rounds its probabilities to half precision, and puts a floor under them then.

    Those below 6e-8 are zero there. Their logarithm would otherwise be that of the smallest number of all.
    """
    if teacher.output != "probabilities":
        return ""
    images = torch.rand(8, *image_shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = teacher.answer(images)
    if not torch.equal(found.half().to(found.dtype), found):
        return ""
    teacher.smallest = HALF_OF_THE_SMALLEST_HALF
    return (
        "rounds its probabilities to half precision: those below 6e-8 are lost, and 3e-8 stands for them; save its "
        "logits if you can"
    )


def _takes(teacher: FileTeacher, image_shape: tuple[int, int, int]) -> bool:
    images = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(3))
    try:
        with torch.no_grad():
            teacher.answer(images)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError):
        return False
    return True
