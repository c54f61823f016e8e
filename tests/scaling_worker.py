"""One process of two or three: runs `scaling_cases.py` over gloo; launched by processes.py."""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from scaling_cases import evaluation, long_training

from edc.errors import RecipeError


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found: dict[str, Any] = {"1001": evaluation(1001, accelerator), "2": evaluation(2, accelerator)}
    try:
        for form in ("joint", "sequential"):
            found[form] = long_training(folder / form, accelerator, form)
    except RecipeError as error:
        found["refused"] = str(error)
    torch.save(found, folder / f"rank{accelerator.process_index}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
