"""One training step, from images to the loss.

The loss is a sum of parts. Each part is of one group of members that run through the network at once:

    joint        one group of all M members: M * N rows, BatchNorm statistics over all of them, as published
    sequential   M groups of one member: memory does not depend on M

Every teacher answers every image, and every member learns it. With `answers: split` each image goes to one teacher and
its member, drawn anew in each step: N rows instead of M * N, with the same expected gradient.

Run `backward` on each part before asking for the next, so that only one part's activations exist at a time:

    for loss in step.losses(student, student, batch):
        loss.backward()
    optimizer.step()

Source: Nam et al. 2022 (arXiv 2206.15047); docs/method.md.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from edc.method.batch_ensemble import (
    batchnorm_momentum_shared,
    ensemble_size_of,
    member_weights_made,
    select_members,
)
from edc.method.kinds import Answers, MemberForm, Method, MixedView, Pair, Perturbation
from edc.method.losses import kd_losses, label_loss, latent_be_losses, student_loss, wide
from edc.method.perturb import perturb, sent_to
from edc.method.views import mixed

__all__ = ["Batch", "LabelStep", "Step", "StudentStep", "answers", "autocast_to", "draw_owners"]


@dataclass(frozen=True)
class Batch:
    """One step's images (N, C, H, W) in [0, 1], labels (N,), and their rows in the global batch.

    An image without a label has `NO_LABEL`; the student learns it from the teachers alone.
    """

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    """A CPU generator. The draws of a step must not depend on how the global batch is divided."""
    rows: slice
    num_rows: int

    def in_parts(self, size: int | None) -> Iterator["Batch"]:
        """Yields the batch in parts of `size` images; all parts make the same random draws."""
        if size is None or size >= len(self.images):
            yield self
            return
        state, first = self.generator.get_state(), self.rows.start or 0
        for start in range(0, len(self.images), size):
            images = self.images[start : start + size]
            generator = torch.Generator()
            generator.set_state(state)
            rows = slice(first + start, first + start + len(images))
            yield Batch(images, self.labels[start : start + size], generator, rows, self.num_rows)


class Step(Protocol):
    """One training step: how a batch becomes a loss."""

    @property
    def shapes_stay(self) -> bool:
        """Whether the networks get as many rows in every step."""
        ...

    def num_parts(self, network: nn.Module) -> int:
        """Returns how many losses a batch has."""
        ...

    def losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """Yields scalars whose sum is the loss.

        Args:
            model: the network as the launcher wrapped it; each part calls it exactly once.
            network: the same network, unwrapped.
        """
        ...


@dataclass(frozen=True, eq=False)
class StudentStep:
    """A step of a student that learns from `teachers`: perturb the images, ask the teachers, distil.

    With `method: latent_be` the student has as many members as there are teachers. Networks run in `autocast`, or in
    their own type (None). The student is in train mode, the teachers in eval mode.
    """

    teachers: Sequence[nn.Module]
    method: Method = "latent_be"
    answers: Answers = "all"
    views: Sequence[MixedView] = ()
    perturbation: Perturbation = "none"
    pair: Pair = "step"
    grey_levels: float = 1.0
    temperature: float = 4.0
    alpha: float = 1.0
    asks_teachers: bool = True
    """Whether the loss needs the teachers' answers; not with alpha 0 where every image has a label."""
    num_classes: int = 0
    """Number of classes of the labels; needed if views mix labels that are learned (alpha < 1)."""
    form: MemberForm = "joint"
    autocast: torch.dtype | None = None

    @property
    def shapes_stay(self) -> bool:
        return self.pair == "step"  # else each teacher's share of the pairs is drawn

    def losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        if not self._weights_serve_twice(network):
            yield from self._losses(model, network, batch)
            return
        with member_weights_made(network, autocast_to(self.autocast, batch.images.device)):
            (loss,) = self._losses(model, network, batch)  # all members are one group
        yield loss  # outside: the backward pass frees the weights of one layer after another

    def _losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        precision, groups = autocast_to(self.autocast, batch.images.device), self._groups(network)
        images, labels = self._viewed(batch)
        by_row = self.answers == "split" and self.pair == "row"
        owners = self._owners(batch) if by_row else None
        with precision, record_function("edc:perturbation"):
            images = perturb(
                images,
                self.perturbation,
                teachers=self.teachers,
                student=network,
                grey_levels=self.grey_levels,
                generator=batch.generator,
                rows=batch.rows,
                num_rows=batch.num_rows,
                owners=owners,
            )
        if self.answers == "split" and not by_row:
            owners = self._owners(batch)
        parts, parts_labels = self._shared_out(images, labels, owners)  # per teacher: the images that it answers
        with precision, record_function("edc:teachers"):
            pairs = zip(self.teachers, parts, strict=True) if self.asks_teachers else ()
            answered = [answers(teacher, part) for teacher, part in pairs]
        sizes = tuple(len(part) for part in parts)
        for group in groups:  # of members, or of teachers if one network learns from all
            rows = None if self.answers == "all" else tuple(sizes[m] for m in group)
            members = None if len(group) == len(self.teachers) else group
            with (
                precision,
                record_function("edc:forward"),
                select_members(network, members, rows=rows),
                batchnorm_momentum_shared(network, len(groups)),
            ):
                if self.method == "kd" and self.answers == "all":
                    logits, learned = wide(model(images))[None], labels
                else:  # row by row, member-major: row m * N + n is image n seen by member m
                    logits, learned = wide(model(_joined(parts, group)))[None], _joined(parts_labels, group)
                distillation = self._distillation(logits, answered, group) if answered else None
                loss = student_loss(distillation, logits, learned, alpha=self.alpha)
            yield sum(sizes[m] for m in group) / sum(sizes) * loss

    def _distillation(self, logits: Tensor, answered: Sequence[Tensor], group: tuple[int, ...]) -> Tensor:
        """Returns the loss of each row (1, rows) against what it learns: the mean of all answers, or its teacher's."""
        if self.method == "kd" and self.answers == "all":
            return kd_losses(logits, torch.stack(list(answered)), temperature=self.temperature)
        return latent_be_losses(logits, _joined(answered, group)[None], temperature=self.temperature)

    def _weights_serve_twice(self, network: nn.Module) -> bool:
        """Returns whether to make all members' weights once, for the perturbation and for the pass that learns.

        Not where only one member's may exist at a time, and not in a compiled network, which fuses their making.
        """
        is_compiled = network._compiled_call_impl is not None
        return self.perturbation == "tdiv_sdiv" and len(self._groups(network)) == 1 and not is_compiled

    def num_parts(self, network: nn.Module) -> int:
        return len(self._groups(network))

    def _groups(self, network: nn.Module) -> list[tuple[int, ...]]:
        """Returns the members that go through the network at once, group by group."""
        everyone = range(len(self.teachers))
        is_sequential = self.form == "sequential" and ensemble_size_of(network) > 1
        return [(m,) for m in everyone] if is_sequential else [tuple(everyone)]

    def _viewed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the images and labels to learn from: the batch's own, or mixtures of them."""
        images, labels = batch.images, batch.labels
        if not self.views:
            return images, labels
        if self.alpha < 1:
            labels = F.one_hot(labels, self.num_classes).to(images.dtype)
        return mixed(images, labels, self.views, generator=batch.generator, rows=batch.rows, num_rows=batch.num_rows)

    def _owners(self, batch: Batch) -> Tensor:
        return draw_owners(batch.num_rows, len(self.teachers), batch.generator)[batch.rows]

    def _shared_out(
        self, images: Tensor, labels: Tensor, owners: Tensor | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Returns the images that each teacher answers, and their labels: the whole batch, or those that it owns."""
        num_teachers = len(self.teachers)
        if owners is None:
            return [images] * num_teachers, [labels] * num_teachers
        order, sizes = owners.argsort(stable=True), owners.bincount(minlength=num_teachers).tolist()
        order = sent_to(order, images.device)
        return torch.split(images[order], sizes), torch.split(labels[order], sizes)


def draw_owners(num_rows: int, num_teachers: int, generator: torch.Generator) -> Tensor:
    """Returns which teacher each row of a batch goes to (num_rows,).

    Each block of M rows has one row per teacher, in random order. So all parts are equal if M divides the number of
    rows of the batch, of a process or of a micro-batch.
    """
    blocks = -(-num_rows // num_teachers)
    return torch.rand(blocks, num_teachers, generator=generator).argsort(1).flatten()[:num_rows]


def _joined(parts: Sequence[Tensor], group: tuple[int, ...]) -> Tensor:
    return parts[group[0]] if len(group) == 1 else torch.cat([parts[m] for m in group])


@dataclass(frozen=True)
class LabelStep:
    """A step of a network that learns from labels alone, as a teacher does."""

    autocast: torch.dtype | None = None
    class_weights: Tensor | None = None
    """How much an image of each class counts (K,); None: all count alike."""
    shapes_stay = True

    def losses(self, model: nn.Module, _network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        with (
            autocast_to(self.autocast, batch.images.device),
            record_function("edc:forward"),
        ):
            loss = label_loss(wide(model(batch.images))[None], batch.labels, self.class_weights)
        yield loss

    def num_parts(self, _network: nn.Module) -> int:
        return 1


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which networks run; with None, the caller's context."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def answers(teacher: nn.Module, images: Tensor) -> Tensor:
    """Returns a teacher's logits (N, K) in float32 or wider, computed in inference mode."""
    with torch.inference_mode():
        logits = wide(teacher(images))
    return logits.clone()  # a normal tensor again: a loss may keep it for its backward pass
