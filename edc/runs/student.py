"""Students: one plain network (KD), or M members that share weights (LatentBE) and are folded into one."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from edc.console import console
from edc.data import DataSet
from edc.errors import RunError, edc_command
from edc.method.batch_ensemble import fold, shared_layers, to_batch_ensemble
from edc.method.kinds import FoldKind, MemberForm
from edc.method.step import StudentStep
from edc.networks import Classifier, network_for
from edc.recipe import BestBy, Recipe, StudentSection, TrainingSection
from edc.runs.choice import TRAINED_WEIGHTS, candidates_of, choose
from edc.runs.folder import RunFolder
from edc.runs.start import start_student
from edc.runs.why.observer import Observer
from edc.seeding import derive_seed
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.checkpoint import load_finished
from edc.train.compiling import compile_network, example_for
from edc.train.distributed import by_main, locked_by_main, raised_together
from edc.train.evaluate import norms_of, reestimate_batchnorm
from edc.train.loop import WEIGHTS, fit
from edc.train.member_form import KEPT, choose_form, kept_form
from edc.train.placement import autocast_dtype, place
from edc.train.tracking.trackers import Tracked

__all__ = [
    "as_begun",
    "build_plain",
    "build_student",
    "deployable",
    "folding",
    "form_of",
    "learned_by",
    "load_student",
    "student_step",
    "train_student",
]

BEGUN = (WEIGHTS, TRAINED_WEIGHTS, "checkpoint.pt")
"""Files that hold all weights of a student: what it started from is not looked at again."""


def build_plain(recipe: Recipe, data: DataSet, *, name: str | None = None, fresh: bool = True) -> Classifier:
    """Returns a plain network of the student's architecture, initialised by the run's seed or from the library.

    Args:
        name: the student that is to start from it, unless all start alike. Not yet from a file or a teacher.
        fresh: False: its weights will be overwritten, so pretrained ones are not fetched.
    """
    section = recipe.network_of(recipe.students[name]) if name else recipe.network
    section = section if fresh else section.bare()
    torch.manual_seed(derive_seed("student", recipe.seed, "initial weights"))
    return network_for(section, data)


def build_student(recipe: Recipe, name: str, data: DataSet, *, fresh: bool = True) -> nn.Module:
    """Returns the network that student `name` trains, before it starts from a file or a teacher."""
    return _with_members(build_plain(recipe, data, name=name, fresh=fresh), recipe, name, data)


def _with_members(plain: Classifier, recipe: Recipe, name: str, data: DataSet) -> nn.Module:
    """Returns the plain network, or one with as many members equal to it as there are teachers."""
    if recipe.students[name].method == "kd":
        return plain
    return to_batch_ensemble(plain, recipe.teachers.size, example=torch.zeros(2, *data.image_shape))


def learned_by(section: StudentSection, data: DataSet) -> DataSet:
    """Returns what a student learns from: the data set with the extra images, or without."""
    return data if section.extra else replace(data, extra=None)


def student_step(
    section: StudentSection,
    teachers: TeacherEnsemble,
    *,
    training: TrainingSection,
    data: DataSet | None = None,
    form: MemberForm = "joint",
) -> StudentStep:
    """Returns how a student of the recipe learns.

    Args:
        data: what it learns from. None: some images may lack labels, and no view mixes labels.
        form: `joint` or `sequential`, never `auto`, see `choose_form`.
    """
    return StudentStep(
        teachers=list(teachers.members),
        method=section.method,
        answers=section.answers,
        views=section.mixed_views,
        perturbation=section.perturbation,
        pair=section.pair,
        grey_levels=section.perturbation_grey_levels,
        temperature=section.temperature,
        alpha=section.alpha,
        asks_teachers=section.asks_teachers(has_extra=data is None or data.extra is not None),
        num_classes=data.num_classes if data else 0,
        form=form,
        autocast=autocast_dtype(training),
    )


def folding(recipe: Recipe, name: str, data: DataSet, kind: FoldKind | None = None) -> Callable[[nn.Module], nn.Module]:
    """Returns what makes the plain network that student `name` is deployed as: itself (KD), or its members' fold."""
    section = recipe.students[name]
    if section.method == "kd":
        return lambda network: network

    @cache  # one network for the folds of all epochs: to build another would each time draw its initial weights
    def plain(device: torch.device) -> Classifier:
        return place(build_plain(recipe, data, fresh=False), device, recipe.training_of(section))

    return lambda network: fold(network, plain(next(network.parameters()).device), kind=kind or section.fold)


def train_student(
    recipe: Recipe,
    name: str,
    data: DataSet,
    teachers: TeacherEnsemble,
    *,
    run: RunFolder,
    accelerator: Accelerator,
    observed: bool = True,
) -> nn.Module:
    """Returns student `name` (with its members) trained to the end, continuing where an earlier call stopped.

    If validation images choose between candidates, it is returned as the chosen one.

    Args:
        observed: whether to write what it has in common with its ensemble, see `edc.runs.why.observer`.
    """
    section, folder = recipe.students[name], run.student_path(name)
    begun = by_main(lambda: any((folder / file).is_file() for file in BEGUN), accelerator)
    plain = build_plain(recipe, data, name=name, fresh=not begun)
    if not begun:
        start_student(plain, recipe, name, data, teachers, run=run, accelerator=accelerator)
    network = _with_members(plain, recipe, name, data)
    not_members = shared_layers(network) if section.method == "latent_be" else []
    if not_members and accelerator.is_main_process:
        console.print(f"{name}: shared by all members, not converted: {', '.join(not_members)}", highlight=False)
    busy = f"{folder}: another process is training this student"
    several = len(candidates_of(section, has_batchnorm=bool(norms_of(network)))) > 1
    path = folder / (TRAINED_WEIGHTS if several else WEIGHTS)
    common: Any = {"best_by": by_main(lambda: run.best_by(recipe), accelerator), "accelerator": accelerator}
    fitted = partial(_fitted, network, recipe, name, data, teachers, path=path, observed=observed, **common)
    with locked_by_main(folder / ".lock", held_by_other=busy, accelerator=accelerator):
        if not several:
            return fitted()
        if not by_main((folder / WEIGHTS).is_file, accelerator):
            fitted()
            choose(
                recipe,
                name,
                data,
                folder=folder,
                build=partial(build_student, recipe, name, data, fresh=False),
                plain_of=partial(deployable, recipe=recipe, name=name, data=data, accelerator=accelerator),
                **common,
            )
        with raised_together(accelerator):
            chosen = load_student(recipe, name, data, run=run)
        return place(chosen, accelerator.device, recipe.training_of(section))


def _fitted(
    network: nn.Module,
    recipe: Recipe,
    name: str,
    data: DataSet,
    teachers: TeacherEnsemble,
    *,
    path: Path,
    best_by: BestBy,
    accelerator: Accelerator,
    observed: bool,
) -> nn.Module:
    """Returns student `name` trained to its best epoch, whose weights are in `path`."""
    folder, section, training = path.parent, recipe.students[name], recipe.training_of(recipe.students[name])
    form, reason = choose_form(
        section, network, data.image_shape, training=training, folder=folder, accelerator=accelerator
    )
    if reason and accelerator.is_main_process:
        console.print(f"{name}: members {form}, {reason}", highlight=False)
    if training.compile:
        _compile_teachers(recipe, data, teachers, training, accelerator)
    learned = learned_by(section, data)
    asked, plain_of = teachers.casts_kept(autocast_dtype(training), data.image_shape), folding(recipe, name, data)
    how: Any = {"training": training, "num_workers": recipe.data.num_workers, "accelerator": accelerator}
    observer = Observer(section, learned, teachers, name=name, plain_of=plain_of, **how)
    return fit(
        network,
        learned,
        learn=student_step(section, asked, training=training, data=learned, form=form),
        plain_of=plain_of,
        data_section=recipe.data,
        training=training,
        seed=derive_seed("student", recipe.seed),
        folder=folder,
        label=name,
        accelerator=accelerator,
        views=section.views,
        observe=observer if observed else None,
        ema=section.ema,
        best_by=best_by,
        weights=path.name,
        tracked=Tracked(
            f"{folder.parents[1].name}/{name}",
            {"recipe": recipe.name, "seed": recipe.seed, "network": recipe.network_of(section).name}
            | {"student": section.model_dump(mode="json"), "training": training.model_dump(mode="json")}
            | {"data": recipe.data.identity()},
        ),
    )


def form_of(recipe: Recipe, name: str, *, run: RunFolder) -> MemberForm | None:
    """Returns the form in which student `name` was trained; None: one network, or not recorded."""
    section = recipe.students[name]
    if section.method == "kd" or recipe.teachers.size == 1:
        return None
    return kept_form(run.student_path(name) / KEPT) if section.member_form == "auto" else section.member_form


def as_begun(recipe: Recipe, *, run: RunFolder, accelerator: Accelerator) -> Recipe:
    """Returns the recipe with `auto` replaced by the form in which each student of the run was begun."""

    def kept_forms() -> dict[str, MemberForm | None]:
        is_its_run = run.recipe_path.is_file() and run.recipe().digest() == recipe.digest()
        return {name: form_of(recipe, name, run=run) if is_its_run else None for name in recipe.students}

    begun = {
        name: recipe.students[name].model_copy(update={"member_form": form or recipe.students[name].member_form})
        for name, form in by_main(kept_forms, accelerator).items()
    }
    return recipe.model_copy(update={"students": begun})


def _compile_teachers(
    recipe: Recipe, data: DataSet, teachers: TeacherEnsemble, training: TrainingSection, accelerator: Accelerator
) -> None:
    """Compiles the teachers for all students of the recipe; each teacher is tried once."""
    to_images = any(section.perturbation not in ("none", "gaussian") for section in recipe.students.values())
    processes = accelerator.num_processes
    for m, teacher in enumerate(teachers.members):
        example = example_for(
            teacher, data.image_shape, training=training, num_processes=processes, to_images=to_images
        )
        compile_network(teacher, example, training=training, label=f"teacher {m}", accelerator=accelerator)


def load_student(recipe: Recipe, name: str, data: DataSet, *, run: RunFolder) -> nn.Module:
    """Returns trained student `name` with its members; raises `RunError` if it is not finished."""
    path = run.student_path(name) / WEIGHTS
    if not path.is_file():
        raise RunError(
            f"{path}: student {name!r} is not trained; continue with: "
            + edc_command("distill", run.recipe_path, "--run", run.path)
        )
    network = build_student(recipe, name, data, fresh=False)
    load_finished(path, network, advice="remove it and summary.json, and edc distill trains the student anew")
    return network.eval()


def deployable(
    network: nn.Module,
    recipe: Recipe,
    name: str,
    data: DataSet,
    *,
    reestimate: bool | None = None,
    kind: FoldKind | None = None,
    accelerator: Accelerator,
) -> nn.Module:
    """Returns the network to evaluate and export: the folded student, its BatchNorm re-estimated if the recipe asks.

    Args:
        reestimate: whether BatchNorm is re-estimated, and `kind`: of the fold; None: as the recipe says.
    """
    plain = folding(recipe, name, data, kind=kind)(network)
    if recipe.students[name].reestimate_batchnorm if reestimate is None else reestimate:
        plain = reestimate_batchnorm(
            plain,
            data,
            data_section=recipe.data,
            training=recipe.training_of(recipe.students[name]),
            seed=derive_seed("student", recipe.seed, "batchnorm"),
            accelerator=accelerator,
        )
    return plain.eval()
