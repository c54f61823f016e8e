"""Small trainings that one process and two run alike; `distributed_worker.py` and the tests share them."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from edc.batch_ensemble import ensemble_size_of, fold, to_batch_ensemble
from edc.data import DataSet, load_data
from edc.member_forms import MemberForm
from edc.networks import Classifier, build_network
from edc.recipe import DataSection, NetworkSection, StudentSection, TrainingSection
from edc.step import Batch, LossOf, LossPart
from edc.student import student_loss
from edc.teacher import TeacherEnsemble, teacher_loss
from edc.train import fit

DATA = DataSection(
    kind="synthetic", num_images=64, image_size=8, num_classes=3, validation=33, test=35, crop_padding=1, split_seed=3
)
TRAINING = TrainingSection(epochs=6, warmup_epochs=1, batch_size=16, learning_rate=0.02)
STEPS = 24  # 6 epochs of 64 / 16

STUDENTS = {
    "latent_be": StudentSection(),
    "tdiv_sdiv": StudentSection(perturbation="tdiv_sdiv", alpha=0.9),
    "sequential": StudentSection(perturbation="tdiv_sdiv", member_form="sequential"),
    "kd_gaussian": StudentSection(method="kd", perturbation="gaussian"),
    "kd_ods": StudentSection(method="kd", perturbation="ods"),
}

CASES = {
    "teacher, float32": torch.float32,
    "latent_be, float32": torch.float32,
    "tdiv_sdiv, float64": torch.float64,
    "sequential, float64": torch.float64,
    "kd_gaussian, float64": torch.float64,
    "kd_ods, float64": torch.float64,
}
"""A perturbation is the sign-like direction of a small gradient: it needs float64 to tell rounding from a mistake."""


def small_data() -> DataSet:
    return load_data(DATA)


def plain(seed: int, dtype: torch.dtype = torch.float32) -> Classifier:
    """Returns a CIFAR ResNet-8 whose logits differ from image to image."""
    torch.manual_seed(seed)
    data = small_data()
    network = build_network(
        NetworkSection(name="cifar_resnet8"),
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        mean=data.mean,
        std=data.std,
    )
    return network.to(dtype)


def run_case(
    case: str,
    folder: Path,
    accelerator: Accelerator,
    *,
    training: TrainingSection = TRAINING,
    before_step: Callable[[int], None] = lambda step: None,
    change_loss: Callable[[int, Tensor], Tensor] = lambda step, loss: loss,
    on_validation: Callable[[nn.Module], nn.Module | None] = lambda trained: None,
    first_step: int = 0,
) -> tuple[nn.Module, list[float]]:
    """Trains a case with `fit` and returns the network and this process's loss of every step.

    Args:
        before_step: called with the step's number before its loss is computed, for signals.
        change_loss: replaces a step's loss, for losses that are not finite.
        on_validation: called with the network of every epoch; may return another one to be validated.
        first_step: the step that a resumed training goes on with.
    """
    name, dtype = case.split(", ", maxsplit=1)[0], CASES[case]
    losses: list[float] = []
    network: nn.Module = plain(0, dtype)
    loss_of: LossOf
    if name == "teacher":
        loss_of = teacher_loss
    else:
        form: MemberForm = "sequential" if STUDENTS[name].member_form == "sequential" else "joint"
        loss_of = student_loss(STUDENTS[name], TeacherEnsemble([plain(1, dtype), plain(2, dtype)]), form=form)
        if STUDENTS[name].method == "latent_be":
            network = to_batch_ensemble(network, 2)

    def recorded(model: nn.Module, bare: nn.Module, batch: Batch) -> list[LossPart]:
        step = first_step + len(losses)
        before_step(step)
        parts = loss_of(model, bare, batch)
        losses.append(0.0)

        def recorded_part(part: LossPart) -> Tensor:
            loss = change_loss(step, part())
            losses[-1] += float(loss.detach())
            return loss

        return [partial(recorded_part, part) for part in parts]

    def plain_of(trained: nn.Module) -> nn.Module:
        members = ensemble_size_of(trained) > 1
        return on_validation(trained) or (fold(trained, plain(0, dtype)) if members else trained)

    trained = fit(
        network,
        small_data(),
        loss_of=recorded,
        plain_of=plain_of,
        data_section=DATA,
        training=training,
        seed=7,
        folder=folder,
        label=case,
        accelerator=accelerator,
    )
    return trained, losses


def raise_signal_at(step: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    """Returns a `before_step` that sends this process a real signal at one step."""

    def before_step(current: int) -> None:
        if current == step:
            signal.raise_signal(number)

    return before_step


NORM_CASES: dict[str, Callable[[], nn.Module]] = {
    "2d": lambda: nn.BatchNorm2d(3),
    "2d, average": lambda: nn.BatchNorm2d(3, momentum=None),
    "1d rows": lambda: nn.BatchNorm1d(3),
    "1d tokens": lambda: nn.BatchNorm1d(3, eps=1e-3, momentum=0.3),
}
NORM_SHAPES = {"2d": (8, 3, 4, 5), "2d, average": (8, 3, 4, 5), "1d rows": (8, 3), "1d tokens": (8, 3, 6)}


def norm_case(case: str) -> tuple[nn.Module, list[Tensor], Tensor]:
    """Returns a float64 norm with random scale and shift, two global batches, and a target that weighs outputs."""
    generator = torch.Generator().manual_seed(len(case))
    norm = NORM_CASES[case]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(3, generator=generator, dtype=torch.float64))
    shape = NORM_SHAPES[case]
    batches = [3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return norm, batches, torch.randn(shape, generator=generator, dtype=torch.float64)
