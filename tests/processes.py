"""Several real processes over gloo, each running a worker script that leaves what it found for the test to judge."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).parent

__all__ = ["TESTS", "environment", "found_by", "free_port"]


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a subprocess that imports edc from here and stays on one thread."""
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"} | more


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def found_by(worker: str, folder: Path, *, num_processes: int) -> list[dict[str, Any]]:
    """Returns what each process of `python WORKER FOLDER` saved as FOLDER/rank<r>.pt; all must end with code 0."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(TESTS / worker), str(folder)],
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(num_processes),
                LOCAL_WORLD_SIZE=str(num_processes),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_processes)
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * num_processes, "\n".join(outputs)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(num_processes)]
