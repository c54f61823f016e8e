"""Students: one plain network (KD), or M members that share weights (LatentBE) and are folded into one."""

from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from edc.console import console
from edc.data import DataSet
from edc.errors import RunError
from edc.method.batch_ensemble import ensemble_size_of, fold, select_members, shared_layers, to_batch_ensemble
from edc.method.losses import kd_loss, label_loss, latent_be_loss, wide
from edc.method.perturb import perturb
from edc.method.step import Batch, LossOf, LossPart, place
from edc.networks import Classifier, build_network
from edc.recipe import Recipe, StudentSection
from edc.runs.folder import RunFolder
from edc.seeding import derive_seed
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.checkpoint import load_state
from edc.train.compiling import compile_network, example_for
from edc.train.distributed import locked_by_main
from edc.train.evaluate import reestimate_batchnorm
from edc.train.loop import fit
from edc.train.member_form import MemberForm, batchnorm_momentum_shared, choose_form

__all__ = ["build_plain", "build_student", "fold_student", "load_student", "student_loss", "train_student"]


def build_plain(recipe: Recipe, data: DataSet, *, fresh: bool = True) -> Classifier:
    """Returns a plain network of the student's architecture, initialised by the run's seed.

    Not `fresh`: its weights will be overwritten, so pretrained ones are not fetched.
    """
    section = recipe.network if fresh else recipe.network.model_copy(update={"pretrained": False})
    torch.manual_seed(derive_seed("student", recipe.seed, "initial weights"))
    return build_network(
        section, num_classes=data.num_classes, image_shape=data.image_shape, mean=data.mean, std=data.std
    )


def build_student(recipe: Recipe, name: str, data: DataSet, *, fresh: bool = True) -> nn.Module:
    """Returns the network that student `name` trains: plain, or with as many members as there are teachers."""
    section = recipe.students[name]
    plain = build_plain(recipe, data, fresh=fresh)
    if section.method == "kd":
        return plain
    return to_batch_ensemble(plain, recipe.teachers.size, example=torch.zeros(2, *data.image_shape))


def student_loss(section: StudentSection, teachers: TeacherEnsemble, *, form: MemberForm = "joint") -> LossOf:
    """Returns the loss of one step: perturb, let the teachers answer, distil.

    Args:
        form: `joint` runs all members as one batch (M * N rows); `sequential` runs one after another, each with its own
            backward pass: memory does not grow with M, and BatchNorm sees the batch of one member at a time.
    """

    def parts_of(model: nn.Module, network: nn.Module, batch: Batch) -> list[LossPart]:
        with record_function("edc:perturbation"):
            images = perturb(
                batch.images,
                section.perturbation,
                teachers=teachers,
                student=network,
                grey_levels=section.perturbation_grey_levels,
                generator=batch.generator,
                rows=batch.rows,
                num_rows=batch.num_rows,
            )
        with record_function("edc:teachers"):
            teacher_logits = teachers.answers(images)
        num_members = ensemble_size_of(network)

        def part(members: slice) -> Tensor:
            size = len(range(*members.indices(num_members)))
            student_logits = wide(model(images.repeat(size, 1, 1, 1) if size > 1 else images))
            targets = teacher_logits[members] if num_members > 1 else teacher_logits
            student_logits = student_logits.view(size, len(images), -1)
            return size / num_members * _loss(section, student_logits, targets, batch.labels)

        def part_of_member(m: int) -> Tensor:
            with select_members(network, (m,)), batchnorm_momentum_shared(network, num_members):
                return part(slice(m, m + 1))

        if form == "sequential" and num_members > 1:
            return [partial(part_of_member, m) for m in range(num_members)]
        return [partial(part, slice(None))]

    return parts_of


def _loss(section: StudentSection, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over members of distillation, and of cross-entropy with the labels where alpha is below 1."""
    loss_between = latent_be_loss if section.method == "latent_be" else kd_loss
    distillation = loss_between(student_logits, teacher_logits, temperature=section.temperature)
    if section.alpha == 1:
        return distillation
    return (1 - section.alpha) * label_loss(student_logits, labels) + section.alpha * distillation


def fold_student(network: nn.Module, recipe: Recipe, name: str, data: DataSet, *, kind: str | None = None) -> nn.Module:
    """Returns the plain network that student `name` is deployed as: itself (KD), or the fold of its members."""
    section = recipe.students[name]
    if section.method == "kd":
        return network
    plain = place(build_plain(recipe, data, fresh=False), next(network.parameters()).device, recipe.training)
    return fold(network, plain, kind="mean_factors" if (kind or section.fold) == "mean_factors" else "mean_weights")


def train_student(
    recipe: Recipe,
    name: str,
    data: DataSet,
    teachers: TeacherEnsemble,
    *,
    run: RunFolder,
    accelerator: Accelerator,
) -> nn.Module:
    """Returns student `name` (with its members) trained to the end, going on where an earlier call stopped."""
    section = recipe.students[name]
    network = build_student(recipe, name, data)
    not_members = shared_layers(network) if section.method == "latent_be" else []
    if not_members and accelerator.is_main_process:
        console.print(f"{name}: shared by all members, not converted: {', '.join(not_members)}", highlight=False)
    folder = run.student_path(name)
    busy = f"{folder}: another process is training this student"
    with locked_by_main(folder / ".lock", held_by_other=busy, accelerator=accelerator):
        training = recipe.training_of(section)
        form, reason = choose_form(
            section, network, data.image_shape, training=training, folder=folder, accelerator=accelerator
        )
        if accelerator.is_main_process and reason:
            console.print(f"{name}: members {form}, {reason}", highlight=False)
        if training.compile:
            _compile_teachers(recipe, data, teachers, accelerator)
        return fit(
            network,
            data,
            loss_of=student_loss(section, teachers, form=form),
            plain_of=lambda trained: fold_student(trained, recipe, name, data),
            data_section=recipe.data,
            training=training,
            seed=derive_seed("student", recipe.seed),
            folder=folder,
            label=name,
            accelerator=accelerator,
        )


def _compile_teachers(recipe: Recipe, data: DataSet, teachers: TeacherEnsemble, accelerator: Accelerator) -> None:
    """Compiles the teachers for all students of the recipe: each is tried once, whoever comes first."""
    to_images = any(section.perturbation not in ("none", "gaussian") for section in recipe.students.values())
    training, num_processes = recipe.training, accelerator.num_processes
    for m, teacher in enumerate(teachers.members):
        example = example_for(
            teacher, data.image_shape, training=training, num_processes=num_processes, to_images=to_images
        )
        compile_network(teacher, example, training=training, label=f"teacher {m}", accelerator=accelerator)


def load_student(recipe: Recipe, name: str, data: DataSet, *, run: RunFolder) -> nn.Module:
    """Returns trained student `name` with its members; raises `RunError` if it is not finished."""
    path = run.student_path(name) / "weights.safetensors"
    if not path.is_file():
        raise RunError(
            f"{path}: student {name!r} is not trained; go on with: edc distill {run.recipe_path} --run {run.path}"
        )
    network = build_student(recipe, name, data, fresh=False)
    network.load_state_dict(load_state(path))
    return network.eval()


def deployable(network: nn.Module, recipe: Recipe, name: str, data: DataSet, *, accelerator: Accelerator) -> nn.Module:
    """Returns what is evaluated and exported: the folded student, its BatchNorm re-estimated if the recipe says so."""
    plain = fold_student(network, recipe, name, data)
    if recipe.students[name].reestimate_batchnorm:
        plain = reestimate_batchnorm(
            plain,
            data,
            data_section=recipe.data,
            training=recipe.training,
            seed=derive_seed("student", recipe.seed, "batchnorm"),
            accelerator=accelerator,
        )
    return plain.eval()
