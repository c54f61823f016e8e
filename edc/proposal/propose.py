"""From a folder of images and checkpoints to a recipe: the named steps of `edc init`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from pydantic import ValidationError

from edc.console import console
from edc.data import load_data
from edc.errors import DataError, EdcError, RecipeError, edc_command, first_line
from edc.networks import build_network, network_for
from edc.proposal.budget import Budget, TimedNetwork, chosen, in_words, timed_networks
from edc.proposal.checkpoints_found import (
    CheckpointFound,
    files_of,
    first_look,
    identified,
    require_known_files,
    require_one_used,
    roll_called,
)
from edc.proposal.data_found import DataFound, SplitFound, is_held_out, look_at_data, of_lists, place_and_kind, sides_of
from edc.proposal.naming import name_of
from edc.proposal.network_choice import network_and_start
from edc.proposal.recipe_text import Choices, recipe_text
from edc.recipe import DataSection, NetworkSection, Recipe
from edc.recipe.loading import recipe_from_document
from edc.runs.distill import require_trainable
from edc.runs.start import require_teachers_to_start_from
from edc.system.documents import yaml_from_text
from edc.teachers.ensemble import load_own_teachers
from edc.teachers.roll_call.mirrored import Mirrored
from edc.train.evaluate import norms_of

__all__ = ["Asked", "Proposal", "propose"]

FEW_VALIDATION = 100
"""Images held out of the training split are as many, if a tenth of it would be fewer and a fifth is not."""
SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
"""Sizes of images that are proposed where no checkpoint says one."""


@dataclass(frozen=True)
class Asked:
    """What the user says."""

    images: Path
    checkpoints: tuple[Path, ...] = ()
    networks: tuple[str, ...] = ()
    """NAME for every checkpoint, or FILE=NAME for one."""
    student: str | None = None
    image_size: int | None = None
    extra: Path | None = None
    """A folder of images without labels."""
    trust: bool = False
    budget: Budget | None = None
    """What the student may take; None: nothing is timed."""
    out: Path | None = None
    """The recipe's file, after which the run is called; None: after the folder of images."""


@dataclass(frozen=True)
class Proposal:
    """What was found, and the recipe."""

    data: DataFound
    checkpoints: tuple[CheckpointFound, ...]
    recipe: Recipe
    text: str
    timed: tuple[TimedNetwork, ...] = ()
    """The networks that were timed for a budget, the fastest first."""
    warnings: tuple[str, ...] = ()
    """What stands at the head of the recipe, too."""


def propose(asked: Asked, *, accelerator: Accelerator) -> Proposal:
    """Returns a recipe that `edc distill --dry-run` accepts on this machine, with what it is based on.

    Raises:
        DataError: no data set, or validation or test images that cannot be read.
        CheckpointError: no such checkpoints, or none of them can be used.
        RecipeError: a network that does not exist, or does not take the images.
    """
    files = files_of(asked.checkpoints)
    require_known_files(asked.networks, files)
    for name in [text.rpartition("=")[2] for text in asked.networks] + [asked.student or "wrn10x1"]:
        _require_network(name)
    looks = [first_look(file) for file in files]
    section, reasons = _data_section(asked, [look for look, _ in looks])
    found = look_at_data(section)
    section, reasons = _allowing_damage(section, reasons, found)
    known: list[str] = []
    checkpoints = []
    for look, document in looks:
        one = identified(look, document, found.data, asked=asked.networks, known=known, trust=asked.trust)
        known += [one.section.network.name] if one.section and one.section.network else []
        checkpoints.append(one)
    del looks  # the weights
    checkpoints, mirrored = roll_called(checkpoints, section, found.data, accelerator=accelerator)
    require_one_used(checkpoints)
    section, reasons = _mirroring_or_not(section, reasons, mirrored)
    student = (asked.student, "the student, as --student says") if asked.student else None
    timed: list[TimedNetwork] = []
    if asked.budget:
        own = [one.section.network.name for one in checkpoints if one.section and one.section.network]
        timed = timed_networks(own, found.data, asked.budget)
        within = chosen(timed, asked.budget)
        student = within.name, in_words(timed, within, asked.budget)
    choices = _choices(asked, student, section, found, checkpoints, reasons)
    recipe, text = _accepted(asked, section, found, checkpoints, choices, accelerator)
    warnings = tuple(_warnings(asked, found))
    return Proposal(replace(found, section=section), tuple(checkpoints), recipe, text, tuple(timed), warnings)


def _require_network(name: str) -> None:
    """Raises `RecipeError` if a name of the user's is no network's."""
    try:
        section = NetworkSection(name=name)
    except ValidationError as error:
        raise RecipeError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    build_network(section, num_classes=2, image_shape=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)


def _data_section(asked: Asked, looks: Sequence[CheckpointFound]) -> tuple[DataSection, dict[str, str]]:
    """Returns the section for the images, and the reason for each of its fields."""
    folder, kind = place_and_kind(asked.images)
    reasons = {} if folder.is_absolute() else {"root": "seen from where edc is called, as all paths here"}
    base: dict[str, Any] = {"kind": kind, "root": folder}
    with console.capture():  # what it says, the look at this size says again
        try:
            data = load_data(DataSection(**base, image_size=SIDES[0]))
        except DataError as error:
            raise DataError(f"{error}{of_lists(folder)}") from None
    sides = sides_of(data.train)
    median = sides[len(sides) // 2] if sides else 224
    said = sorted({look.said.size for look in looks if look.said.size})
    if asked.image_size:
        size, why = asked.image_size, "as --image-size says"
    elif said:
        size, why = said[-1], "as a checkpoint says"
    else:
        size = max([side for side in SIDES if side <= median], default=SIDES[0])
        why = f"the median shorter side is {median} px; no checkpoint says a size, --image-size does"
    num_labelled = len(data.train) + len(data.validation)
    if is_held_out(kind, data) and len(data.validation) < FEW_VALIDATION:
        base["validation"] = min(num_labelled // 5, FEW_VALIDATION)
        reasons["validation"] = f"held out of {num_labelled} training images: a tenth would say little"
    base["augmentation"] = "resized_crop_flip" if size >= 96 else "crop_flip"
    reasons |= {"image_size": why, "augmentation": "leave out flips where left and right differ in meaning"}
    if asked.extra:
        where, of_kind = place_and_kind(asked.extra)
        base["extra"] = {"kind": of_kind, "root": where}
    return DataSection(**base, image_size=size), reasons


def _mirroring_or_not(
    section: DataSection, reasons: dict[str, str], mirrored: Mirrored | None
) -> tuple[DataSection, dict[str, str]]:
    """Returns the section that mirrors images only where the teachers know mirrored ones."""
    if mirrored is None:
        return section, reasons
    if not mirrored.worse:
        return section, reasons | {"augmentation": f"{mirrored.figures}; {reasons['augmentation']}"}
    section = section.model_copy(update={"augmentation": mirrored.augmentation_without})
    return section, reasons | {"augmentation": f"{mirrored.figures}: none are mirrored"}


def _allowing_damage(
    section: DataSection, reasons: dict[str, str], found: DataFound
) -> tuple[DataSection, dict[str, str]]:
    """Returns the section that lets as many training images be unreadable as are."""
    train = found.splits[0]
    if train.unreadable:
        why = f"{len(train.unreadable)} of {train.num_read} training images cannot be read; others stand in for them"
        section = section.model_copy(update={"max_bad_fraction": _allowed(train)})
        reasons = reasons | {"max_bad_fraction": why}
    if found.extra is None:
        return section, reasons
    why = f"{found.extra.num_images:,} images without labels: students learn the teachers' answers to them, too"
    if found.extra.unreadable:
        why += f"; {len(found.extra.unreadable)} of {found.extra.num_read} cannot be read"
        extra = (section.extra[0].model_copy(update={"max_bad_fraction": _allowed(found.extra)}),)
        section = section.model_copy(update={"extra": extra})
    return section, reasons | {"extra": why}


def _allowed(split: SplitFound) -> float:
    """Returns the share of images that may be unreadable, half as many more as are."""
    return min(0.999, round(1.5 * len(split.unreadable) / split.num_read + 0.0005, 3))


def _choices(
    asked: Asked,
    student: tuple[str, str] | None,
    section: DataSection,
    found: DataFound,
    checkpoints: Sequence[CheckpointFound],
    reasons: dict[str, str],
) -> Choices:
    used = [one for one in checkpoints if not one.why_not and one.section]
    network, why_network = network_and_start(student, found.data, used)
    return Choices(
        name=name_of(asked.out.with_suffix("") if asked.out else asked.images),
        network=network,
        why_network=why_network,
        has_batchnorm=bool(norms_of(network_for(network.bare(), found.data))),
        num_labelled=len(found.data.train),
        num_extra=len(found.data.extra) if found.data.extra else 0,
        several=len(used) != 1,
        reasons_of_data=reasons,
    )


def _accepted(
    asked: Asked,
    section: DataSection,
    found: DataFound,
    checkpoints: Sequence[CheckpointFound],
    choices: Choices,
    accelerator: Accelerator,
) -> tuple[Recipe, str]:
    """Returns the recipe, tried as a dry run tries it, and its text; without what network or data do not allow."""
    with_members, starts = choices.several, choices.network.start is not None
    ways = dict.fromkeys([(with_members, starts), (False, starts), (with_members, False), (False, False)])
    refused: list[EdcError] = []
    for way in ways:
        one = _simpler(choices, *way, because=first_line(refused[-1]) if refused else "")
        text = recipe_text(section, checkpoints, one, head=_head(asked, found, one))
        recipe = recipe_from_document(yaml_from_text(text), source="the proposed recipe")
        try:
            with console.capture():
                require_trainable(recipe, found.data, accelerator=accelerator)
            own = [teacher.network for teacher in load_own_teachers(recipe, found.data)]
            require_teachers_to_start_from(recipe, found.data, own)
        except EdcError as error:
            refused.append(error)
            continue
        return recipe, text
    raise refused[-1]


def _simpler(choices: Choices, with_members: bool, starts: bool, *, because: str) -> Choices:
    """Returns the choices without a student with members, or without a start, and why, where they had them."""
    if not with_members:
        choices = replace(choices, why_no_members=because)
    if choices.network.start and not starts:
        why = f"the student, from random weights: {because}"
        choices = replace(choices, network=NetworkSection(name=choices.network.name), why_network=why)
    return choices


def _head(asked: Asked, found: DataFound, choices: Choices) -> list[str]:
    """Returns the comments at the head of the recipe."""
    file = asked.out or f"{choices.name}.yaml"
    lines = [
        f"Proposed by edc init for {found.section.root}; every line may be changed.",
        "",
        f"launch   {edc_command('distill', file)}   (first with --dry-run: the cost on this machine)",
        "",
    ]
    for split in found.splits:
        lines.append(f"{split.name}: {split.num_images:,} images; always the most frequent class is right on "
                     f"{100 * split.majority:.1f} %")  # fmt: skip
    return lines + [f"warning: {warning}" for warning in _warnings(asked, found)]


def _warnings(asked: Asked, found: DataFound) -> list[str]:
    warnings = [
        f"{num:,} of {looked_at:,} images looked at are in both {pair}, which flatters all figures"
        for pair, (num, looked_at) in found.duplicates.items()
        if num
    ]
    if asked.checkpoints and is_held_out(found.section.kind, found.data):
        warnings.append(
            "validation images are held out of train; if your checkpoints learned from them, they look better "
            "on them than they are: a split of its own is better"
        )
    return warnings
