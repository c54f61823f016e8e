"""One process of two: trains the student of `extra_cases.py` over gloo; launched by processes.py."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from extra_cases import train_mixed


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    network, losses = train_mixed(folder / "mixed", accelerator)
    found = {"state": network.state_dict(), "losses": losses}
    torch.save(found, folder / f"rank{accelerator.process_index}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
