"""The summary of a run: metrics of every network in it."""

import dataclasses
import math
import platform
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

import edc
from edc import metrics
from edc.data import DataSet, Images, steps_per_epoch
from edc.method.batch_ensemble import ensemble_size_of
from edc.method.kinds import FoldKind, MemberForm
from edc.metrics import Labels, Metrics
from edc.networks import count_parameters
from edc.recipe import Recipe
from edc.recipe.equal_cost import units_per_step
from edc.runs.choice import kept_choice, with_own_statistics
from edc.runs.documents.by_class import SavedByClass
from edc.runs.folder import RunFolder
from edc.runs.per_image import PerImage, per_image_of, write_per_image
from edc.runs.rows import best_teacher, deployed_student, identity_of, rows_by_subject
from edc.runs.student import deployable, form_of, learned_by
from edc.subject import Subject
from edc.system.machine import cpu_name
from edc.teachers.ensemble import TeacherEnsemble
from edc.teachers.roll_call.call import RollCall
from edc.train.distributed import by_main
from edc.train.evaluate import labels_of, predict_logits

__all__ = ["summarise"]

SCHEMA_VERSION = 1
LogProbs = NDArray[np.float64]


def summarise(
    recipe: Recipe,
    data: DataSet,
    teachers: TeacherEnsemble,
    students: dict[str, nn.Module],
    *,
    run: RunFolder,
    accelerator: Accelerator,
    roll: RollCall | None = None,
) -> dict[str, Any]:
    """Returns the document of summary.json: a row for each teacher, the ensemble, each student unfolded and folded.

    `fold_choice` holds the validation NLL of both folds of each student with members, so that the choice between them
    is a measurement, and never one on test images; both have the BatchNorm statistics of the deployed one. `chosen`
    holds what they have chosen of each student that has several candidates. `member_form` of a student's rows is the
    form it was trained in. `roll_call` is how the teachers were read and how right they were before anything was
    trained.

    Args:
        roll: of the teachers; its answers to validation images are not computed again.
    """
    test_labels, validation_labels = labels_of(data.test), labels_of(data.validation)

    def log_probs(network: nn.Module, split: Images) -> LogProbs:
        return metrics.log_probs_from_logits(predict_logits(network, split, recipe.data, recipe.training, accelerator))

    def predict(network: nn.Module, known: NDArray[np.float32] | None = None) -> Predictions:
        validation = log_probs(network, data.validation) if known is None else metrics.log_probs_from_logits(known)
        return Predictions(log_probs(network, data.test), validation)

    known = (roll and roll.logits) or [None] * len(teachers)
    per_teacher = [predict(teacher, logits) for teacher, logits in zip(teachers.members, known, strict=True)]
    ensemble = Predictions(
        np.concatenate([one.test for one in per_teacher]), np.concatenate([one.validation for one in per_teacher])
    )
    nlls = metrics.ensemble_nll_by_size(
        ensemble.test, test_labels, validation_log_probs=ensemble.validation, validation_labels=validation_labels
    )
    results: dict[Subject, PerImage] = {}
    to_row = partial(_row, test_labels=test_labels, validation_labels=validation_labels, nlls=nlls, results=results)
    sizes = [count_parameters(teacher) for teacher in teachers.members]
    rows = [
        to_row(Subject("teacher", member=m), predictions, parameters=sizes[m])
        for m, predictions in enumerate(per_teacher)
    ]
    rows.append(to_row(Subject("ensemble"), ensemble, parameters=sum(sizes)))
    fold_choice: dict[str, dict[FoldKind, float]] = {}
    for name, network in students.items():
        of_student = partial(to_row, form=form_of(recipe, name, run=run))
        if ensemble_size_of(network) > 1:
            members = Subject("members", name=name)
            own = with_own_statistics(network, run.student_path(name))
            rows.append(of_student(members, predict(own), parameters=count_parameters(own)))
            folds = {
                kind: deployable(network, recipe, name, data, kind=kind, accelerator=accelerator)
                for kind in get_args(FoldKind)
            }
            fold_choice[name] = {
                kind: metrics.nll(metrics.ensemble_log_probs(predict(plain).validation), validation_labels)
                for kind, plain in folds.items()
            }
        plain = deployable(network, recipe, name, data, accelerator=accelerator)
        row = of_student(Subject("student", name=name), predict(plain), parameters=count_parameters(plain))
        rows.append(row | {"training": _training(recipe, name, data)} | _start(recipe, name, rows))
    by_main(lambda: write_per_image(run, results, test_labels), accelerator)
    choices = {name: kept_choice(run.student_path(name)) for name in students}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "run": run.path.name,
        "recipe_sha256": recipe.digest(),
        "seed": recipe.seed,
        "deploy": deployed_student(recipe, rows),
        "data": {"kind": recipe.data.kind, **_about(data, test_labels)},
        "ensemble_size": recipe.teachers.size,
        "ensemble_calibrated_nll_by_size": nlls,
        **({"roll_call": roll.document()} if roll else {}),
        "fold_choice": fold_choice,
        "chosen": {name: choice.model_dump(mode="json") for name, choice in choices.items() if choice is not None},
        "rows": rows,
        "versions": versions(),
        "machine": machine(accelerator.device),
    }


def _about(data: DataSet, test_labels: Labels) -> dict[str, Any]:
    """Returns how many images the splits have, their classes, and the share of the most frequent one in the tests."""
    most_frequent, share = metrics.majority_of(test_labels, data.class_names)
    return {
        "train": len(data.train),
        "validation": len(data.validation),
        "test": len(data.test),
        **({"extra": len(data.extra)} if data.extra else {}),
        "classes": list(data.class_names),
        "majority": {"class": most_frequent, "share": share},
    }


@dataclass(frozen=True)
class Predictions:
    """Log-probabilities (M, N, K) of a network's M members on the test and on the validation images."""

    test: LogProbs
    validation: LogProbs


def _row(
    subject: Subject,
    predictions: Predictions,
    *,
    parameters: int,
    form: MemberForm | None = None,
    test_labels: Labels,
    validation_labels: Labels,
    nlls: list[float],
    results: dict[Subject, PerImage],
) -> dict[str, Any]:
    """Returns the metrics of one network, and puts its results on each test image into `results`.

    Its DEE is read from `nlls`, those of ensembles of 1 to M teachers.
    """
    num_members = len(predictions.test)
    result = metrics.evaluate(
        predictions.test,
        test_labels,
        validation_log_probs=predictions.validation,
        validation_labels=validation_labels,
    )
    result = dataclasses.replace(
        result,
        dee=metrics.dee(result.calibrated.nll, nlls),
        diversity=metrics.diversity(predictions.test) if num_members > 1 else None,
    )
    row = {**identity_of(subject), "parameters": parameters, "forwards": num_members, **_plain(result)}
    calibrated, validation = (
        metrics.calibrated_log_probs(
            members, result.calibration_temperature, member_temperature=result.member_temperature
        )
        for members in (predictions.test, predictions.validation)
    )
    answers = metrics.ensemble_log_probs(predictions.test)
    results[subject] = per_image_of(answers, calibrated, test_labels)
    found = metrics.by_class(answers.argmax(1), test_labels, num_classes=answers.shape[1])
    row["by_class"] = SavedByClass(**dataclasses.asdict(found)).model_dump(mode="json")
    row["validation"] = {
        "acc": result.validation_acc,
        "nll": result.validation_nll,
        "calibrated_nll": metrics.nll(validation, validation_labels),
    }
    return row if form is None else row | {"member_form": form}


def _training(recipe: Recipe, name: str, data: DataSet) -> dict[str, int]:
    """Returns how long a student trained; `units` are forward passes of one network on a batch of the shared size."""
    section, training = recipe.students[name], recipe.training_of(recipe.students[name])
    num_steps = training.epochs * steps_per_epoch(data.train, training.batch_size, learned_by(section, data).extra)
    units = units_per_step(section, recipe.teachers.size, has_extra=data.extra is not None)
    in_all = round(units * num_steps * recipe.shared_batches(section))
    return {"epochs": training.epochs, "steps": num_steps, "units_per_step": units, "units": in_all}


def _start(recipe: Recipe, name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns which teacher the student started from, by number, if it was one."""
    network = recipe.network_of(recipe.students[name])
    if network.start == "teacher":
        best = best_teacher(rows_by_subject({"rows": rows}))
        return {} if best is None else {"started_from_teacher": best.member}
    files = [checkpoint.file for checkpoint in recipe.teachers.checkpoints]
    return {"started_from_teacher": files.index(network.start_file)} if network.start_file in files else {}


def versions() -> dict[str, str]:
    """Returns the versions that a figure depends on."""
    return {"edc": edc.__version__, "torch": torch.__version__, "python": platform.python_version()}


def machine(device: torch.device) -> dict[str, Any]:
    """Returns what the run was trained on: a GPU only where `device` is one, whatever else the machine has."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}


def _plain(result: Metrics) -> dict[str, Any]:
    """Returns metrics as JSON values; a DEE beyond its ends becomes a bound: "<1" or ">M" in words of its own field."""
    document = dataclasses.asdict(result)
    if result.dee is not None and (math.isinf(result.dee) or result.dee == 0):
        document["dee"] = None
        document["dee_bound"] = "above" if math.isinf(result.dee) else "below"
    return document
