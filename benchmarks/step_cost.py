"""What a step of LatentBE + TDiv-SDiv costs: edc's forms against the official order of work, taking turns.

    python benchmarks/step_cost.py --network wrn16x2 --size 32 --batch 128 --precision fp32,bf16
    python benchmarks/step_cost.py --network torchvision/resnet18 --size 224 --batch 64 --classes 1000
    python benchmarks/step_cost.py --network wrn16x2 --members 1,2,4,8 --forms joint,sequential

Every side does the whole step but for the optimizer: perturbation, teachers, loss, gradients of the student. In each
round each side takes one step, in random order; a ratio is the median over rounds of the ratio of their times, with its
smallest and largest. Peak memory is how far resident memory rises above what networks and images take, in a step apart.

Where TorchUncertainty is installed, its layers are a side, too: the official order of work with its BatchConv2d and
BatchLinear in place of edc's reference layers. In an environment of its own:
pip install -e . torch-uncertainty lightning

Results go to --output, a JSON line a configuration; those that are there already are not measured again.
"""

import argparse
import copy
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from official_order import official_loss
from torch import nn

import edc
from edc.batch_ensemble import to_batch_ensemble
from edc.bench.memory import peak_growth
from edc.machine import cpu_name
from edc.networks import build_network
from edc.recipe import NetworkSection, StudentSection, TrainingSection
from edc.seeding import generator_for
from edc.step import Batch, autocast, backward_through
from edc.student import student_loss
from edc.teacher import TeacherEnsemble

FORMS = ("official", "torch_uncertainty", "joint", "sequential")


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    forms = [form for form in arguments.forms if form != "torch_uncertainty" or find_spec("torch_uncertainty")]
    for precision in arguments.precision:
        for size in arguments.size:
            for num_members in arguments.members:
                measure_once(arguments, forms, precision=precision, size=size, num_members=num_members)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="wrn16x2")
    parser.add_argument("--size", type=integers, default=[32], help="pixels of a side")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--members", type=integers, default=[4])
    parser.add_argument("--precision", type=lambda text: text.split(","), default=["fp32", "bf16"])
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("step_cost.jsonl"))
    return parser.parse_args()


def integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def measure_once(
    arguments: argparse.Namespace, forms: list[str], *, precision: str, size: int, num_members: int
) -> None:
    """Measures one configuration unless its line is there, prints and appends it."""
    configuration = {
        "network": arguments.network,
        "size": size,
        "batch": arguments.batch,
        "members": num_members,
        "precision": precision,
        "threads": arguments.threads,
        "forms": forms,
        "rounds": arguments.rounds,
    }
    lines = arguments.output.read_text().splitlines() if arguments.output.is_file() else []
    if any(json.loads(line)["configuration"] == configuration for line in lines):
        return
    started = time.time()
    sides = sides_of(arguments, forms, precision=precision, size=size, num_members=num_members)
    memory = {form: peak_bytes(step) for form, step in sides.items()}
    times = interleaved(sides, rounds=arguments.rounds)
    result = {
        "configuration": configuration,
        "machine": cpu_name(),
        "versions": {"edc": edc.__version__, "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": times,
        "peak_bytes": memory,
        "took_seconds": round(time.time() - started),
    }
    with arguments.output.open("a") as file:
        file.write(json.dumps(result) + "\n")
    print_result(result)


def sides_of(
    arguments: argparse.Namespace, forms: list[str], *, precision: str, size: int, num_members: int
) -> dict[str, Callable[[], None]]:
    """Returns a function for each form that computes the gradients of one step, all on the same images and weights."""

    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        section, shape = NetworkSection(name=arguments.network), (3, size, size)
        statistics_of_images = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
        return build_network(section, num_classes=arguments.classes, image_shape=shape, **statistics_of_images)

    def placed(network: nn.Module) -> nn.Module:
        return network.train().to(memory_format=torch.channels_last)

    teachers = TeacherEnsemble([network(m) for m in range(num_members)]).to(memory_format=torch.channels_last)
    accelerator, training = Accelerator(cpu=True), TrainingSection(precision=precision)
    perturbation = "tdiv_sdiv" if num_members > 1 else "ods"  # one teacher has nobody to disagree with
    section = StudentSection(perturbation=perturbation)
    pixels = torch.rand(arguments.batch, 3, size, size, generator=generator_for("step_cost"))
    images, labels = pixels.contiguous(memory_format=torch.channels_last), torch.zeros(arguments.batch)

    def batch() -> Batch:
        return Batch(images, labels, generator_for("step_cost", "pair"), slice(0, len(images)), len(images))

    def ours(form: str) -> Callable[[], None]:
        student = placed(to_batch_ensemble(network(99), num_members))
        loss_of = student_loss(section, teachers, form=form)

        def step() -> None:
            backward_through(loss_of, student, student, batch(), training=training, accelerator=accelerator)
            student.zero_grad()

        return step

    def official(student: nn.Module) -> Callable[[], None]:
        def step() -> None:
            with autocast(images.device, training):
                loss = official_loss(student, teachers, batch(), num_members=num_members)
            loss.backward()
            student.zero_grad()

        return step

    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "official": lambda: official(placed(to_batch_ensemble(network(99), num_members, form="activation"))),
        "torch_uncertainty": lambda: official(placed(with_torch_uncertainty(network(99), num_members))),
        "joint": lambda: ours("joint"),
        "sequential": lambda: ours("sequential"),
    }
    return {form: makers[form]() for form in forms}


def with_torch_uncertainty(network: nn.Module, num_members: int) -> nn.Module:
    """Returns a copy of `network` with TorchUncertainty's layers, its weights, and factors of one."""
    from torch_uncertainty.layers import BatchConv2d, BatchLinear

    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                layer: Any = BatchConv2d.from_conv2d(child, num_members)
                layer.conv.weight.data.copy_(child.weight.data)
            elif isinstance(child, nn.Linear):
                layer = BatchLinear.from_linear(child, num_members)
                layer.linear.weight.data.copy_(child.weight.data)
            else:
                continue
            nn.init.ones_(layer.r_group)
            nn.init.ones_(layer.s_group)
            if child.bias is not None:
                layer.bias.data.copy_(child.bias.data.expand(num_members, -1))
            setattr(parent, name, layer)
    return network


def peak_bytes(step: Callable[[], None]) -> int | None:
    step()  # what is set up once is not the step's own
    gc.collect()
    with peak_growth() as memory:
        step()
    return memory.peak_bytes


def interleaved(sides: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each side's step in each round."""
    times: dict[str, list[float]] = {form: [] for form in sides}
    order, rng = list(sides), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for form in order:
            started = time.perf_counter()
            sides[form]()
            times[form].append(time.perf_counter() - started)
    return times


def print_result(result: dict[str, Any]) -> None:
    configuration, times, memory = result["configuration"], result["seconds"], result["peak_bytes"]
    print(json.dumps(configuration), f"({result['took_seconds']} s)")
    baseline = next(iter(times))
    print(f"| form | s a step | times as fast as {baseline} | peak MB | of {baseline} |\n|---|---|---|---|---|")
    for form, seconds in times.items():
        ratios = [a / b for a, b in zip(times[baseline], seconds, strict=True)]
        share = "" if memory[baseline] is None else f"{memory[form] / memory[baseline]:.2f}"
        megabytes = "" if memory[form] is None else f"{memory[form] / 1e6:.0f}"
        print(
            f"| {form} | {statistics.median(seconds):.3f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {megabytes} | {share} |"
        )
    print(flush=True)


if __name__ == "__main__":
    main()
