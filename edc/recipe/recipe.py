"""Recipes: what a run is, as frozen sections read from YAML.

A recipe says *what* (data, networks, schedule, method); command-line flags say *where* (folders, device). This module
must stay importable without torch, so that a mistake in a recipe is reported before anything heavy loads.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, model_validator

from edc.recipe.data_section import DataSection, Section, problems_with_extra
from edc.recipe.equal_cost import with_numbers_of_epochs
from edc.recipe.network_section import NetworkSection
from edc.recipe.sections import ADDED_LATER, StudentSection
from edc.recipe.teachers_section import TeachersSection
from edc.recipe.training_section import OPERATION, TrainingSection

__all__ = ["BestBy", "Recipe"]


BEST = "best"
BestBy = Literal["calibrated_nll", "accuracy"]


class Recipe(Section):
    """A whole run. `students` maps names to students, and `deploy` says which of them `edc export` takes."""

    later_than_first: ClassVar[tuple[str, ...]] = ("deploy_by",)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    seed: int = 0
    """Seed of the students; the teachers have their own in `teachers.seed`."""
    data: DataSection
    network: NetworkSection
    training: TrainingSection = TrainingSection()
    teachers: TeachersSection = TeachersSection()
    students: Annotated[dict[str, StudentSection], Field(min_length=1)]
    deploy: str = ""
    """A student's name, or `best`: the best student on validation images, known when all are trained. (If a
    student is called best, that one is meant.) Default: the last student, so that older recipes keep their meaning."""
    deploy_by: BestBy | None = None
    """The measure on validation images of each student's best epoch, of its candidates (`choose`), and of
    `deploy: best`. `calibrated_nll` unless given: by accuracy, chance decides between two epochs or candidates."""

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
        for name, student in self.students.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                problems.append(f"students.{name}: a student's name is made of letters, digits and . _ -")
            if student.perturbation in ("tdiv", "tdiv_sdiv") and self.teachers.size < 2:
                problems.append(
                    f"students.{name}.perturbation: {student.perturbation!r} needs a pair of teachers, "
                    f"but the ensemble has {self.teachers.size}; use 2 or more, or 'ods'"
                )
            problems += self._problems_of_schedule(student, f"students.{name}")
            problems += self._problems_of_start(student, f"students.{name}")
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
        starts = {"network.weights": (self.network, [self.network_of(student) for student in self.students.values()])}
        if self.teachers.network:
            starts["teachers.network.weights"] = (self.teachers.network, [])
        for field, (network, others) in starts.items():
            if network.weights and not any(each.start_file for each in (network, *others)):
                found = f"found {network.weights!r}, which has no effect, because nothing starts from a file"
                problems.append(f"{field}: {found}; leave it out")
        learns = {name: student.extra for name, student in self.students.items()}
        sizes = [self.training_of(student).batch_size for student in self.students.values() if student.extra]
        smallest = min(sizes, default=self.training.batch_size)
        problems += problems_with_extra(self.data, batch_size=smallest, learns=learns)
        problems += self._problems_of_schedule(self.teachers, "teachers")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_schedule(self, section: "TeachersSection | StudentSection", field: str) -> list[str]:
        training = self.training_of(section)
        if training.warmup_epochs < training.epochs:
            return []
        if section.training is None:
            found = f"({training.warmup_epochs}), found {training.epochs}"
            return [f"{field}.epochs: must be larger than training.warmup_epochs {found}"]
        found = f"warmup_epochs ({training.warmup_epochs}) must be smaller than epochs ({training.epochs})"
        return [f"{field}.training: {found}"]

    def _problems_of_start(self, student: "StudentSection", field: str) -> list[str]:
        network, where = self.network_of(student), self.start_field(student, field)
        if network.pretrained and not network.has_library:
            found = f"{where}: found 'pretrained', but {network.name} comes without weights"
            return [f"{found}; torchvision/ and timm/ networks have some"]
        own = [checkpoint.network or self.teacher_network for checkpoint in self.teachers.checkpoints]
        others = sorted({teacher.name for teacher in own or [self.teacher_network]} - {network.name})
        if network.start == "teacher" and others:
            found = f"{where}: found 'teacher', but the student is {network.name} and teachers are {', '.join(others)}"
            return [f"{found}; a student starts from teachers of its own network, all of them"]
        return []

    @property
    def best_by(self) -> BestBy:
        """The measure on validation images of epochs, candidates and students."""
        return self.deploy_by or "calibrated_nll"

    @property
    def deploys_best(self) -> bool:
        """Whether the student to be deployed is chosen when all are trained."""
        return self.deploy == BEST and BEST not in self.students

    def deploying(self, summary: Mapping[str, Any]) -> "Recipe":
        """Returns the recipe with the name of the chosen student, from the summary of its run."""
        return self.deploying_student(summary["deploy"]) if self.deploys_best else self

    def deploying_student(self, name: str) -> "Recipe":
        """Returns the recipe with `name` as the student to be deployed, whoever is the best."""
        return self.model_copy(update={"deploy": name, "deploy_by": None})

    @property
    def teacher_network(self) -> NetworkSection:
        network = self.teachers.network or self.network
        return network.bare() if network.start == "teacher" else network

    def network_of(self, student: StudentSection) -> NetworkSection:
        """Returns the network of `student`, with the start of that student."""
        return self.network.started(student.start)

    @property
    def teacher_start_field(self) -> str:
        """The field that says what teachers start from."""
        return "teachers.network.start" if self.teachers.network else "network.start"

    @staticmethod
    def start_field(student: StudentSection, field: str) -> str:
        """Returns the field that says what `student`, the section at `field`, starts from."""
        return "network.start" if student.start is None else f"{field}.start"

    def training_of(self, section: TeachersSection | StudentSection) -> TrainingSection:
        """Returns the schedule of `section`: the shared one, with the overrides of `section`."""
        changes = section.training.given() if section.training else {}
        if section.epochs:
            changes["epochs"] = section.epochs
        return self.training.model_copy(update=changes)

    def shared_batches(self, section: TeachersSection | StudentSection) -> float:
        """Returns how many batches of the shared size a batch of `section` is: costs are counted in the former."""
        return self.training_of(section).batch_size / self.training.batch_size

    def batch_field(self, section: TeachersSection | StudentSection, field: str) -> str:
        """Returns the field that gives the batch size of `section`, the one at `field`."""
        own = section.training and (section.training.batch_size or section.training.micro_batch_size)
        return f"{field}.training" if own else "training"

    def operated_as(self, other: "Recipe") -> "Recipe":
        """Returns this recipe with the fields of `other` that may change during a run: they do not change results."""
        training = self.training.model_copy(update=other.training.model_dump(include=set(OPERATION)))
        checkpoints = tuple(
            mine.model_copy(update={"allow_weak": theirs.allow_weak, "trust": theirs.trust})
            for mine, theirs in zip(self.teachers.checkpoints, other.teachers.checkpoints, strict=True)
        )
        teachers = self.teachers.model_copy(update={"checkpoints": checkpoints})
        update = {"data": self.data.operated_as(other.data), "training": training, "teachers": teachers}
        return self.model_copy(update=update)

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
        del document["training"]["deterministic"]  # the first edcs had no such field
        for checkpoint in document["teachers"]["checkpoints"]:
            for permission in ("allow_weak", "trust"):  # whether a run goes on is nothing that it is
                checkpoint.pop(permission, None)
        defaults = StudentSection().model_dump(mode="json")
        for student in document["students"].values():
            for field in ADDED_LATER:
                if student[field] == defaults[field]:
                    del student[field]
        return document

    def digest(self) -> str:
        """Returns a SHA-256 of the recipe's identity."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
