"""Fixtures that more than one file needs."""

import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from browser import Browser
from command_line import Called, edc
from filelock import FileLock
from processes import TESTS, environment, found_by

__all__ = ["TESTS", "TINY_RECIPE", "Workshop", "environment"]


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


def of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """Returns the folder that all workers of pytest-xdist share."""
    return factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found: see distributed_worker.py. Made once for all workers."""
    folder = of_all_workers(tmp_path_factory) / "two_processes"
    with FileLock(f"{folder}.lock"):
        if (folder / "rank1.pt").is_file():
            return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
        folder.mkdir()  # fails if another worker's processes have failed here, which its tests say
        return found_by("distributed_worker.py", folder, num_processes=2)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium, for tests that open a page and leave nothing behind in it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("Chromium is not installed (none of chromium, chromium-browser, google-chrome on PATH)")
    browser = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


# By accuracy: it takes an epoch whose answers are not all those of the ensemble, and a bench shows such images.
TINY_RECIPE = """
name: tiny
data: {kind: synthetic, image_size: 8, num_images: 64, test: 40}
network: wrn10x1
training: {epochs: 2, warmup_epochs: 1, batch_size: 16}
teachers: {ensemble_size: 2}
students:
  kd: {method: kd}
  latent_be: {method: latent_be, perturbation: tdiv_sdiv}
deploy_by: accuracy
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
    """A tiny run, trained, and its artifact: what the tests of the command line, export and bench share.

    Made once for all workers; each has a copy of its own, because commands lock runs.
    """
    made, folder = of_all_workers(tmp_path_factory) / "workshop", tmp_path_factory.mktemp("workshop")
    with FileLock(f"{made}.lock"):
        if not (made / "called.pickle").is_file():
            made.mkdir()  # fails if the commands have failed in another worker, which its tests say
            (made / "tiny.yaml").write_text(TINY_RECIPE)
            distilled = edc("distill", "tiny.yaml", "--device", "cpu", "--json", cwd=made)
            assert distilled.exit_code == 0, distilled.stderr
            exported = edc("export", "--max-batch", "8", "--json", cwd=made)
            assert exported.exit_code == 0, exported.stderr
            (made / "called.pickle").write_bytes(pickle.dumps((distilled, exported)))
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return Workshop(folder, *pickle.loads((made / "called.pickle").read_bytes()))
