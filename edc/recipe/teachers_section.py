"""The teachers section of a recipe: an ensemble that is trained, or the user's own checkpoints."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from edc.recipe.data_section import Count, Section, SidePx
from edc.recipe.network_section import NetworkSection
from edc.recipe.training_section import TrainingOverrides, require_one_of_epochs

__all__ = ["CLASS_ORDERS", "CheckpointSection", "TeachersSection"]

CLASS_ORDERS = ("natural", "lexicographic")
"""Rules by which libraries sort class folders: timm naturally and without case, torchvision by code point."""


class CheckpointSection(Section):
    """A user's teacher: a state dict and the network it belongs to, or a file that is a whole network.

    Without a file, it is a network of torchvision or timm with the library's weights (`pretrained: true`).
    """

    later_than_first: ClassVar[tuple[str, ...]] = ("weights", "classes", "allow_weak", "trust")
    file: Path | None = None
    network: NetworkSection | None = None
    """The network of a state dict (.safetensors, .pt, .pth); the teachers' network unless given."""
    format: Literal["auto", "state_dict", "torchscript", "exported_program", "onnx"] = "auto"
    """`auto` looks at the file: TorchScript (torch.jit.save), an exported program (.pt2), .onnx, else a state dict."""
    input_size: SidePx | None = None
    """Side of the square that this teacher takes; it resizes images itself. None: the data's own size, or the library's
    size for its weights."""
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    """What this teacher subtracts from images in [0, 1] and divides by. Needed if the file is a whole network
    (zeros and ones if it normalises by itself). Default for a state dict: the network's, the file's, timm's for a
    network of timm, or the data's; for a library's weights: the library's."""
    output: Literal["logits", "probabilities"] = "logits"
    weights: Literal["ema", "raw"] | None = None
    """Which weights of a state dict's file: its moving average, or the raw ones. Unless given (`auto`), the average if
    there is one, as timm does; the log says which."""
    classes: tuple[str, ...] | str | None = None
    """The order of its answers: the names of the classes, a file of them (one a line, or .json), `natural` (as timm
    sorts folders: class2 before class10, without case) or `lexicographic` (as torchvision and edc do, by code point).
    None: the data's order."""
    allow_weak: bool | None = None
    """`true`: the run goes on though this teacher is near chance, far below the others, or better otherwise read."""
    trust: Literal[True] | None = None
    """`true`: this file may run code of its author. TorchScript, exported programs and ONNX with control flow or
    operators of others are opened only then (docs/trust.md)."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, value: Any) -> Any:
        """Stores `weights: auto`, `allow_weak: false` and `trust: false` as None: one meaning has one digest."""
        if not isinstance(value, dict):
            return value
        defaults = {"weights": "auto", "allow_weak": False, "trust": False}
        return {key: held for key, held in value.items() if key not in defaults or held != defaults[key]}

    @field_validator("classes", mode="before")
    @classmethod
    def _names_of_classes(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):  # YAML reads names like 0 as numbers
            return tuple(str(v) if type(v) is int else v for v in value)
        if isinstance(value, str) and value not in CLASS_ORDERS and not Path(value).suffix:
            raise ValueError(
                f"found {value!r}; expected a list of names, {', '.join(CLASS_ORDERS)} or a file of names (.txt, .json)"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is None and not (self.network and self.network.pretrained):
            raise ValueError(
                "file: missing; expected a file, or network: {name: ..., pretrained: true} for the weights that "
                "torchvision or timm have"
            )
        if self.file is None and self.format != "auto":
            raise ValueError(f"format: found {self.format!r}, which has no effect without a file; leave it out")
        if self.file is None and self.weights:
            raise ValueError(f"weights: found {self.weights!r}, which has no effect without a file; leave it out")
        if self.file is None and self.trust:
            raise ValueError("trust: has no effect without a file; leave it out")
        if self.network and self.network.start:
            raise ValueError("network.start: has no effect, because the checkpoint brings its weights; leave it out")
        if self.network and self.network.weights:
            raise ValueError("network.weights: has no effect here; weights of the checkpoint itself says it")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.mean and self.network and self.network.mean:
            raise ValueError("mean and std are given twice, here and in network; keep one of them")
        return self


class TeachersSection(Section):
    """The deep ensemble: trained here with different seeds, or the user's own checkpoints."""

    later_than_first: ClassVar[tuple[str, ...]] = ("training", "class_weights")
    ensemble_size: Annotated[int, Field(gt=0, le=1000)] | None = None
    """M; 4, or the number of `checkpoints`."""
    network: NetworkSection | None = None
    """The student's network and start unless given; teachers start at random if the start is `teacher`."""
    epochs: Count | None = None
    training: TrainingOverrides | None = None
    """Where teachers differ from the shared `training`."""
    class_weights: Literal["balanced"] | None = None
    """`balanced`: classes count alike in training. An image weighs the inverse of its class's frequency among training
    images, scaled so that the mean weight is 1. None: images count alike, so rare classes count little. Either way the
    best epoch is that of the best validation accuracy."""
    seed: int = 0
    checkpoints: tuple[CheckpointSection, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checkpoints and self.ensemble_size not in (None, len(self.checkpoints)):
            raise ValueError(
                f"ensemble_size is {self.ensemble_size} but checkpoints lists {len(self.checkpoints)} files; "
                "leave ensemble_size out or make them equal"
            )
        if self.network and self.network.start == "teacher":
            raise ValueError("network.start: found 'teacher', which only students can start from; expected another")
        given = {"network.start": self.network and self.network.start, "training": self.training}
        given["class_weights"] = self.class_weights
        for field, value in given.items():
            if self.checkpoints and value:
                raise ValueError(f"{field}: has no effect, because checkpoints lists trained teachers; leave it out")
        require_one_of_epochs(self.epochs, self.training)
        return self

    @property
    def size(self) -> int:
        return len(self.checkpoints) or self.ensemble_size or 4
