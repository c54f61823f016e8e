"""The section of a student: how it learns, and how its members become one network. Importable without torch."""

from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from edc.method.kinds import Answers, FoldKind, Method, MixedView, Pair, Perturbation, View
from edc.recipe.data_section import Count, Section
from edc.recipe.network_section import Start
from edc.recipe.training_section import TrainingOverrides, UnitInterval, require_one_of_epochs

__all__ = ["ADDED_LATER", "StudentSection"]

ADDED_LATER = ("answers", "extra", "pair", "views")
"""Fields of a student that recipes of edc 0.1.0 did not have: their defaults do not change a run."""

PAIRED = ("tdiv", "tdiv_sdiv")
"""Perturbations that set two teachers against each other."""


def _decay_or_auto(value: Any) -> Any:
    """Says once what is expected, and not once for each of two types; YAML reads `on` and `off` as truth values."""
    if value is None or value == "auto":
        return value
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < float(value) < 1:
            return float(value)  # YAML reads 9e-1 as text
    raise ValueError(f"found {value!r}; expected a decay per step between 0 and 1, such as 0.997, or auto")


Decay = Annotated[float, Field(gt=0.0, lt=1.0)]


class StudentSection(Section):
    """One student: how it learns from the ensemble, and how its members become one network."""

    later_than_first: ClassVar[tuple[str, ...]] = ("start", "training", "ema", "choose")
    method: Method = "latent_be"
    answers: Answers = "all"
    """`all`: every teacher answers every image, and every member learns it. `split`: each image goes to one teacher and
    to its member; the expected gradient is the same, and a step costs 4 forward passes, not 7 (kd) or 16 (latent_be).
    """
    views: tuple[View, ...] = ()
    """Changes to images before they are perturbed, in order, the same for teachers and student. `randaugment`: two
    random operations on the pixels of each image. `mixup`, `cutmix`: each image is mixed with another of its batch,
    with alpha < 1 their labels too; the batches of each process, and micro-batches, must then be even. None paid in
    edc's own experiments (docs/choosing.md)."""
    perturbation: Perturbation = "none"
    pair: Pair = "step"
    """Which two teachers, and members, a perturbation sets against each other. `step`: one pair for all images of a
    step. `row`: with `answers: split`, the teacher that answers the image, and another one, drawn for each image. Both
    cost the same."""
    perturbation_grey_levels: PositiveFloat = 1.0
    """Root-mean-square size of the perturbation, in grey levels of 255."""
    temperature: PositiveFloat = 4.0
    alpha: UnitInterval = 1.0
    """Weight of the distillation loss; 1: labels are not used at all. 0: labels alone teach, and no teacher is
    asked. With a perturbation or images of `data.extra` (unless `extra: false`) they are, about all images of a batch;
    of those with a label the answers have no weight."""
    extra: bool = True
    """Whether it also learns from the images of `data.extra`; without labels, their `alpha` is 1."""
    start: Start | None = None
    """What this student starts from, in place of `network.start`: `random`, `pretrained`, `teacher` or a file."""
    epochs: Count | None = None
    """Epochs of this student; those of `training` unless given. `{as_long_as: NAME}`: as many as cost as many forward
    passes as student NAME, rounded to the nearest whole number (with `times: 2`, twice as many)."""
    training: TrainingOverrides | None = None
    """Where this student differs from the shared `training`."""
    fold: FoldKind = "mean_weights"
    """`mean_weights`: W * mean_m outer(s_m, r_m). `mean_factors`: W * outer(mean s, mean r), as the official code."""
    member_form: Literal["auto", "joint", "sequential"] = "auto"
    """`joint`: all members in one batch, BatchNorm statistics over all of them, as published. `sequential`: one member
    after another, memory as for one. `auto`: joint if its activations fit into 0.4 of the free memory."""
    reestimate_batchnorm: bool = False
    """Always estimate BatchNorm's statistics anew after training, on clean, augmented training images."""
    ema: Annotated[Decay | Literal["auto"] | None, BeforeValidator(_decay_or_auto)] = None
    """Decay per step of an exponential moving average of the student with its members. `auto`: one that averages over
    3 % of its steps, which is 0.997 for 11,000. It runs from the first step on, includes BatchNorm's statistics and is
    validated like the student. None: no average."""
    choose: Literal["validation", "trained"] | None = None
    """`validation`: the candidates are the student as trained and its moving average, if any, each with and without
    re-estimated BatchNorm. The best on validation images, by the recipe's `deploy_by`, is evaluated and exported.
    Default with an `ema`, and of members that are folded over BatchNorm. `trained`: the student as trained, as
    published."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.perturbation == "tdiv_sdiv" and self.method != "latent_be":
            raise ValueError("perturbation 'tdiv_sdiv' needs members to disagree: use method 'latent_be', or 'tdiv'")
        if self.pair == "row" and (self.answers != "split" or self.perturbation not in PAIRED):
            found = f"answers {self.answers!r} and perturbation {self.perturbation!r}"
            raise ValueError(
                f"pair: found 'row', which has no effect with {found}; it needs answers 'split', where a row has a "
                f"teacher of its own, and perturbation {' or '.join(map(repr, PAIRED))}"
            )
        if len(set(self.views)) < len(self.views):
            raise ValueError(f"views: found {', '.join(self.views)}; expected each of them once")
        if "randaugment" in self.views[1:]:
            raise ValueError(
                f"views: found {', '.join(self.views)}; expected 'randaugment' first, because it works on the pixels "
                "of single images, before any are mixed"
            )
        if self.choose == "trained" and (self.ema is not None or self.reestimate_batchnorm):
            other = "reestimate_batchnorm" if self.ema is None else "ema"
            raise ValueError(f"choose: found 'trained', with which {other} has no effect; leave out one of them")
        if self.choose and self.ema is None and self.reestimate_batchnorm:
            raise ValueError(
                "choose: found 'validation', which has no effect where BatchNorm is always re-estimated and there is "
                "no ema; leave out choose, or reestimate_batchnorm"
            )
        for field in ("member_form", "fold"):
            # Not by what was set: the resolved recipe of a run has every field, with its default.
            value = getattr(self, field)
            if self.method == "kd" and value != type(self).model_fields[field].default:
                raise ValueError(
                    f"{field}: found {value!r}, which has no effect with method 'kd' (a single network has no "
                    "members); leave it out, or use method 'latent_be'"
                )
        if self.method == "kd" and self.training and self.training.factor_rate is not None:
            raise ValueError(
                f"training.factor_rate: found {self.training.factor_rate}, which has no effect with method 'kd' (a "
                "single network has no factors); leave it out, or use method 'latent_be'"
            )
        require_one_of_epochs(self.epochs, self.training)
        return self

    def asks_teachers(self, *, has_extra: bool) -> bool:
        """Returns whether the loss needs the teachers' answers; a perturbation needs two of them in any case.

        Args:
            has_extra: whether the data have extra images, which have no labels.
        """
        return self.alpha > 0 or (has_extra and self.extra)

    @property
    def mixed_views(self) -> tuple[MixedView, ...]:
        """The views that mix the images of a batch, in order."""
        return tuple(view for view in self.views if view != "randaugment")

    @property
    def chooses(self) -> bool:
        """Whether validation images choose the candidate of this student that is deployed, if there are several."""
        folds = self.method == "latent_be" and self.choose is None and not self.reestimate_batchnorm
        return self.choose == "validation" or self.ema is not None or folds
