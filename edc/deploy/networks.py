"""The networks that an artifact has files of, and what each file must compute: the student, and its ensemble."""

from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from edc.console import console
from edc.data import DataSet
from edc.deploy.ensemble import ensemble_network
from edc.deploy.fuse import fuse_batchnorm, scale_classifier, tempered_ensemble
from edc.deploy.onnx.from_network import fits_in_a_file
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.runs.networks import require_trained
from edc.runs.own_teachers import own_teachers_of
from edc.runs.rows import member_temperature, rows_by_subject
from edc.runs.student import deployable, load_student
from edc.subject import Subject
from edc.teachers.ensemble import load_teachers

__all__ = ["TOO_LARGE", "ExportedNetwork", "networks_of", "references_of"]

TOO_LARGE = "an ONNX file holds 2 GiB at most; its teachers are separate files, and take turns in a bench"


@dataclass(frozen=True)
class ExportedNetwork:
    """One network to be written: what its files must compute, and what is exported to compute it."""

    stem: str
    subject: Subject
    reference: nn.Module
    exported: nn.Module
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the run's table: on test images, without any temperature."""
    temperature: float = 1.0
    """What is computed into the files beyond the network of the run's table; 1: nothing."""


class _Tempered(nn.Module):
    """A network with its logits divided by a temperature: what a file with the temperature folded in must compute."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def networks_of(
    student: nn.Module,
    run: RunFolder,
    recipe: Recipe,
    summary: dict[str, Any],
    data: DataSet,
    *,
    fold_temperature: bool,
    baseline: bool = True,
) -> list[ExportedNetwork]:
    """Returns the student, then its baseline: each teacher and the ensemble merged into one graph.

    There is no baseline if a teacher cannot be written as ONNX (TorchScript, converted ONNX), because half a baseline
    would not be fair to the ensemble.
    """
    cpu, shape = Accelerator(cpu=True), data.image_shape
    folded = deployable(student, recipe, recipe.deploy, data, accelerator=cpu)
    rows, deployed = rows_by_subject(summary), Subject("student", name=recipe.deploy)
    row = rows[deployed]
    reference, exported, temperature = folded, fuse_batchnorm(folded, input_shape=shape).network, 1.0
    if fold_temperature:
        temperature = row["calibration_temperature"]
        reference = _Tempered(folded, temperature)
        exported = scale_classifier(exported, calibration_temperature=temperature, input_shape=shape)
    networks = [ExportedNetwork("student", deployed, reference, exported, _metrics(row), temperature)]
    if not baseline:
        return networks
    own = [one.network for one in own_teachers_of(recipe, data, run)]
    recipe = recipe if own else require_trained(run, recipe, data, range(recipe.teachers.size))
    teachers = list(load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=cpu, own=own).members)
    if fixed := [f"teacher {m}" for m, teacher in enumerate(teachers) if not getattr(teacher, "exportable", True)]:
        console.print(f"no baseline files: torch cannot write {', '.join(fixed)} as ONNX; bench runs them in torch")
        return networks
    fused = [fuse_batchnorm(teacher, input_shape=shape).network for teacher in teachers]
    for m, teacher in enumerate(teachers):
        subject = Subject("teacher", member=m)
        networks.append(ExportedNetwork(f"baseline/teacher_{m}", subject, teacher, fused[m], _metrics(rows[subject])))
    by_size = summary["ensemble_calibrated_nll_by_size"]  # what a DEE is read off
    ensemble = Subject("ensemble", ensemble_form="merged")
    known = _metrics(rows[ensemble.network])
    known |= {f"calibrated_nll_of_{m}": nll for m, nll in enumerate(by_size, start=1)}
    temperature = member_temperature(rows[ensemble.network])
    merged = ensemble_network(teachers, temperature=temperature)
    merged_fused = tempered_ensemble(fused, temperature, input_shape=shape)
    if not fits_in_a_file(merged_fused):
        console.print(f"no merged ensemble: {TOO_LARGE}", highlight=False)
        return networks
    return [*networks, ExportedNetwork("baseline/ensemble", ensemble, merged, merged_fused, known, temperature)]


def references_of(
    run: RunFolder, recipe: Recipe, data: DataSet, *, fold_temperature: bool, baseline: bool
) -> dict[tuple[str, int | None], nn.Module]:
    """Returns the torch network that each file of an artifact must compute, by the file's role and member."""
    summary = run.summary()
    student = load_student(recipe, recipe.deploy, data, run=run)
    networks = networks_of(student, run, recipe, summary, data, fold_temperature=fold_temperature, baseline=baseline)
    return {(network.subject.role, network.subject.member): network.reference for network in networks}


def _metrics(row: dict[str, Any]) -> dict[str, float]:
    calibrated = {f"calibrated_{name}": value for name, value in row["calibrated"].items()}
    validation = {"validation_acc": row["validation"]["acc"]} if row.get("validation") else {}
    return {"parameters": row["parameters"], **row["raw"], **calibrated, **validation}
