"""The teachers section of a recipe: an ensemble that is trained, or the user's own checkpoints."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from edc.recipe.data_section import Count, Section, SidePx
from edc.recipe.network_section import NetworkSection
from edc.recipe.training_section import TrainingOverrides, require_one_of_epochs

__all__ = ["CheckpointSection", "TeachersSection"]


class CheckpointSection(Section):
    """A user's teacher: a state dict and the network it belongs to, or a file that is a whole network.

    Without a file, it is a network of torchvision or timm with the library's weights (`pretrained: true`).
    """

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
    (zeros and ones if it normalises by itself). Default for a state dict: the network's or the data's; for a
    library's weights: the library's."""
    output: Literal["logits", "probabilities"] = "logits"

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is None and not (self.network and self.network.pretrained):
            raise ValueError(
                "file: missing; expected a file, or network: {name: ..., pretrained: true} for the weights that "
                "torchvision or timm have"
            )
        if self.file is None and self.format != "auto":
            raise ValueError(f"format: found {self.format!r}, which has no effect without a file; leave it out")
        if self.network and self.network.start:
            raise ValueError("network.start: has no effect, because the checkpoint brings its weights; leave it out")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.mean and self.network and self.network.mean:
            raise ValueError("mean and std are given twice, here and in network; keep one of them")
        return self


class TeachersSection(Section):
    """The deep ensemble: trained here with different seeds, or the user's own checkpoints."""

    later_than_first: ClassVar[tuple[str, ...]] = ("training",)
    ensemble_size: Annotated[int, Field(gt=0, le=1000)] | None = None
    """M; 4, or the number of `checkpoints`."""
    network: NetworkSection | None = None
    """The student's network and start unless given; teachers start at random if the start is `teacher`."""
    epochs: Count | None = None
    training: TrainingOverrides | None = None
    """Where teachers differ from the shared `training`."""
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
        for field, value in (("network.start", self.network and self.network.start), ("training", self.training)):
            if self.checkpoints and value:
                raise ValueError(f"{field}: has no effect, because checkpoints lists trained teachers; leave it out")
        require_one_of_epochs(self.epochs, self.training)
        return self

    @property
    def size(self) -> int:
        return len(self.checkpoints) or self.ensemble_size or 4
