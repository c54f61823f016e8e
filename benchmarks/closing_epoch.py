"""What closing an epoch costs: the fold, the validation passes, the looks, the checkpoint, beside the epoch's steps.

    python benchmarks/closing_epoch.py --output closing_epoch.json
    python benchmarks/closing_epoch.py --network wrn16x2 --images 64
    python benchmarks/closing_epoch.py --device cuda --images 128

The student of recipes/cifar100_wrn28x4.yaml (LatentBE + TDiv-SDiv, four members) on random images. Passes over images
are timed on a few of them, and their number is made up to that of the recipe; all else is timed as it is. Each time is
the median of --rounds, with its smallest and largest.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from edc.data import load_data
from edc.data.batches import train_batches
from edc.method.step import Batch
from edc.recipe import DataSection
from edc.recipe.loading import load_recipe
from edc.runs.student import build_plain, build_student, folding, student_step
from edc.runs.why.observer import NUM_IMAGES, Observer
from edc.seeding import generator_for
from edc.system.machine import cpu_name
from edc.system.memory import freed_memory_kept
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.average import copy_of_state
from edc.train.backward import backward_through
from edc.train.checkpoint import CheckpointWriter, Position
from edc.train.evaluate import evaluate_accuracy
from edc.train.placement import place
from edc.train.saved.epochs import append_metrics
from edc.train.schedule import build_optimizer

RECIPE = Path(__file__).parent.parent / "recipes/cifar100_wrn28x4.yaml"
NAME, NUM_TRAINING, NUM_VALIDATION = "latent_be_tdiv_sdiv", 45_000, 5_000


def seconds(
    work: Callable[[], Any], rounds: int, *, times: float = 1.0, after: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """Returns the median time of `work`, with its smallest and largest, made up `times`; it has run once before."""
    taken = []
    for _ in range(1 + rounds):
        before = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append((time.perf_counter() - before) * times)
        after()
    taken = taken[1:]
    return {"median": statistics.median(taken), "smallest": min(taken), "largest": max(taken)}


def measured(
    network_name: str, num_images: int, rounds: int, folder: Path, *, device: str
) -> dict[str, dict[str, Any]]:
    """Returns the seconds of each part of an epoch."""
    recipe = load_recipe(RECIPE, overrides=[f"network={network_name}"])
    section = DataSection(
        kind="synthetic", image_size=32, num_classes=100, num_images=num_images, validation=num_images, test=1
    )
    data, training, accelerator = load_data(section), recipe.training, Accelerator(cpu=device == "cpu")
    training = training.model_copy(update={"batch_size": num_images})
    teachers = place(TeacherEnsemble([build_plain(recipe, data) for _ in range(4)]), accelerator.device, training)
    student = recipe.students[NAME]
    network = place(build_student(recipe, NAME, data), accelerator.device, training)
    optimizer = build_optimizer(network, training)
    learn = student_step(student, teachers, training=training)
    plain_of = folding(recipe, NAME, data)
    observer = Observer(
        student, data, teachers, plain_of=plain_of, training=training, num_workers=0, accelerator=accelerator
    )

    def step() -> None:
        pixels, labels = next(train_batches(data.train, section, batch_size=num_images, seed=0, epoch=0))
        pixels, labels = pixels.to(accelerator.device), labels.to(accelerator.device)
        images = (pixels / 255).contiguous(memory_format=torch.channels_last)
        batch = Batch(images, labels, generator_for(0), slice(0, num_images), num_images)
        network.train()
        optimizer.zero_grad(set_to_none=True)
        backward_through(learn, network, network, batch, micro_batch_size=None, accelerator=accelerator)
        optimizer.step()

    plain = plain_of(network)
    position = Position(best_state=copy_of_state(network))
    writer = CheckpointWriter(folder / "checkpoint.pt", position, network, optimizer, None)
    with freed_memory_kept():
        found = {"steps": seconds(step, rounds, times=NUM_TRAINING / num_images)}
    return found | {
        "fold": seconds(lambda: plain_of(network), rounds),
        "validation passes": seconds(
            lambda: evaluate_accuracy(plain, data.validation, section, training, accelerator),
            rounds,
            times=NUM_VALIDATION / num_images,
        ),
        "look at the student": seconds(
            lambda: observer(network, training.epochs - 1), rounds, times=NUM_IMAGES / num_images
        ),
        "copy of the best": seconds(lambda: copy_of_state(network), rounds),
        "metrics": seconds(lambda: append_metrics(folder / "metrics.jsonl", {"epoch": 200, "step": 1}), rounds),
        "checkpoint, begun": seconds(writer.begin, rounds, after=writer.wait),
        "checkpoint, written": seconds(writer.save, rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn28x4")
    parser.add_argument("--images", type=int, default=16, help="images of a step, and of a pass that is timed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        found = measured(arguments.network, arguments.images, arguments.rounds, Path(folder), device=arguments.device)
        checkpoint_bytes = (Path(folder) / "checkpoint.pt").stat().st_size
    epoch = found["steps"]["median"]
    print("| part | seconds | of the steps |\n|---|---|---|")
    for name, taken in found.items():
        share = taken["median"] / epoch
        print(f"| {name} | {taken['median']:.3f} ({taken['smallest']:.3f}-{taken['largest']:.3f}) | {share:.2%} |")
    print(f"\na checkpoint has {checkpoint_bytes / 1e6:.0f} MB")
    document = {
        "network": arguments.network,
        "seconds": found,
        "checkpoint_bytes": checkpoint_bytes,
        "torch": torch.__version__,
        "machine": f"{cpu_name()}, {torch.get_num_threads()} threads, {platform.system()}",
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else None,
        "date": time.strftime("%Y-%m-%d"),
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
