"""Closing an epoch: the fold builds no network, and the checkpoint is written beside the training.

What is on disk is whole at any moment, and an error of writing is said.
"""

import errno
import shutil
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_cases import RECIPE, TRAINING, raise_signal_at, run_case, small_data

from edc.errors import DiskError, DivergedError, Interrupted
from edc.method.batch_ensemble import fold
from edc.runs.student import build_plain, build_student, folding

CASE = "latent_be, float32"
FOUR = TRAINING.model_copy(update={"epochs": 4})  # of four steps each
SAVE = torch.save


@pytest.fixture(scope="module", autouse=True)
def one_thread_throughout() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, accelerator, one_thread_throughout) -> tuple[Path, list[float]]:
    """Folder and losses of a training that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run_case(CASE, folder, accelerator, training=FOUR)[1]


class Disk:
    """Takes the place of torch.save: `harm` is called with the number of each write, when half of it is on disk."""

    def __init__(self, harm: Callable[[int], None]) -> None:
        self.harm, self.writes = harm, 0
        self.begun: defaultdict[int, threading.Event] = defaultdict(threading.Event)

    def __call__(self, document: Any, path: Path) -> None:
        SAVE(document, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        number, self.writes = self.writes, self.writes + 1
        self.begun[number].set()
        self.harm(number)
        path.write_bytes(whole)


@pytest.fixture
def disk(monkeypatch) -> Iterator[Callable[[Callable[[int], None]], Disk]]:
    def with_harm(harm: Callable[[int], None]) -> Disk:
        made = Disk(harm)
        monkeypatch.setattr(torch, "save", made)
        return made

    return with_harm


def assert_weights_equal(folder: Path, expected: Path) -> None:
    found, wanted = (load_file(path / "weights.safetensors") for path in (folder, expected))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_killed_while_a_checkpoint_is_written_goes_on_from_the_one_before(tmp_path, accelerator, undisturbed, disk):
    """The second write takes until step 10; what lies there at step 9 is what a kill leaves."""
    released = threading.Event()
    written = disk(lambda number: number == 1 and released.wait(60))

    def before_step(step: int) -> None:
        if step == 9:
            assert written.begun[1].wait(60)
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
            released.set()
        if step == 11:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_case(CASE, tmp_path / "run", accelerator, training=FOUR, before_step=before_step)
    assert len(list((tmp_path / "killed").glob(".checkpoint.*.tmp.pt"))) == 1, "the write was not in the middle"
    for folder, first_step in (("killed", 4), ("run", 8)):  # in `run` it was written while steps 8 to 10 changed all
        _, losses = run_case(CASE, tmp_path / folder, accelerator, training=FOUR, first_step=first_step)
        assert losses == undisturbed[1][first_step:]
        assert_weights_equal(tmp_path / folder, undisturbed[0])


def test_full_disk_is_said_at_the_next_look_and_the_checkpoint_before_stays(tmp_path, accelerator, undisturbed, disk):
    def full(number: int) -> None:
        if number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    written = disk(full)
    steps = []

    def before_step(step: int) -> None:
        steps.append(step)
        assert step < 9 or written.begun[1].wait(60)

    with pytest.raises(DiskError, match=r"checkpoint\.pt: the disk is full .* run the same command again to continue"):
        run_case(CASE, tmp_path, accelerator, training=FOUR, before_step=before_step)
    assert steps[-1] == 11, "went on after the look at the end of epoch 2"
    assert not list(tmp_path.glob(".*.tmp*"))
    _, losses = run_case(CASE, tmp_path, accelerator, training=FOUR, first_step=4)
    assert losses == undisturbed[1][4:]
    assert_weights_equal(tmp_path, undisturbed[0])


def test_checkpoint_of_the_last_epoch_that_cannot_be_written_is_an_error_too(tmp_path, accelerator, disk):
    def refused(number: int) -> None:
        if number == 3:
            raise OSError(errno.EROFS, "Read-only file system")

    disk(refused)
    with pytest.raises(DiskError, match=r"checkpoint\.pt: cannot be written"):
        run_case(CASE, tmp_path, accelerator, training=FOUR)
    assert not (tmp_path / "weights.safetensors").exists()
    assert (tmp_path / "checkpoint.pt").is_file()


def test_signal_while_a_checkpoint_is_written_saves_where_the_training_is(tmp_path, accelerator, undisturbed, disk):
    slow = threading.Event()
    disk(lambda number: number == 1 and slow.wait(0.3))
    with pytest.raises(Interrupted) as caught:
        run_case(CASE, tmp_path, accelerator, training=FOUR, before_step=raise_signal_at(8, signal.SIGTERM))
    assert (caught.value.exit_code, caught.value.saved) == (75, True)
    _, losses = run_case(CASE, tmp_path, accelerator, training=FOUR, first_step=9)
    assert losses == undisturbed[1][9:]
    assert_weights_equal(tmp_path, undisturbed[0])


def test_loss_that_is_not_finite_waits_for_the_first_checkpoint_before_it_says_there_is_none(
    tmp_path, accelerator, disk
):
    disk(lambda number: threading.Event().wait(0.3))
    with pytest.raises(DivergedError, match=r"checkpoint\.pt holds the last good state"):
        run_case(
            CASE,
            tmp_path,
            accelerator,
            training=FOUR,
            change_loss=lambda step, loss: loss * (torch.nan if step == 5 else 1),
        )


def test_folds_of_a_training_are_one_network_and_each_is_that_into_a_new_one():
    data, plain_of = small_data(), folding(RECIPE, "be", small_data())
    folded = []
    for seed in range(2):
        network = build_student(RECIPE, "be", data)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(seed))
        drawn = torch.get_rng_state()
        folded.append(plain_of(network))
        assert seed == 0 or torch.equal(torch.get_rng_state(), drawn), "drew initial weights"
        expected = fold(network, build_plain(RECIPE, data)).state_dict()
        assert all(torch.equal(value, expected[key]) for key, value in folded[-1].state_dict().items())
    assert folded[0] is folded[1]
