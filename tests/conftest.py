"""Fixtures that more than one file needs."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from command_line import Called, edc

TESTS = Path(__file__).parent


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a subprocess that imports edc from here and stays on one thread."""
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"} | more


@pytest.fixture(scope="session")
def accelerator() -> Accelerator:
    """One process on the CPU."""
    return Accelerator(cpu=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the same order as a subprocess on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found: see distributed_worker.py."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "distributed_worker.py"), str(folder)],
            env=environment(
                RANK=rank,
                LOCAL_RANK=rank,
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    outputs = []
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


TINY_RECIPE = """
name: tiny
data: {kind: synthetic, image_size: 8, num_images: 64, test: 40}
network: wrn10x1
training: {epochs: 2, warmup_epochs: 1, batch_size: 16}
teachers: {ensemble_size: 2}
students:
  kd: {method: kd}
  latent_be: {method: latent_be, perturbation: tdiv_sdiv}
"""


@dataclass(frozen=True)
class Workshop:
    """A folder in which `edc distill tiny.yaml` and `edc export` have been called; not to be written to by tests."""

    folder: Path
    distilled: Called
    exported: Called

    @property
    def recipe(self) -> Path:
        return self.folder / "tiny.yaml"

    @property
    def run(self) -> Path:
        return self.folder / "runs/tiny"

    @property
    def artifact(self) -> Path:
        return self.folder / "export/tiny"


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny run, trained, and its artifact: what the tests of the command line, export and bench share."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    distilled = edc("distill", "tiny.yaml", "--device", "cpu", "--json", cwd=folder)
    assert distilled.exit_code == 0, distilled.stderr
    exported = edc("export", "--max-batch", "8", "--json", cwd=folder)
    assert exported.exit_code == 0, exported.stderr
    return Workshop(folder, distilled, exported)
