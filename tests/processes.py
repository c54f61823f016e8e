"""Several real processes over gloo, each running a worker script that leaves what it found for the test to judge."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
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
    """Returns a port that is free now and that the system gives to nobody who asks for any.

    One of the system's own choice may be another socket's by the time a process listens there. A process that tries to
    connect to it before may even be connected to itself.
    """
    given = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first_given = int(given.read_text().split()[0]) if given.is_file() else 32768
    chosen = random.SystemRandom()  # tests seed the other one
    while True:
        port = chosen.randrange(first_given // 2, first_given)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return str(port)


def found_by(worker: str, folder: Path, *, num_processes: int) -> list[dict[str, Any]]:
    """Returns what each process of `python WORKER FOLDER` saved as FOLDER/rank<r>.pt; all must end with code 0.

    What the processes print goes to files: a pipe that nobody reads yet would stop its writer, and so all of them. When
    they do not end in time, or one fails and the others wait for it, each says where it stands before it is ended.
    """
    port = free_port()
    logs = [folder / f"rank{rank}.log" for rank in range(num_processes)]
    processes = []
    for rank, log in enumerate(logs):
        of_rank = environment(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(num_processes),
            LOCAL_WORLD_SIZE=str(num_processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
            PYTHONFAULTHANDLER="1",  # prints the stacks of all threads at SIGABRT
        )
        with log.open("w") as output:
            command = [sys.executable, str(TESTS / worker), str(folder)]
            processes.append(subprocess.Popen(command, env=of_rank, stdout=output, stderr=subprocess.STDOUT))
    try:
        end_in_time(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs)
    assert [process.returncode for process in processes] == [0] * num_processes, said
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(num_processes)]


def end_in_time(processes: list[subprocess.Popen[bytes]], *, seconds: float = 300, grace: float = 30) -> None:
    """Waits until all have ended; aborts those that have not after so many seconds, or so long after one failed."""
    deadline = time.monotonic() + seconds
    while None in (codes := [process.poll() for process in processes]) and time.monotonic() < deadline:
        if any(codes):
            deadline = min(deadline, time.monotonic() + grace)
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGABRT)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace)
