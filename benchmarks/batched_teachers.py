"""Whether M teachers of one architecture are faster as one batched network (torch.func.vmap) than one after another.

    python benchmarks/batched_teachers.py

Both are run in turns in inference mode on the same images; a ratio is the median over rounds, with its range.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from edc.networks import build_network
from edc.recipe import NetworkSection
from edc.teachers.ensemble import TeacherEnsemble

CASES = (("cifar_resnet8", 8, 4), ("cifar_resnet8", 8, 64), ("wrn10x1", 32, 128), ("wrn16x2", 32, 128))
"""Network, pixels of a side, images in a batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--members", type=int, default=4)
    arguments = parser.parse_args()
    print("| network | side | images | precision | ms in turn | ms batched | times as fast batched |")
    print("|---|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        for name, size, batch in CASES:
            turn, batched = times_of(
                name, size, batch, precision=precision, num_members=arguments.members, rounds=arguments.rounds
            )
            ratios = [a / b for a, b in zip(turn, batched, strict=True)]
            print(
                f"| {name} | {size} | {batch} | {precision} | {1e3 * statistics.median(turn):.1f} | "
                f"{1e3 * statistics.median(batched):.1f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |",
                flush=True,
            )


def times_of(
    name: str, size: int, batch: int, *, precision: str, num_members: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Returns the seconds of each round, in turn and batched."""

    def network(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        section, shape = NetworkSection(name=name), (3, size, size)
        built = build_network(section, num_classes=10, image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)
        return built.to(memory_format=torch.channels_last)

    teachers = TeacherEnsemble([network(m) for m in range(num_members)])
    parameters, buffers = stack_module_state(list(teachers.members))
    skeleton = copy.deepcopy(teachers[0]).to("meta")

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(skeleton, (parameters, buffers), (images,))

    together = vmap(one, in_dims=(0, 0, None))
    images = torch.rand(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    turn, batched = [], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(rounds + 1):
            started = time.perf_counter()
            expected = teachers(images)
            middle = time.perf_counter()
            found = together(parameters, buffers, images)
            turn.append(middle - started)
            batched.append(time.perf_counter() - middle)
    assert (found - expected).abs().max() <= (0.05 if precision == "bf16" else 1e-4) * expected.abs().max()
    return turn[1:], batched[1:]


if __name__ == "__main__":
    main()
