"""What became of a run: metrics of every network in it."""

import dataclasses
import math
import platform
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

import edc
from edc import metrics
from edc.batch_ensemble import ensemble_size_of
from edc.data import DataSet
from edc.machine import cpu_name
from edc.member_forms import MemberForm, form_of
from edc.metrics import Metrics
from edc.networks import count_parameters
from edc.predict import labels_of, predict_logits
from edc.recipe import Recipe
from edc.run import RunFolder
from edc.student import deployable, fold_student
from edc.teacher import TeacherEnsemble

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
) -> dict[str, Any]:
    """Returns the document of summary.json: a row for each teacher, the ensemble, each student unfolded and folded.

    `fold_choice` holds the validation NLL of both folds of each student with members, so that the choice between them
    is a measurement, and never one on test images. `member_form` of a student's rows is the form it was trained in.
    """
    labels = labels_of(data.test), labels_of(data.validation)

    def predict(network: nn.Module) -> tuple[LogProbs, LogProbs]:
        """Returns log-probabilities (M, N, K) on test and on validation images."""
        both = (
            predict_logits(network, split, recipe.data, recipe.training, accelerator)
            for split in (data.test, data.validation)
        )
        test, validation = (metrics.log_probs_from_logits(logits) for logits in both)
        return test, validation

    per_teacher = [predict(teacher) for teacher in teachers.members]
    test, validation = (np.concatenate([pair[side] for pair in per_teacher]) for side in (0, 1))
    nlls = metrics.ensemble_nll_by_size(test, labels[0], validation_log_probs=validation, validation_labels=labels[1])
    rows = []

    def add(
        subject: str,
        kind: str,
        test: LogProbs,
        validation: LogProbs,
        *,
        parameters: int,
        forwards: int,
        form: MemberForm | None = None,
    ) -> None:
        result = metrics.evaluate(
            metrics.ensemble_log_probs(test),
            labels[0],
            validation_log_probs=metrics.ensemble_log_probs(validation),
            validation_labels=labels[1],
        )
        result = dataclasses.replace(
            result,
            dee=metrics.dee(result.calibrated.nll, nlls),
            diversity=metrics.diversity(test) if len(test) > 1 else None,
        )
        row = {"subject": subject, "kind": kind, "parameters": parameters, "forwards": forwards, **_plain(result)}
        rows.append(row if form is None else row | {"member_form": form})

    sizes = [count_parameters(teacher) for teacher in teachers.members]
    sizes = sizes if any(sizes) else [sum(p.numel() for p in teacher.parameters()) for teacher in teachers.members]
    for m, (teacher_test, teacher_validation) in enumerate(per_teacher):
        add(f"teacher {m}", "teacher", teacher_test, teacher_validation, parameters=sizes[m], forwards=1)
    add("ensemble", "ensemble", test, validation, parameters=sum(sizes), forwards=len(sizes))
    fold_choice = {}
    for name, network in students.items():
        form = form_of(recipe, name, run=run)
        if ensemble_size_of(network) > 1:
            add(
                f"{name} (members)",
                "members",
                *predict(network),
                parameters=count_parameters(network),
                forwards=ensemble_size_of(network),
                form=form,
            )
            fold_choice[name] = {
                kind: _validation_nll(predict(fold_student(network, recipe, name, data, kind=kind))[1], labels[1])
                for kind in ("mean_weights", "mean_factors")
            }
        plain = deployable(network, recipe, name, data, accelerator=accelerator)
        add(name, "student", *predict(plain), parameters=count_parameters(plain), forwards=1, form=form)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "run": run.path.name,
        "recipe_sha256": recipe.digest(),
        "seed": recipe.seed,
        "deploy": recipe.deploy,
        "data": {
            "kind": recipe.data.kind,
            "train": len(data.train),
            "validation": len(data.validation),
            "test": len(data.test),
            "classes": list(data.class_names),
        },
        "ensemble_size": recipe.teachers.size,
        "ensemble_calibrated_nll_by_size": nlls,
        "fold_choice": fold_choice,
        "rows": rows,
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    """Returns the versions that a figure depends on."""
    return {"edc": edc.__version__, "torch": torch.__version__, "python": platform.python_version()}


def machine() -> dict[str, Any]:
    """Returns what the run was trained on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}


def _validation_nll(log_probs: LogProbs, labels: NDArray[np.int64]) -> float:
    return metrics.nll(metrics.ensemble_log_probs(log_probs), labels)


def _plain(result: Metrics) -> dict[str, Any]:
    """Returns metrics as JSON values; a DEE beyond its ends becomes a bound: "<1" or ">M" in words of its own field."""
    document = dataclasses.asdict(result)
    if result.dee is not None and (math.isinf(result.dee) or result.dee == 0):
        document["dee"] = None
        document["dee_bound"] = "above" if math.isinf(result.dee) else "below"
    return document
