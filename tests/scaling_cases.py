"""What one, two and three processes are asked to do alike; `scaling_worker.py` and test_distributed.py share it."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from training_cases import Recorded, small_data

from edc.data.images import Images, MemoryImages
from edc.method.batch_ensemble import fold, to_batch_ensemble
from edc.method.kinds import MemberForm
from edc.recipe import DataSection, StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.evaluate import evaluate_accuracy, predict_logits
from edc.train.loop import fit

DATA = DataSection(
    kind="synthetic", num_images=64, image_size=8, num_classes=3, validation=33, test=35, crop_padding=1, split_seed=3
)
TRAINING = TrainingSection(epochs=13, warmup_epochs=1, batch_size=16, learning_rate=0.1, sync_batchnorm=True)
NUM_STEPS = 52  # 13 epochs of 64 / 16


def smooth(seed: int, *, sharpness: float = 1.0) -> nn.Module:
    """Returns a small network with BatchNorm and SiLU, its logits multiplied by `sharpness`.

    The perturbation follows the *direction* of a gradient. With ReLU that gradient jumps where a unit switches, so two
    orders of summation, 1e-7 apart, end 1e-4 apart after some steps whatever the engine does; a smooth network not.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.SiLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    with torch.no_grad():
        network[-1].weight.mul_(sharpness)
    return network


def long_training(folder: Path, accelerator: Accelerator, form: MemberForm) -> list[float]:
    """Returns this process's loss of every step of LatentBE + TDiv-SDiv with two members in float32."""
    teachers = TeacherEnsemble([smooth(1, sharpness=30), smooth(2, sharpness=30)])
    learn = student_step(StudentSection(perturbation="tdiv_sdiv"), teachers, training=TRAINING, form=form)
    recorded = Recorded(learn)

    fit(
        to_batch_ensemble(smooth(0), 2),
        small_data(),
        learn=recorded,
        plain_of=lambda trained: fold(trained, smooth(0)),
        data_section=DATA,
        training=TRAINING,
        seed=7,
        folder=folder,
        label="long",
        accelerator=accelerator,
    )
    return recorded.seen


class Witness(nn.Module):
    """Writes down which images it was shown; its logits are a function of the image's number alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images * 255).round().long().flatten(1)
        numbers = pixels[:, 0] * 256 + pixels[:, 1]
        self.seen += numbers.tolist()
        return torch.stack([numbers.float(), 7 * (numbers % 2).float() + 500.5, -numbers.float()], dim=1)


def numbered_images(num_images: int) -> Images:
    """Returns images whose first two pixels hold their number, and labels 0 or 1 that differ from image to image."""
    numbers = torch.arange(num_images)
    pixels = torch.zeros(num_images, 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = (numbers // 256).byte(), (numbers % 256).byte()
    return MemoryImages(pixels, (numbers % 3 == 0).long())


def evaluation(num_images: int, accelerator: Accelerator) -> dict[str, Any]:
    """Returns the images this process was shown by each way of evaluating, and what came of it."""
    images, found = numbered_images(num_images), {}
    witness = Witness()
    found["accuracy"] = evaluate_accuracy(witness, images, DATA, TRAINING, accelerator)
    found["seen for accuracy"] = witness.seen
    witness = Witness()
    found["logits"] = predict_logits(witness, images, DATA, TRAINING, accelerator)
    found["seen for logits"] = witness.seen
    return found
