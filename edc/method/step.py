"""One training step, from images to the loss.

A step computes its loss in parts whose sum it is, one for each group of members that goes through the network at once:

    joint        one group of all M members: M * N rows, BatchNorm statistics over all of them, as published
    sequential   M groups of one member: memory does not depend on M

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
from torch import Tensor, nn
from torch.profiler import record_function

from edc.method.batch_ensemble import batchnorm_momentum_shared, ensemble_size_of, select_members
from edc.method.kinds import MemberForm, Method, Perturbation
from edc.method.losses import kd_loss, label_loss, latent_be_loss, wide
from edc.method.perturb import perturb

__all__ = ["Batch", "LabelStep", "Step", "StudentStep", "answers", "autocast_to"]


@dataclass(frozen=True)
class Batch:
    """One step's images (N, C, H, W) in [0, 1] and labels (N,), and where they stand in the global batch."""

    images: Tensor
    labels: Tensor
    generator: torch.Generator
    """A CPU generator: what the step draws from it must not depend on how the global batch is divided."""
    rows: slice
    num_rows: int

    def in_parts(self, size: int | None) -> Iterator["Batch"]:
        """Yields the batch in parts of `size` images, each with the same random draws ahead of it."""
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
    """What a network learns by."""

    def num_parts(self, network: nn.Module) -> int:
        """Returns how many losses a batch has."""
        ...

    def losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        """Yields scalars whose sum is the loss.

        Args:
            model: the network as a launcher wrapped it, which each part goes through exactly once; `network`: the same
                one, bare.
        """
        ...


@dataclass(frozen=True, eq=False)
class StudentStep:
    """A step of a student that learns from `teachers`: perturb the images, ask the teachers, distil.

    With `method: latent_be` the student has as many members as there are teachers. Networks run in `autocast` (None:
    as they are). The student is in train mode, the teachers in eval mode.
    """

    teachers: Sequence[nn.Module]
    method: Method = "latent_be"
    perturbation: Perturbation = "none"
    grey_levels: float = 1.0
    temperature: float = 4.0
    alpha: float = 1.0
    form: MemberForm = "joint"
    autocast: torch.dtype | None = None

    def losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        with self._autocast(batch), record_function("edc:perturbation"):
            images = perturb(
                batch.images,
                self.perturbation,
                teachers=self.teachers,
                student=network,
                grey_levels=self.grey_levels,
                generator=batch.generator,
                rows=batch.rows,
                num_rows=batch.num_rows,
            )
        with self._autocast(batch), record_function("edc:teachers"):
            teacher_logits = answers(self.teachers, images)  # (M, N, K)
        groups = self._groups(ensemble_size_of(network))
        for members in groups:
            with (
                self._autocast(batch),
                record_function("edc:forward"),
                select_members(network, members),
                batchnorm_momentum_shared(network, len(groups)),
            ):
                size = ensemble_size_of(network) if members is None else len(members)
                rows = images.repeat(size, 1, 1, 1) if size > 1 else images  # member-major: row m * N + n
                student_logits = wide(model(rows)).view(size, len(images), -1)
                targets = teacher_logits if members is None else teacher_logits[list(members)]
                distil = latent_be_loss if self.method == "latent_be" else kd_loss
                loss = distil(student_logits, targets, temperature=self.temperature)
                if self.alpha < 1:
                    loss = (1 - self.alpha) * label_loss(student_logits, batch.labels) + self.alpha * loss
            yield loss / len(groups)

    def num_parts(self, network: nn.Module) -> int:
        return len(self._groups(ensemble_size_of(network)))

    def _groups(self, num_members: int) -> list[tuple[int, ...] | None]:
        """Returns the members that go through the network at once, group by group; None: all there are."""
        if self.form == "sequential" and num_members > 1:
            return [(m,) for m in range(num_members)]
        return [None]

    def _autocast(self, batch: Batch) -> AbstractContextManager[object]:
        return autocast_to(self.autocast, batch.images.device)


@dataclass(frozen=True)
class LabelStep:
    """A step of a network that learns from labels alone, as a teacher does."""

    autocast: torch.dtype | None = None

    def losses(self, model: nn.Module, _network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        with (
            autocast_to(self.autocast, batch.images.device),
            record_function("edc:forward"),
        ):
            loss = label_loss(wide(model(batch.images))[None], batch.labels)
        yield loss

    def num_parts(self, _network: nn.Module) -> int:
        return 1


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """Returns the context in which networks run; None: the one that they are called in."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def answers(teachers: Sequence[nn.Module], images: Tensor) -> Tensor:
    """Returns the teachers' logits (M, N, K) in float32 or wider to learn from, computed in inference mode."""
    with torch.inference_mode():
        logits = wide(torch.stack([teacher(images) for teacher in teachers]))
    return logits.clone()  # a normal tensor again: a loss may keep it for its backward pass
