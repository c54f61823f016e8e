"""One of two processes that run whole commands: saves, for the test to judge, how each ended and the rows it ran."""

import faulthandler
import os
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
# A folder on the first process's machine only: what the other meets must end both. Teachers have no run.
ELSEWHERE = "data={kind: image_folder, root: photosRANK, image_size: 8, num_workers: 0, validation: 4, test: 4}"
COMMANDS |= {
    f"{command} without data": [*command.split(), "tiny.yaml", "--set", ELSEWHERE]
    for command in (
        *(f"distill --run runs/elsewhere{asked}" for asked in ("", " --dry-run", " --profile")),
        "teach",
    )
}
# A data loader of its own for each process, beside the threads that exchange; teachers are trained in both.
PHOTOS = "data={kind: image_folder, root: photos0, image_size: 8, num_workers: WORKERS, validation: 4, test: 4}"
COMMANDS |= {
    f"{number} workers": [
        *("distill", "tiny.yaml", "--runs", f"workers{number}", "--set", PHOTOS.replace("WORKERS", number)),
        *("--set", "training.batch_size=4"),
    ]
    for number in ("0", "1")
}


def main(folder: Path) -> None:
    # `edc` below catches what is printed: stacks and progress go where the test finds them if a command does not end.
    log = os.fdopen(os.dup(2), "w", buffering=1)
    faulthandler.enable(log)
    rank = Accelerator(cpu=True).process_index
    rows: list[int] = []

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, Classifier) and module.training:
            rows.append(len(inputs[0]))

    register_module_forward_pre_hook(count)
    found: dict[str, Any] = {"folder": str(folder)}
    for name, command in COMMANDS.items():
        rows.clear()
        print(name, file=log)
        words = [word.replace("RANK", str(rank)) for word in command]
        found[name] = edc(*words, "--device", "cpu", "--threads", "1", "--json", cwd=folder), list(rows)
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
