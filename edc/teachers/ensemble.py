"""The deep ensemble: M frozen teachers, trained here with different seeds or the user's own checkpoints."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from edc.data import DataSet
from edc.errors import CheckpointError
from edc.method.step import LabelStep
from edc.networks import Classifier, network_for
from edc.recipe import OPERATION, CheckpointSection, Recipe
from edc.seeding import derive_seed
from edc.system.files import sha256_of, write_json
from edc.system.saved import read_saved
from edc.teachers.first_contact import meet_apart
from edc.teachers.from_file import load_file_teacher
from edc.teachers.from_library import load_library_teacher, name_of_library_weights
from edc.teachers.reading import OwnTeacher
from edc.teachers.start import say_start, start_digest, start_from_file
from edc.train.checkpoint import load_finished
from edc.train.distributed import by_main, locked_by_main, raised_together
from edc.train.loop import fit
from edc.train.placement import autocast_dtype, casts_kept, place
from edc.train.tracking.trackers import Tracked

__all__ = [
    "TeacherEnsemble",
    "are_trained",
    "build_teacher",
    "class_weights_of",
    "fetch_teacher_weights",
    "load_own_teacher",
    "load_own_teachers",
    "load_teachers",
    "obtain_teacher",
    "teacher_digests",
    "teacher_key",
]


class TeacherEnsemble(nn.Module):
    """M frozen teachers; each normalises images in its own way. Never in train mode, never given a gradient."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "TeacherEnsemble":
        return super().train(False)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, m: int) -> nn.Module:
        return self.members[m]

    def casts_kept(self, dtype: torch.dtype | None, image_shape: tuple[int, int, int]) -> "TeacherEnsemble":
        """Returns the same teachers for passes under autocast to `dtype`, see `edc.train.placement.casts_kept`."""
        return TeacherEnsemble([casts_kept(member, dtype, image_shape) for member in self.members])

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (M, N, K) for images (N, C, H, W) in [0, 1]."""
        return torch.stack([member(images) for member in self.members])


def load_own_teachers(recipe: Recipe, data: DataSet) -> list[OwnTeacher]:
    """Returns the recipe's own checkpoints, loaded strictly, tried, and how they were read; none if it lists none."""
    meet_apart(recipe, data)
    return [load_own_teacher(recipe, data, m, checkpoint) for m, checkpoint in enumerate(recipe.teachers.checkpoints)]


def load_own_teacher(recipe: Recipe, data: DataSet, member: int, checkpoint: CheckpointSection) -> OwnTeacher:
    """Returns teacher `member` of the user's, read as `checkpoint` says; `meet_apart` has been called before."""
    field = f"teachers.checkpoints.{member}"
    classes_and_images: Any = {"class_names": data.class_names, "image_shape": data.image_shape}
    if checkpoint.file is None:
        return load_library_teacher(checkpoint, field=field, **classes_and_images)
    network = recipe.teacher_network
    return load_file_teacher(
        checkpoint, field=field, default_network=network, of_data=(data.mean, data.std), **classes_and_images
    )


def load_teachers(
    recipe: Recipe,
    data: DataSet,
    *,
    teachers_path: Path,
    accelerator: Accelerator,
    own: Sequence[nn.Module] | None = None,
) -> TeacherEnsemble:
    """Returns the ensemble: the recipe's checkpoints, or M teachers from `teachers_path`, training those missing.

    Args:
        own: the networks that `load_own_teachers` returned, if it has been called already.
    """
    members = list(own if own is not None else (one.network for one in load_own_teachers(recipe, data)))
    if not members:
        members = [
            obtain_teacher(recipe, data, member, teachers_path=teachers_path, accelerator=accelerator)
            for member in range(recipe.teachers.size)
        ]
    return place(TeacherEnsemble(members), accelerator.device, recipe.training_of(recipe.teachers))


def obtain_teacher(
    recipe: Recipe, data: DataSet, member: int, *, teachers_path: Path, accelerator: Accelerator
) -> nn.Module:
    """Returns teacher `member`: from disk if the same one was trained before, else trained now."""
    key, determined_by = teacher_key(recipe, data, member)
    folder = teachers_path / key
    seed = recipe.teachers.seed + member
    torch.manual_seed(derive_seed("teacher", seed, "initial weights"))
    trained = by_main((folder / "weights.safetensors").is_file, accelerator)
    network = build_teacher(recipe, data, fresh=not trained)
    if trained:
        with raised_together(accelerator):
            advice = "remove it, and the teacher is trained anew"
            _require_the_one(folder, determined_by)
            load_finished(folder / "weights.safetensors", network, advice=advice)
        return network
    if recipe.teacher_network.start_file:
        with raised_together(accelerator):
            got = start_from_file(network, recipe.teacher_network, field=recipe.teacher_start_field)
        if accelerator.is_main_process:
            say_start(f"teacher {member}", f"{recipe.teacher_network.start_file}", got)
    busy = f"{folder}: another process is training this teacher; wait for it, or train another one with --member"
    with locked_by_main(folder / ".lock", held_by_other=busy, accelerator=accelerator):
        by_main(lambda: write_json(folder / "teacher.json", determined_by), accelerator)
        training = recipe.training_of(recipe.teachers)
        return fit(
            network,
            replace(data, extra=None),
            learn=LabelStep(autocast_dtype(training), class_weights_of(recipe, data)),
            plain_of=lambda trained: trained,
            data_section=recipe.data,
            training=training,
            seed=derive_seed("teacher", seed),
            folder=folder,
            label=f"teacher {member}",
            accelerator=accelerator,
            tracked=Tracked(f"teachers/{key}", determined_by),
        )


class _SavedTeacher(BaseModel):
    """What edc writes beside a teacher: all that determines its weights."""

    model_config = ConfigDict(extra="allow")
    data: str
    augmentation: dict[str, Any]
    network: dict[str, Any]
    training: dict[str, Any]
    seed: int


def _require_the_one(folder: Path, determined_by: dict[str, object]) -> None:
    """Raises `CheckpointError` if the teacher in `folder` says that it is another than the folder's name promises."""
    path, advice = folder / "teacher.json", "remove the folder, and the teacher is trained anew"
    if not path.is_file():
        return
    found = read_saved(_SavedTeacher, path, advice=advice, raises=CheckpointError)[1]
    expected = json.loads(json.dumps(determined_by))
    different = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    if different:
        raise CheckpointError(f"{path}: is of another teacher (its {', '.join(different)}); {advice}")


def teacher_key(recipe: Recipe, data: DataSet, member: int) -> tuple[str, dict[str, object]]:
    """Returns the name of a teacher's folder, and everything that determines its weights."""
    network = recipe.teacher_network
    determined_by: dict[str, object] = {
        "data": data.fingerprint(),
        "augmentation": recipe.data.model_dump(mode="json", include={"augmentation", "crop_padding"}),
        "network": network.model_dump(mode="json", exclude={"start", "weights"}),
        "training": recipe.training_of(recipe.teachers).model_dump(
            mode="json", exclude={*OPERATION, "compile", "factor_rate"}, exclude_none=True
        ),
        "seed": recipe.teachers.seed + member,
    }
    if recipe.teachers.class_weights:
        determined_by["class_weights"] = recipe.teachers.class_weights
    if network.start_file:  # its content, wherever it lies
        determined_by["start"] = start_digest(network, data, field=recipe.teacher_start_field)
    digest = hashlib.sha256(json.dumps(determined_by, sort_keys=True).encode()).hexdigest()
    name = network.name.replace("/", "-")
    return f"{recipe.data.kind}-{name}-seed{determined_by['seed']}-{digest[:12]}", determined_by


def class_weights_of(recipe: Recipe, data: DataSet) -> Tensor | None:
    """Returns how much an image of each class counts in the training of teachers (K,); None: all count alike.

    N / (number of classes with images * N_k), as scikit-learn's `compute_class_weight("balanced")`; a class without
    training images has 0, because it has no image to weigh.
    """
    if recipe.teachers.class_weights is None:
        return None
    counts = torch.bincount(data.train.labels, minlength=data.num_classes)
    return torch.where(counts > 0, len(data.train) / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)


def are_trained(recipe: Recipe, data: DataSet, *, teachers_path: Path) -> bool:
    """Returns whether all teachers that the recipe trains are there."""
    keys = [teacher_key(recipe, data, member)[0] for member in range(recipe.teachers.size)]
    return all((teachers_path / key / "weights.safetensors").is_file() for key in keys)


def fetch_teacher_weights(recipe: Recipe, data: DataSet, *, teachers_path: Path) -> None:
    """Lets the library fetch the weights from which untrained teachers start, if the recipe asks for them."""
    trains = not recipe.teachers.checkpoints and not are_trained(recipe, data, teachers_path=teachers_path)
    if recipe.teacher_network.pretrained and trains:
        build_teacher(recipe, data)


def teacher_digests(recipe: Recipe, data: DataSet) -> list[str]:
    """Returns what identifies each teacher's weights: the digest of its file, or everything that determines them."""
    if recipe.teachers.checkpoints:
        return [_checkpoint_digest(checkpoint) for checkpoint in recipe.teachers.checkpoints]
    return [teacher_key(recipe, data, member)[0] for member in range(recipe.teachers.size)]


def _checkpoint_digest(checkpoint: CheckpointSection) -> str:
    if checkpoint.file is not None:
        return sha256_of(checkpoint.file)
    return name_of_library_weights(checkpoint)


def build_teacher(recipe: Recipe, data: DataSet, *, fresh: bool = True) -> Classifier:
    """Returns an untrained teacher network, not yet started from a file.

    Not `fresh`: its weights will be overwritten, so none are fetched.
    """
    return network_for(recipe.teacher_network if fresh else recipe.teacher_network.bare(), data)
