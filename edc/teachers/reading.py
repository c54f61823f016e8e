"""How a teacher is read (what of it the recipe says, and what its file, library or the data), and how right it is."""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from edc.networks import Normalisation

__all__ = ["Answered", "OwnTeacher", "Reading"]


@dataclass(frozen=True)
class Reading:
    """How one teacher is fed, and which weights of its file it has."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation_of: str
    """Who says `mean` and `std`: the recipe, the file, timm, torchvision or the data."""
    input_size: int | None = None
    """Side of the square that it resizes images to; None: it takes them as they are."""
    weights: str = ""
    """Which weights of a file with a choice were taken, and what was left out; "" where there was no choice."""
    is_ema: bool = False
    has_both: bool = False
    """Whether its file has a moving average and raw weights."""
    weights_name: str = ""
    """Where in the file they are, if it has a choice."""
    classes: str = "the data's"
    """In which order its answers are, in words."""
    class_order: tuple[int, ...] | None = None
    """The column of its answer for each class of the data; None: the same order."""
    in_file: Normalisation | None = None
    """The mean and std that its file has, where the recipe says others."""
    notes: tuple[str, ...] = ()
    """What else its user should know."""

    @property
    def words(self) -> str:
        """What the recipe alone does not tell, for people."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        parts = [f"{self.normalisation_of}'s mean {mean} and std {std}", self.weights]
        parts += [f"classes {self.classes}"] if self.classes != "the data's" else []
        return "; ".join(part for part in (*parts, *self.notes) if part)

    @property
    def is_assumed(self) -> bool:
        """Whether neither the recipe nor the file says its normalisation."""
        return self.normalisation_of not in ("the recipe", "the file")

    def noting(self, *notes: str) -> "Reading":
        return replace(self, notes=(*self.notes, *(note for note in notes if note)))

    def identity(self) -> dict[str, Any]:
        """Returns what determines its answers beside its file: two readings that agree in it answer alike."""
        return {
            "mean": [round(value, 6) for value in self.mean],
            "std": [round(value, 6) for value in self.std],
            "input_size": self.input_size,
            "weights": self.weights_name,
            "class_order": None if self.class_order is None else list(self.class_order),
        }


@dataclass(frozen=True)
class OwnTeacher:
    """A teacher of the user's, frozen and in eval mode, and how it was read."""

    network: nn.Module
    reading: Reading


@dataclass(frozen=True)
class Answered:
    """What one teacher made of the validation images."""

    member: int
    name: str
    acc: float
    chance: float
    """Accuracy of answers as frequent as its own that do not look at the images."""
    nll: float
    reading: Reading
    few_classes: str = ""
    """That it predicts one or few classes, in words."""

    @property
    def margin(self) -> float:
        return self.acc - self.chance

    def document(self) -> dict[str, Any]:
        """Returns its part of summary.json."""
        reading = self.reading.identity() | {"normalisation_of": self.reading.normalisation_of}
        reading |= {"classes": self.reading.classes, "weights": self.reading.weights, "notes": list(self.reading.notes)}
        return {"member": self.member, "name": self.name, "acc": self.acc, "nll": self.nll, **reading}
