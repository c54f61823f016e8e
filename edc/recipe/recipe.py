"""Recipes: what a run is, as frozen sections read from YAML.

A recipe says *what* (data, networks, schedule, method); command-line flags say *where* (folders, device). This module
must stay importable without torch, so that a mistake in a recipe is reported before anything heavy loads.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from edc.recipe.data_section import DataSection, Section, problems_with_extra
from edc.recipe.equal_cost import with_numbers_of_epochs
from edc.recipe.sections import ADDED_LATER, NetworkSection, StudentSection, TeachersSection, TrainingSection

__all__ = ["Recipe"]


BEST = "best"


class Recipe(Section):
    """A whole run. `students` maps names to students, and `deploy` says which of them `edc export` takes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    """Seed of the students; the teachers have their own in `teachers.seed`."""
    data: DataSection
    network: NetworkSection
    training: TrainingSection = TrainingSection()
    teachers: TeachersSection = TeachersSection()
    students: Annotated[dict[str, StudentSection], Field(min_length=1)]
    deploy: str = ""
    """A student's name, or `best`: the best of them on validation images, known when all are trained. (A student that
    is called best is meant by its name.) Unless given, the last student: recipes that name none stay what they were."""
    deploy_by: Literal["calibrated_nll", "accuracy"] | None = None
    """What `deploy: best` goes by, on validation images; `calibrated_nll` unless given."""

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("students"), dict):
            return value
        students, deploy = value["students"], value.get("deploy") or next(reversed(value["students"]), "")
        resolved = {**with_numbers_of_epochs(value), "deploy": deploy}
        if deploy == BEST and BEST not in students:
            resolved["deploy_by"] = value.get("deploy_by") or "calibrated_nll"
        return resolved

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if self.deploy not in self.students and not self.deploys_best:
            problems.append(
                f"deploy: {self.deploy!r} is not one of the students ({', '.join(self.students)}), nor {BEST!r}"
            )
        if self.deploy_by is not None and not self.deploys_best:
            problems.append(
                f"deploy_by: found {self.deploy_by!r}, which has no effect with deploy: {self.deploy}; leave it out, "
                f"or use deploy: {BEST}"
            )
        for name, student in self.students.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                problems.append(f"students.{name}: a student's name is made of letters, digits and . _ -")
            if student.perturbation in ("tdiv", "tdiv_sdiv") and self.teachers.size < 2:
                problems.append(
                    f"students.{name}.perturbation: {student.perturbation!r} needs a pair of teachers, "
                    f"but the ensemble has {self.teachers.size}; use 2 or more, or 'ods'"
                )
            if student.epochs is not None and student.epochs <= self.training.warmup_epochs:
                problems.append(
                    f"students.{name}.epochs: must be larger than training.warmup_epochs "
                    f"({self.training.warmup_epochs}), found {student.epochs}"
                )
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
        learns = {name: student.extra for name, student in self.students.items()}
        problems += problems_with_extra(self.data, batch_size=self.training.batch_size, learns=learns)
        if self.teachers.epochs is not None and self.teachers.epochs <= self.training.warmup_epochs:
            problems.append("teachers.epochs: must be larger than training.warmup_epochs")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @model_serializer(mode="wrap")
    def _without_what_came_later(self, to_document: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out what recipes of edc 0.1.0 did not have, where it is not used: their digests still hold."""
        document: dict[str, Any] = to_document(self)
        if self.deploy_by is None:
            document.pop("deploy_by", None)
        return document

    @property
    def deploys_best(self) -> bool:
        """Whether the student to be deployed is chosen when all are trained."""
        return self.deploy == BEST and BEST not in self.students

    def deploying(self, summary: Mapping[str, Any]) -> "Recipe":
        """Returns the recipe with the name of the student that was chosen: the one that the summary of its run has."""
        return self.model_copy(update={"deploy": summary["deploy"], "deploy_by": None}) if self.deploys_best else self

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

    def as_yaml(self) -> str:
        """Returns the resolved recipe as a run folder keeps it."""
        document = self.model_dump(mode="json", exclude_none=True)
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)

    def identity(self) -> dict[str, Any]:
        """Returns what identifies a run: the recipe without the data's place, the way it is fetched, and operation.

        Fields that may change in the middle of a run have their defaults, so that digests of older edcs still hold.
        """
        document = self.model_dump(mode="json")
        document["data"] = self.data.identity()
        document["training"]["checkpoint_every"] = TrainingSection.model_fields["checkpoint_every"].default
        for student in document["students"].values():
            for field in ADDED_LATER:
                if student[field] == StudentSection.model_fields[field].default:
                    del student[field]
        return document

    def digest(self) -> str:
        """Returns a SHA-256 of the recipe's identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
