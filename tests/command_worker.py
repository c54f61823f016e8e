"""One of two processes that run whole commands: saves, for the test to judge, how each ended and the rows it ran."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from command_line import edc
from torch.nn.modules.module import register_module_forward_pre_hook

from edc.networks import Classifier

RECIPE = """
name: tiny
data: {kind: synthetic, image_size: 8, num_images: 64, test: 40}
network: cifar_resnet8
training: {epochs: 1, warmup_epochs: 0, batch_size: 16}
teachers: {ensemble_size: 1}
students: {kd: {method: kd}}
"""
COMMANDS = {
    "dry run": ["distill", "tiny.yaml", "--dry-run"],
    "profile": ["distill", "tiny.yaml", "--profile"],
    "distill": ["distill", "tiny.yaml"],
    "refused": ["distill", "tiny.yaml", "--set", "training.batch_size=15"],
    "bad recipe": ["distill", "tiny.yaml", "--set", "training.epoch=3"],
    "usage": ["distill"],
}


def main(folder: Path) -> None:
    rank = Accelerator(cpu=True).process_index
    rows: list[int] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Classifier) and module.training:
            rows.append(len(inputs[0]))

    register_module_forward_pre_hook(count)
    found: dict[str, Any] = {"folder": str(folder)}
    for name, command in COMMANDS.items():
        rows.clear()
        found[name] = edc(*command, "--device", "cpu", "--threads", "1", "--json", cwd=folder), list(rows)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
