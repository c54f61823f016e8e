"""Small trainings that one process and two run alike; `distributed_worker.py` and the tests share them."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from edc.data import DataSet, load_data
from edc.errors import DataError
from edc.method.batch_ensemble import ensemble_size_of, fold, to_batch_ensemble
from edc.method.kinds import MemberForm
from edc.method.step import Batch, LabelStep, Step
from edc.networks import Classifier, build_network
from edc.recipe import BestBy, DataSection, NetworkSection, Recipe, StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.evaluate import evaluate_accuracy, predict_logits
from edc.train.loop import fit
from edc.train.tracking.trackers import Tracked

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
    "views": StudentSection(
        views=("randaugment", "mixup", "cutmix"), perturbation="tdiv_sdiv", answers="split", alpha=0.9, ema=0.8
    ),
}

CASES = {
    "teacher, float32": torch.float32,
    "latent_be, float32": torch.float32,
    "tdiv_sdiv, float64": torch.float64,
    "sequential, float64": torch.float64,
    "kd_gaussian, float64": torch.float64,
    "kd_ods, float64": torch.float64,
    "views, float64": torch.float64,
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


class Recorded:
    """A step that keeps the loss of each batch in `seen`, and that a test may disturb."""

    def __init__(
        self,
        step: Step,
        *,
        before_step: Callable[[int], None] = lambda step: None,
        change_loss: Callable[[int, Tensor], Tensor] = lambda step, loss: loss,
        first_step: int = 0,
    ) -> None:
        self.step, self.before_step, self.change_loss, self.first_step = step, before_step, change_loss, first_step
        self.seen: list[float] = []

    @property
    def shapes_stay(self) -> bool:
        return self.step.shapes_stay

    def num_parts(self, network: nn.Module) -> int:
        return self.step.num_parts(network)

    def losses(self, model: nn.Module, network: nn.Module, batch: Batch) -> Iterator[Tensor]:
        number = self.first_step + len(self.seen)
        self.before_step(number)
        self.seen.append(0.0)
        for part in self.step.losses(model, network, batch):
            loss = self.change_loss(number, part)
            self.seen[-1] += float(loss.detach())
            yield loss


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
    best_by: BestBy = "accuracy",
    tracked: Tracked | None = None,
) -> tuple[nn.Module, list[float]]:
    """Trains a case with `fit` and returns the network and this process's loss of every step.

    Args:
        before_step: called with the step's number before its loss is computed, for signals.
        change_loss: replaces a step's loss, for losses that are not finite.
        on_validation: called with the network of every epoch; may return another one to be validated.
        first_step: the step that a resumed training goes on with.
    """
    name, dtype = case.split(", ", maxsplit=1)[0], CASES[case]
    network: nn.Module = plain(0, dtype)
    learn: Step = LabelStep()
    section = StudentSection() if name == "teacher" else STUDENTS[name]
    if name != "teacher":
        form: MemberForm = "sequential" if STUDENTS[name].member_form == "sequential" else "joint"
        teachers = TeacherEnsemble([plain(1, dtype), plain(2, dtype)])
        learn = student_step(section, teachers, training=training, data=small_data(), form=form)
        if STUDENTS[name].method == "latent_be":
            network = to_batch_ensemble(network, 2)

    recorded = Recorded(learn, before_step=before_step, change_loss=change_loss, first_step=first_step)

    def plain_of(trained: nn.Module) -> nn.Module:
        members = ensemble_size_of(trained) > 1
        return on_validation(trained) or (fold(trained, plain(0, dtype)) if members else trained)

    trained = fit(
        network,
        small_data(),
        learn=recorded,
        plain_of=plain_of,
        data_section=DATA,
        training=training,
        seed=7,
        folder=folder,
        label=case,
        accelerator=accelerator,
        views=section.views,
        ema=section.ema,
        best_by=best_by,
        tracked=tracked,
    )
    return trained, recorded.seen


def raise_signal_at(step: int, number: int = signal.SIGINT) -> Callable[[int], None]:
    """Returns a `before_step` that sends this process a real signal at one step."""

    def before_step(current: int) -> None:
        if current == step:
            signal.raise_signal(number)

    return before_step


APART = TRAINING.model_copy(update={"sync_batchnorm": False, "micro_batch_size": 4})
"""Batch statistics of each process's own, and steps in several parts, of which only the last is exchanged."""

RECIPE = Recipe.model_validate(
    {
        "name": "apart",
        "data": DATA.model_dump(exclude_unset=True),
        "network": "cifar_resnet8",
        "training": APART.model_copy(update={"epochs": 2}).model_dump(exclude_unset=True),
        "teachers": {"ensemble_size": 2},
        "students": {"be": {"method": "latent_be", "perturbation": "tdiv_sdiv", "member_form": "sequential"}},
    }
)

BROKEN_CASES = [("training", 0.0), ("training", 0.1), ("training", 0.13), ("accuracy", 0.13), ("logits", 0.13)]
"""A way through the images, and what part of them may be broken: 0.1 and 0.13 are 3.2 and 4.16 of 32 images."""


def write_broken_images(folder: Path) -> None:
    """Writes two classes of 16 training images, 4 of them broken, and a few to validate and test on."""
    for split, num_images in (("train", 16), ("val", 2), ("test", 2)):
        for name in ("dark", "light"):
            (folder / split / name).mkdir(parents=True)
            for i in range(num_images):
                path = folder / split / name / f"{i:02}.png"
                Image.new("RGB", (8, 8), (9 * i, 100, 50 * (name == "light"))).save(path)
    for name, i in (("dark", 2), ("dark", 5), ("light", 8), ("light", 11)):  # two at even and two at odd places
        (folder / "train" / name / f"{i:02}.png").write_text("not an image")


def broken_data(folder: Path, limit: float) -> DataSet:
    section = DataSection(kind="image_folder", root=folder, image_size=8, crop_padding=1, num_workers=0)
    return load_data(section.model_copy(update={"max_bad_fraction": limit}))


def said_of_broken(way: str, data: DataSet, folder: Path, accelerator: Accelerator) -> str:
    """Returns the error of one way through all training images once, "" if there is none."""
    try:
        if way == "accuracy":
            evaluate_accuracy(plain(0), data.train, DATA, TRAINING, accelerator)
        elif way == "logits":
            predict_logits(plain(0), data.train, DATA, TRAINING, accelerator)
        else:
            fit(
                plain(0),
                data,
                learn=LabelStep(),
                plain_of=lambda trained: trained,
                data_section=DATA,
                training=TRAINING.model_copy(update={"epochs": 1, "warmup_epochs": 0}),
                seed=7,
                folder=folder,
                label=way,
                accelerator=accelerator,
            )
    except DataError as error:
        return str(error)
    return ""


NORM_CASES: dict[str, Callable[[], nn.Module]] = {
    "2d": lambda: nn.BatchNorm2d(3),
    "2d, average": lambda: nn.BatchNorm2d(3, momentum=None),
    "1d rows": lambda: nn.BatchNorm1d(3),
    "1d tokens": lambda: nn.BatchNorm1d(3, eps=1e-3, momentum=0.3),
    "no scale": lambda: nn.BatchNorm2d(3, affine=False),
    "no statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "activated": lambda: BatchNormAct2d(3, act_layer=nn.SiLU),
}
NORM_SHAPES = {"1d rows": (8, 3), "1d tokens": (8, 3, 6)}


def norm_case(case: str) -> tuple[nn.Module, list[Tensor], Tensor]:
    """Returns a float64 norm with random scale and shift, two global batches, and a target that weighs outputs."""
    generator = torch.Generator().manual_seed(len(case))
    norm = NORM_CASES[case]().double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(3, generator=generator, dtype=torch.float64))
    shape = NORM_SHAPES.get(case, (8, 3, 4, 5))
    batches = [3 + 2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    return norm, batches, torch.randn(shape, generator=generator, dtype=torch.float64)
