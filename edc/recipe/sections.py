"""Recipes: what a run is, as frozen sections read from YAML.

A recipe says *what* (data, networks, schedule, method); command-line flags say *where* (folders, device). This module
must stay importable without torch, so that a mistake in a recipe is reported before anything heavy loads.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from edc.recipe.data_section import DataSection, Section, problems_with_extra
from edc.recipe.student_section import ADDED_LATER, StudentSection, UnitInterval

__all__ = [
    "CheckpointSection",
    "NetworkSection",
    "Recipe",
    "StudentSection",
    "TeachersSection",
    "TrainingSection",
]

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


class Recipe(Section):
    """A whole run. `students` maps names to students; `deploy` names the one that `edc export` takes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    """Seed of the students; the teachers have their own in `teachers.seed`."""
    data: DataSection
    network: NetworkSection
    training: TrainingSection = TrainingSection()
    teachers: TeachersSection = TeachersSection()
    students: Annotated[dict[str, StudentSection], Field(min_length=1)]
    deploy: str = ""

    @model_validator(mode="before")
    @classmethod
    def _deploy_the_last(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("deploy") and isinstance(value.get("students"), dict):
            return {**value, "deploy": next(reversed(value["students"]), "")}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.deploy not in self.students:
            problems.append(f"deploy: {self.deploy!r} is not one of the students ({', '.join(self.students)})")
        for name, student in self.students.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                problems.append(f"students.{name}: a student's name is made of letters, digits and . _ -")
            if student.perturbation in ("tdiv", "tdiv_sdiv") and self.teachers.size < 2:
                problems.append(
                    f"students.{name}.perturbation: {student.perturbation!r} needs a pair of teachers, "
                    f"but the ensemble has {self.teachers.size}; use 2 or more, or 'ods'"
                )
            if student.epochs is not None and student.epochs <= self.training.warmup_epochs:
                problems.append(f"students.{name}.epochs: must be larger than training.warmup_epochs")
        if self.data.unlabelled and not self.teachers.checkpoints:
            problems.append(
                "data.unlabelled: teachers cannot be trained without labels; list your own in teachers.checkpoints"
            )
        if self.data.unlabelled:
            problems += [
                f"students.{name}.alpha: found {student.alpha:g}, but data.unlabelled leaves no labels to learn from; "
                "expected 1"
                for name, student in self.students.items()
                if student.alpha != 1
            ]
        problems += [
            f"students.{name}.alpha: found {student.alpha:g} with {' and '.join(student.mixed_views)}, which mix "
            "labelled images with those of data.extra, which have no label; expected 1, or extra: false"
            for name, student in self.students.items()
            if self.data.extra and student.extra and student.mixed_views and student.alpha != 1
        ]
        learns = {name: student.extra for name, student in self.students.items()}
        problems += problems_with_extra(self.data, batch_size=self.training.batch_size, learns=learns)
        if self.teachers.epochs is not None and self.teachers.epochs <= self.training.warmup_epochs:
            problems.append("teachers.epochs: must be larger than training.warmup_epochs")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def teacher_network(self) -> NetworkSection:
        return self.teachers.network or self.network

    def training_of(self, section: TeachersSection | StudentSection) -> TrainingSection:
        """Returns the schedule of `section`: the shared one, with its own number of epochs if it has one."""
        return self.training.model_copy(update={"epochs": section.epochs}) if section.epochs else self.training

    def operated_as(self, other: "Recipe") -> "Recipe":
        """Returns this recipe with what of `other` may change in the middle of a run: the work, not its result."""
        training = self.training.model_copy(update={"checkpoint_every": other.training.checkpoint_every})
        return self.model_copy(update={"data": self.data.operated_as(other.data), "training": training})

    def identity(self) -> dict[str, Any]:
        """Returns what identifies a run: the recipe without the data's place, the way it is fetched, and operation.

        Fields that may change in the middle of a run have their defaults, so that digests of older edcs still hold.
        """
        document = self.model_dump(mode="json")
        document["data"] = self.data.identity()
        document["training"]["checkpoint_every"] = TrainingSection.model_fields["checkpoint_every"].default
        defaults = StudentSection().model_dump(mode="json")
        for student in document["students"].values():
            for field in ADDED_LATER:
                if student[field] == defaults[field]:
                    del student[field]
        return document

    def digest(self) -> str:
        """Returns a SHA-256 of the recipe's identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
