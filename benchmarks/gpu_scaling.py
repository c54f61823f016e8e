"""Images per second and memory of training steps on one GPU at ImageNet's size, and what a host needs for each kernel.

    python benchmarks/gpu_scaling.py --output gpu_scaling.json
    python benchmarks/gpu_scaling.py --cpu          # a rehearsal, small, whose figures mean nothing

Random images on the device, no loader. docs/scaling.md estimates the same: a step costs as many forward passes as its
kind has units (cross-entropy 3, KD 7, LatentBE 16, LatentBE + TDiv-SDiv 22, at four teachers).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from gpu_steps import stepper
from torch.profiler import ProfilerActivity, profile

from edc.train.placement import convolutions_tuned, float32_as

UNITS = {"teacher": 3, "kd": 7, "latent_be": 16, "tdiv_sdiv": 22}
CASES = (("teacher", "joint"), ("kd", "joint"), ("latent_be", "joint"), ("tdiv_sdiv", "joint"),
         ("tdiv_sdiv", "sequential"))  # fmt: skip


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def times_of(take: Any, device: str, *, num_steps: int) -> tuple[float, float]:
    """Returns seconds of a step, the mean over `num_steps` without a wait between them, and of the host to ask."""
    synchronize(device)
    before = time.perf_counter()
    for _ in range(num_steps):
        take()
    asked = time.perf_counter() - before
    synchronize(device)
    return (time.perf_counter() - before) / num_steps, asked / num_steps


def measured(name: str, kind: str, form: str, device: str, **sizes: int) -> dict[str, Any]:
    """Returns the figures of one step: three rounds, their median, smallest and largest."""
    with float32_as("tf32"), convolutions_tuned(torch.device(device), shapes_stay=True):
        take = stepper(device, form, kind, torch.bfloat16, small=False, network=name, ensemble_size=4, **sizes)
        for _ in range(3):
            take()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        num_steps = 5 if device == "cuda" else 1
        rounds = sorted(times_of(take, device, num_steps=num_steps)[0] for _ in range(3))
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
    return {
        "network": name, "kind": kind, "form": form, "ms": [1e3 * each for each in rounds],
        "images_per_second": sizes["rows"] / rounds[1], "peak_memory_gb": memory, **sizes,
    }  # fmt: skip


def host_of(kind: str, form: str, device: str, *, precision: str) -> dict[str, Any]:
    """Returns what the host needs to ask for a step of WRN-28-4 on so few images that the device never keeps it
    waiting, and for each kernel."""
    autocast = torch.bfloat16 if precision == "bf16" else None
    take = stepper(device, form, kind, autocast, small=False, network="wrn28x4", ensemble_size=4, rows=4)
    for _ in range(3):
        take()
    asked = sorted(times_of(take, device, num_steps=1)[1] for _ in range(15))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        take()
        synchronize(device)
    wanted = ("cudaLaunchKernel", "cuLaunchKernel") if device == "cuda" else ("aten::",)
    launches = sum(event.count for event in profiled.key_averages() if event.key.startswith(wanted))
    return {
        "kind": kind, "form": form, "precision": precision, "host_ms": [1e3 * asked[i] for i in (7, 0, -1)],
        "launches": launches, "us_per_launch": 1e6 * asked[7] / launches,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--networks", default="torchvision/resnet18,torchvision/resnet50")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device, size, rows = ("cpu", 64, 2) if arguments.cpu else ("cuda", 224, arguments.rows)
    document: dict[str, Any] = {
        "gpu": None if arguments.cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "steps": [],
        "host": [],
    }
    print(
        "| network | step | ms | images/s | of ordinary training's | by units | memory, GB |"
        "\n|---|---|---|---|---|---|---|"
    )
    for name in arguments.networks.split(","):
        ordinary = 0.0
        for kind, form in CASES:
            found = measured(name, kind, form, device, image_size=size, rows=rows, num_classes=1000)
            document["steps"].append(found)
            ordinary = ordinary or found["images_per_second"]
            memory = found["peak_memory_gb"]
            print(
                f"| {name} | {kind}, {form} | {found['ms'][1]:.1f} ({found['ms'][0]:.1f}-{found['ms'][2]:.1f}) | "
                f"{found['images_per_second']:.0f} | {found['images_per_second'] / ordinary:.3f} | "
                f"{3 / UNITS[kind]:.3f} | {'-' if memory is None else f'{memory:.1f}'} |",
                flush=True,
            )
    print("\n| WRN-28-4, four members | launches | host ms | us a launch |\n|---|---|---|---|")
    for kind, form in CASES[:1] + CASES[2:]:
        for precision in ("fp32", "bf16"):
            found = host_of(kind, form, device, precision=precision)
            document["host"].append(found)
            middle, low, high = found["host_ms"]
            print(
                f"| {kind}, {form}, {precision} | {found['launches']} | {middle:.1f} ({low:.1f}-{high:.1f}) | "
                f"{found['us_per_launch']:.1f} |",
                flush=True,
            )
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
