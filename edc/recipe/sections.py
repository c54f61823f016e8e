"""The sections of a recipe but its data: networks, schedule, teachers, students. Importable without torch."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from edc.method.kinds import Answers, FoldKind, Method, Perturbation
from edc.recipe.data_section import Section

__all__ = [
    "CheckpointSection",
    "NetworkSection",
    "StudentSection",
    "TeachersSection",
    "TrainingSection",
]

ADDED_LATER = ("answers", "extra")
"""Fields of a student that recipes of edc 0.1.0 did not have: with their defaults they make no other run."""
UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]


NETWORK_NAME = re.compile(
    r"(wrn(?P<depth>\d+)x(?P<width>\d+)|cifar_resnet(?P<rdepth>\d+)(x\d+)?|(torchvision|timm)/\S+)$"
)


class NetworkSection(Section):
    """A network by name; written `network: wrn28x4` or as a mapping."""

    name: str
    pretrained: bool = False
    """Start from the library's own weights (torchvision and timm only; needs the network)."""
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        match = NETWORK_NAME.match(self.name)
        if not match:
            raise ValueError(
                f"unknown network {self.name!r}; expected wrn<depth>x<width>, cifar_resnet<depth>[x<width>], "
                "torchvision/<name> or timm/<name>"
            )
        if match["depth"] and (int(match["depth"]) < 10 or (int(match["depth"]) - 4) % 6):
            raise ValueError(f"{self.name}: the depth of a WRN is 6n + 4 (10, 16, 22, 28, ...)")
        if match["rdepth"] and (int(match["rdepth"]) < 8 or (int(match["rdepth"]) - 2) % 6):
            raise ValueError(f"{self.name}: the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, 32, ...)")
        if self.pretrained and "/" not in self.name:
            raise ValueError(
                f"pretrained: {self.name} comes without weights; torchvision/ and timm/ networks have some"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        return self


class TrainingSection(Section):
    """The schedule, shared by teachers and students; the defaults are the paper's (docs/method.md: 200 epochs, SGD)."""

    epochs: PositiveInt = 200
    batch_size: PositiveInt = 128
    """Images in one optimiser step, over all processes."""
    micro_batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images of one process that go through the networks at once; None: all. Smaller ones save memory: gradients add up
    to the same, but BatchNorm's batch statistics are those of the smaller batches."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: PositiveFloat = 0.1
    momentum: UnitInterval = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    warmup_epochs: NonNegativeInt = 5
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    """torch.compile for teachers and student. Where it fails, they run without it and the log says so. Measured once: a
    step of WRN-16-2 on one CPU core went from 1.66 to 1.60 s, after two minutes of compiling (results/step_cost.md);
    not measured on a GPU. The trial does not include SyncBatchNorm's exchange between processes: a failure there
    ends the first step."""
    sync_batchnorm: bool = True
    """Batch statistics over all processes, so that a run does not depend on how many there are."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints; may be changed between two calls of one run."""
    validate_every: PositiveInt = 1
    """Epochs between two validations; the last epoch is always validated."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})")
        return self


class CheckpointSection(Section):
    """A user's teacher: a state dict and the network it belongs to, or a file that is a whole network.

    Without a file, a network of torchvision or timm with the library's own weights (`pretrained: true`).
    """

    file: Path | None = None
    network: NetworkSection | None = None
    """Of a state dict (.safetensors, .pt, .pth); the teachers' network unless given."""
    format: Literal["auto", "state_dict", "torchscript", "exported_program", "onnx"] = "auto"
    """`auto` looks at the file: TorchScript (torch.jit.save), an exported program (.pt2), .onnx, else a state dict."""
    input_size: PositiveInt | None = None
    """Side of the square that this teacher takes; images are resized inside it. None: the data's own size, or the
    library's size for its weights."""
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None
    """What this teacher subtracts from images in [0, 1] and divides by. Needed where the file is a whole network
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
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.mean and self.network and self.network.mean:
            raise ValueError("mean and std are given twice, here and in network; keep one of them")
        return self


class TeachersSection(Section):
    """The deep ensemble: trained here with different seeds, or the user's own checkpoints."""

    ensemble_size: PositiveInt | None = None
    """M; 4 unless `checkpoints` says otherwise."""
    network: NetworkSection | None = None
    """The student's network unless given."""
    epochs: PositiveInt | None = None
    seed: int = 0
    checkpoints: tuple[CheckpointSection, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.checkpoints and self.ensemble_size not in (None, len(self.checkpoints)):
            raise ValueError(
                f"ensemble_size is {self.ensemble_size} but checkpoints lists {len(self.checkpoints)} files; "
                "leave ensemble_size out or make them equal"
            )
        return self

    @property
    def size(self) -> int:
        return len(self.checkpoints) or self.ensemble_size or 4


class StudentSection(Section):
    """One student: how it learns from the ensemble, and how its members become one network."""

    method: Method = "latent_be"
    answers: Answers = "all"
    """`all`: every teacher answers every image, and every member learns it. `split`: each image goes to one teacher and
    to its member; the expected gradient is the same, and a step costs 4 forward passes, not 7 (kd) or 16 (latent_be).
    """
    perturbation: Perturbation = "none"
    perturbation_grey_levels: PositiveFloat = 1.0
    """Root-mean-square size of the perturbation, in grey levels of 255."""
    temperature: PositiveFloat = 4.0
    alpha: UnitInterval = 1.0
    """Weight of the distillation loss; 1: labels are not used at all."""
    extra: bool = True
    """Whether it learns from the images of `data.extra`, too; without labels they have the `alpha` 1."""
    epochs: PositiveInt | None = None
    """Of this student; those of `training` unless given. Written `{as_long_as: NAME}`, as many as cost as many forward
    passes as student NAME, rounded to the nearest whole number (`times: 2` with it: twice as many)."""
    fold: FoldKind = "mean_weights"
    """`mean_weights`: W * mean_m outer(s_m, r_m). `mean_factors`: W * outer(mean s, mean r), as the official code."""
    member_form: Literal["auto", "joint", "sequential"] = "auto"
    """`joint`: all members in one batch, BatchNorm statistics over all of them, as published. `sequential`: one member
    after another, memory as for one. `auto`: joint where its activations fit into 0.4 of the free memory."""
    reestimate_batchnorm: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.perturbation == "tdiv_sdiv" and self.method != "latent_be":
            raise ValueError("perturbation 'tdiv_sdiv' needs members to disagree: use method 'latent_be', or 'tdiv'")
        for field in ("member_form", "fold"):
            # Not by what was set: the resolved recipe of a run has every field, with its default.
            value = getattr(self, field)
            if self.method == "kd" and value != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field}: found {value!r}, which has no effect with method 'kd' (a single network has no "
                    "members); leave it out, or use method 'latent_be'"
                )
        return self
