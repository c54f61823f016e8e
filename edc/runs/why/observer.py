"""What a student has in common with its ensemble, epoch by epoch, on samples of images.

    agreement_*           share of images on which the student and the ensemble predict the same class
    kl_*                  KL(ensemble || student), nats; the ensemble is the mean of its teachers' probabilities
    teachers_kl_*         mean KL over ordered pairs of teachers, and so members_kl_* of members
    members_agreement_*   agreement of a member with the ensemble, the mean over members
    teachers_disagree_*   share of images on which not all teachers predict the same class

The first two are of the deployed (folded) network, on images of the training, extra and validation split. The others
are of training images: `clean` as they are, `moved` by the student's perturbation. There each image has its own pair
of teachers, so that all pairs have their part. No view or augmentation changes the images.

Members that agree with the ensemble while their fold does not have drifted apart, and what is deployed is worth
nothing: that is said at once, not after hours.

Teachers and samples stay, so only the student is asked again after an epoch. `epochs_observed` leaves out epochs where
that would take more than a few per cent of the training.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from statistics import fmean

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edc.console import console
from edc.data import DataSet, Images, steps_per_epoch
from edc.method.batch_ensemble import ensemble_size_of, member_logits
from edc.method.losses import wide
from edc.method.perturb import perturb
from edc.method.step import draw_owners
from edc.metrics.agreement import agreement, disagreement, mean_kl, mean_pairwise_kl
from edc.metrics.ensemble import ensemble_log_probs
from edc.recipe import StudentSection, TrainingSection
from edc.recipe.equal_cost import units_of_perturbation, units_per_step
from edc.recipe.sections import PAIRED
from edc.runs.why.sample import Array, Asked, Sample, ask, read_sample
from edc.seeding import generator_for
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.placement import autocast

__all__ = ["NUM_IMAGES", "Observer", "epochs_observed"]

NUM_IMAGES = 256
"""Images of each split that are looked at, at most."""
MOST_OF_TRAINING = 0.03
"""Share of the training's forward passes that the looks may add, but for the first, the last, and the teachers'."""
LEAST_APART = 0.2
"""How much less than a member a fold agrees with the ensemble where members have drifted apart, and half as much."""


class Observer:
    """Looks at one student in training; the same figures whether the training was stopped, on any number of processes.

    Args:
        data: what the student learns from.
        name: the student's, in a warning.
        plain_of: returns the network that the student is deployed as.
    """

    def __init__(
        self,
        section: StudentSection,
        data: DataSet,
        teachers: TeacherEnsemble,
        *,
        name: str = "the student",
        plain_of: Callable[[nn.Module], nn.Module],
        training: TrainingSection,
        num_workers: int,
        accelerator: Accelerator,
    ) -> None:
        self.name = name
        self.section, self.data, self.teachers, self.plain_of = section, data, teachers, plain_of
        self.training, self.num_workers, self.accelerator = training, num_workers, accelerator
        self._has_warned = False

    @cached_property
    def epochs(self) -> frozenset[int]:
        size = len(self.teachers)
        return epochs_observed(self.section, self.data, training=self.training, ensemble_size=size)

    def __call__(self, network: nn.Module, epoch: int) -> dict[str, float]:
        """Returns the figures after `epoch`, none if it is left out. `network` is in eval mode afterwards."""
        if epoch not in self.epochs:
            return {}
        found: dict[str, float] = {}
        # Other numbers of rows than in training: compiling the networks again for them would take minutes.
        with torch.compiler.set_stance("force_eager") if self.training.compile else nullcontext():
            plain = self.plain_of(network).eval()
            network.eval()
            for name, sample in self._samples.items():
                student = self._ask(lambda images, _: wide(plain(images))[None], sample)[0]
                ensemble = ensemble_log_probs(self._teachers_on_samples[name])
                found[f"agreement_{name}"] = agreement(ensemble, student)
                found[f"kl_{name}"] = mean_kl(ensemble, student)
            found |= self._diversity(network)
        self._warn_of_members_apart(found, epoch)
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def _diversity(self, network: nn.Module) -> dict[str, float]:
        """Returns how far apart teachers and members are, on clean and on moved training images."""
        num_teachers, sample = len(self.teachers), self._samples["train"]
        has_members = ensemble_size_of(network) > 1
        groups: dict[str, tuple[Array, Array | None]] = {"clean": (self._teachers_on_samples["train"], None)}
        if has_members:
            members_on_clean = self._ask(lambda images, _: wide(member_logits(network, images)), sample)
            groups["clean"] = self._teachers_on_samples["train"], members_on_clean

        def asked(images: Tensor, rows: slice) -> Tensor:
            moved = self._moved(images, network, rows, sample.num_images)
            answers = [wide(self.teachers(moved))] + [wide(member_logits(network, moved))] * has_members
            return torch.cat(answers)

        if self.section.perturbation != "none":
            answers = self._ask(asked, sample)
            groups["moved"] = (answers[:num_teachers], answers[num_teachers:] if has_members else None)
        found: dict[str, float] = {}
        for kind, (teachers, members) in groups.items():
            if num_teachers > 1:
                found[f"teachers_kl_{kind}"] = mean_pairwise_kl(teachers)
                found[f"teachers_disagree_{kind}"] = disagreement(teachers)
            if members is not None:
                ensemble = ensemble_log_probs(teachers)
                found[f"members_kl_{kind}"] = mean_pairwise_kl(members)
                found[f"members_agreement_{kind}"] = fmean(agreement(ensemble, member) for member in members)
        return found

    def _warn_of_members_apart(self, found: dict[str, float], epoch: int) -> None:
        fold, members = found["agreement_train"], found.get("members_agreement_clean", 0.0)
        if self._has_warned or members - fold < LEAST_APART or fold > members / 2:
            return
        self._has_warned = True
        if self.accelerator.is_main_process:
            rate = self.training.factor_rate or 1.0
            console.print(
                f"warning: {self.name}: its members have drifted apart: after epoch {epoch + 1} of "
                f"{self.training.epochs} a member predicts what the ensemble does on {100 * members:.0f} % of training "
                f"images, their fold, which is deployed, on {100 * fold:.0f} %. A training.factor_rate below the "
                f"present {rate:g} ({rate / 4:g}) may keep them together; this run goes on as it is.",
                highlight=False,
                soft_wrap=True,
            )

    def _moved(self, images: Tensor, network: nn.Module, rows: slice, num_rows: int) -> Tensor:
        """Returns these rows of a sample as the student's perturbation moves them, by the same draws in every epoch."""
        section, generator = self.section, generator_for("sample", "perturb")
        owners = None
        if section.perturbation in PAIRED:
            owners = draw_owners(num_rows, len(self.teachers), generator)[rows]
        with autocast(self.accelerator.device, self.training):
            return perturb(
                images,
                section.perturbation,
                teachers=list(self.teachers.members),
                student=network,
                grey_levels=section.perturbation_grey_levels,
                generator=generator,
                rows=rows,
                num_rows=num_rows,
                owners=owners,
            )

    def _ask(self, asked: Asked, sample: Sample) -> Array:
        return ask(asked, sample, training=self.training, accelerator=self.accelerator)

    @cached_property
    def _samples(self) -> dict[str, Sample]:
        splits: dict[str, tuple[Images, ...]] = {"train": (self.data.train,), "validation": (self.data.validation,)}
        if self.data.extra:
            splits["extra"] = self.data.extra.parts
        return {
            name: read_sample(sources, name, NUM_IMAGES, num_workers=self.num_workers, accelerator=self.accelerator)
            for name, sources in splits.items()
        }

    @cached_property
    def _teachers_on_samples(self) -> dict[str, Array]:
        return {
            name: self._ask(lambda images, _: wide(self.teachers(images)), sample)
            for name, sample in self._samples.items()
        }


def epochs_observed(
    section: StudentSection, data: DataSet, *, training: TrainingSection, ensemble_size: int
) -> frozenset[int]:
    """Returns the epochs that are looked at: of those that validate the first, the last, and every so many between."""
    splits = [data.train, data.validation, *([data.extra] if data.extra else [])]
    num_members = ensemble_size if section.method == "latent_be" else 0
    of_each = num_members
    if section.perturbation != "none":
        of_each += units_of_perturbation(section) + ensemble_size + num_members
    cost = sum(min(NUM_IMAGES, len(split)) for split in splits) + of_each * min(NUM_IMAGES, len(data.train))
    steps = steps_per_epoch(data.train, training.batch_size, data.extra)
    units = units_per_step(section, ensemble_size, has_extra=data.extra is not None)
    allowed = MOST_OF_TRAINING * units * steps * training.batch_size
    last = training.epochs - 1
    validating = [epoch for epoch in range(training.epochs) if (epoch + 1) % training.validate_every == 0]
    every = math.ceil(cost / (allowed * training.validate_every))
    return frozenset({*validating[::every], last})
