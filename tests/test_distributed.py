"""Two and three processes against one; and stopping, as schedulers do it, with the commands of docs/scaling.md."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import edc
from conftest import TINY_RECIPE
from processes import TESTS, environment, found_by, free_port
from safetensors.torch import load_file
from scaling_cases import DATA, NUM_STEPS, TRAINING, Witness, evaluation, long_training, numbered_images

from edc.errors import RUN_AGAIN, Interrupted, RecipeError
from edc.recipe import TrainingSection
from edc.system.signals import STOP_SIGNALS, nothing_kept, stop_at_once, stop_requests
from edc.train.evaluate import predict_logits
from edc.train.sync_batchnorm import require_batchnorm_rows, require_sharable

ROOT = TESTS.parent
SCALING = ROOT / "docs/scaling.md"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return found_by("scaling_worker.py", tmp_path_factory.mktemp("two"), num_processes=2)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return found_by("scaling_worker.py", tmp_path_factory.mktemp("three"), num_processes=3)


# The same losses, every image once ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["joint", "sequential"])
def test_losses_of_two_processes_are_those_of_one_over_50_steps_in_float32(
    two, tmp_path, accelerator, one_thread, form
):
    expected = long_training(tmp_path, accelerator, form)
    curve = np.mean([found[form] for found in two], axis=0)
    assert len(curve) == NUM_STEPS >= 50
    assert expected[-1] < expected[0] - 0.05, "nothing is learned, so nothing is compared"
    np.testing.assert_allclose(curve, expected, rtol=0, atol=1e-5)
    assert two[0][form] != two[1][form], "both processes saw the same images"


@pytest.mark.parametrize("num_images", [1001, 2])
@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_image_is_evaluated_once(two, three, accelerator, num_processes, num_images):
    by_number = {1: [{str(num_images): evaluation(num_images, accelerator)}], 2: two, 3: three}
    found = [process[str(num_images)] for process in by_number[num_processes]]
    assert len(found) == num_processes
    for way in ("seen for accuracy", "seen for logits"):
        counts = Counter(image for process in found for image in process[way])
        assert counts == dict.fromkeys(range(num_images), 1), way
    numbers = np.arange(num_images)
    # By hand: class 0 has the image's number as its logit, class 1 has 500.5 or 507.5.
    predicted = np.where(numbers > 500.5 + 7 * (numbers % 2), 0, 1)
    right = (predicted == (numbers % 3 == 0)).mean()
    expected = np.stack([numbers, 500.5 + 7 * (numbers % 2), -numbers], axis=1)[None]
    for process in found:
        assert process["accuracy"] == pytest.approx(right, abs=1e-12)
        np.testing.assert_array_equal(process["logits"], expected)


def test_witness_would_notice_an_image_shown_twice(accelerator):
    witness = Witness()
    predict_logits(witness, numbered_images(5), DATA, TRAINING, accelerator)
    predict_logits(witness, numbered_images(1), DATA, TRAINING, accelerator)
    assert Counter(witness.seen)[0] == 2


# Batches that cannot be shared ----------------------------------------------------------------------------------------


def test_three_processes_cannot_share_sixteen_images(three):
    for process in three:
        assert process["refused"].startswith("training.batch_size: 16 is not divisible by 3 processes; make it a")


def test_more_processes_than_images_in_a_batch():
    with pytest.raises(RecipeError, match=r"2 is not divisible by 4 processes: there are more processes than images"):
        require_sharable(TrainingSection(batch_size=2), num_processes=4)
    require_sharable(TrainingSection(batch_size=4), num_processes=4)


WITH_NORM = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("fields", "num_processes", "said"),
    [
        ({"batch_size": 1}, 1, r"1 leaves a single image .* of it, which has 1 BatchNorm layers \(1, \.\.\.\)"),
        ({"batch_size": 4, "sync_batchnorm": False}, 4, r"4 on 4 processes leaves .* training.sync_batchnorm to true"),
        (
            {"batch_size": 9, "micro_batch_size": 4},
            1,
            r"9 in micro-batches of 4 \(the last one of 1\) leaves .* another training.micro_batch_size",
        ),
        ({"batch_size": 4}, 4, None),
        ({"batch_size": 8, "micro_batch_size": 2, "sync_batchnorm": False}, 2, None),
        ({"batch_size": 2, "micro_batch_size": 64}, 1, None),
    ],
)
def test_batchnorm_over_a_single_image_is_refused(fields, num_processes, said):
    training = TrainingSection(**fields)
    without = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.GroupNorm(1, 4))
    require_batchnorm_rows(without, training, num_processes=num_processes, label="it")
    if said is None:
        require_batchnorm_rows(WITH_NORM, training, num_processes=num_processes, label="it")
        return
    with pytest.raises(RecipeError, match=rf"^training.batch_size: {said}"):
        require_batchnorm_rows(WITH_NORM, training, num_processes=num_processes, label="it")


def test_batch_of_one_image_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    called = edc("distill", "tiny.yaml", "--device", "cpu", "--set", "training.batch_size=1", cwd=tmp_path)
    assert called.exit_code == 2
    assert "training.batch_size: 1 leaves a single image for the batch statistics of the student" in called.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


# Signals --------------------------------------------------------------------------------------------------------------


def test_scheduler_signals_ask_to_be_run_again_and_ctrl_c_does_not():
    assert RUN_AGAIN == os.EX_TEMPFAIL == 75
    assert {s.name: Interrupted(s, saved=True).exit_code for s in STOP_SIGNALS} == {
        "SIGINT": 130,
        "SIGTERM": 75,
        "SIGUSR1": 75,
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_outside_of_training_a_signal_stops_at_once_and_within_it_first_saves(number):
    before = signal.getsignal(number)
    with stop_at_once():
        with stop_requests() as stop:
            signal.raise_signal(number)
            assert stop == [number]
            with pytest.raises(Interrupted, match=signal.Signals(number).name) as second:
                signal.raise_signal(number)  # a second one does not wait
            assert not second.value.saved
        with pytest.raises(Interrupted):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_what_a_rehearsal_saves_is_not_called_saved():
    with pytest.raises(Interrupted) as stopped, nothing_kept():
        raise Interrupted(signal.SIGINT, saved=True)
    assert (stopped.value.saved, stopped.value.exit_code) == (False, 130)


SIGNALLED = """
import signal, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
from edc.cli.main import main

number = int(sys.argv.pop(1))
register_optimizer_step_post_hook(lambda *_: [signal.raise_signal(signal.SIGTERM) for _ in range(number)])
main()
"""


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "everything is saved. Continue"), (2, "what was saved before is intact, later work is lost. Continue")],
)
def test_what_is_said_of_the_state_is_so_after_one_sigterm_and_after_two(tmp_path, number, said):
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    called = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(number), "distill", "tiny.yaml", "--device", "cpu"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert called.returncode == 75, called.stderr
    assert f"stopped by SIGTERM; {said} with: edc distill tiny.yaml --device cpu" in called.stderr
    assert len(list(tmp_path.glob("runs/teachers/*/checkpoint.pt"))) == (number == 1)


RECIPE = """
name: r
data: {kind: synthetic, num_images: 400, image_size: 8, num_classes: 3, validation: 33, test: 35, crop_padding: 1}
network: cifar_resnet8
training: {epochs: 4, warmup_epochs: 1, batch_size: 16, learning_rate: 0.02}
teachers: {ensemble_size: 2, epochs: 2}
students:
  be: {method: latent_be, perturbation: tdiv_sdiv}
"""
ARGUMENTS = ["distill", "recipe.yaml", "--device", "cpu", "--threads", "1", "--run", "runs/r"]
DISTILL = ["-m", "--", "edc", *ARGUMENTS]


def torchrun(*arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    return [*launcher, *arguments]


def run_to_the_end(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    called = subprocess.run(
        command, cwd=folder, env=environment(**environ), capture_output=True, text=True, timeout=300, check=False
    )
    assert called.returncode == 0, called.stderr
    return called


def wait_for_lines(folder: Path, number: int, process: subprocess.Popen[str]) -> None:
    """Waits until the student's metrics have so many lines: a moment in the middle of its training."""
    deadline = time.monotonic() + 240
    metrics = folder / "runs/r/students/be/metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)
    pytest.fail(f"no {number} epochs in time: {process.communicate()[1] if process.poll() is not None else 'timeout'}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run of two processes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    (folder / "recipe.yaml").write_text(RECIPE)
    run_to_the_end(torchrun(*DISTILL), folder)
    return folder


def assert_same_run(folder: Path, expected: Path) -> None:
    files = sorted(path.relative_to(expected) for path in expected.rglob("weights.safetensors"))
    assert len(files) == 3
    for file in files:
        weights, wanted = load_file(folder / file), load_file(expected / file)
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[key], wanted[key]) for key in wanted), file
    rows, wanted_rows = (json.loads((at / "runs/r/summary.json").read_text())["rows"] for at in (folder, expected))
    assert rows == wanted_rows


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_same_command_ends_bit_equal(tmp_path, uninterrupted):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    process = subprocess.Popen(
        torchrun(*DISTILL),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_lines(tmp_path, 2, process)
        process.terminate()
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert stderr.count("stopped by SIGTERM; everything is saved") == 2, stderr
    assert (tmp_path / "runs/r/students/be/checkpoint.pt").is_file()
    assert not (tmp_path / "runs/r/summary.json").exists()
    run_to_the_end(torchrun(*DISTILL), tmp_path)
    assert_same_run(tmp_path, uninterrupted)


SRUN = """#!/bin/bash
# Two tasks of one node, as SLURM would start them; USR1 goes to the tasks, as `--signal=USR1@300` has it.
while [[ $1 == --* ]]; do shift; done
echo "$$" > srun.pid
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
code=0
for task in $tasks; do
  wait "$task"; ended=$?
  while kill -0 "$task" 2>/dev/null; do wait "$task"; ended=$?; done
  echo "$ended" >> codes
  [ "$ended" -gt "$code" ] && code=$ended
done
exit "$code"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> requeued; fi
"""


@pytest.mark.slow
def test_batch_script_requeues_a_job_that_was_signalled_and_it_ends_bit_equal(tmp_path, uninterrupted):
    """SLURM itself is not here: `srun` and `scontrol` are stand-ins; the script, the signals and edc are real."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    environ = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_ID": free_port(),
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    job = ["bash", str(ROOT / "docs/slurm/edc.sbatch"), *ARGUMENTS]
    process = subprocess.Popen(
        job, cwd=tmp_path, env=environment(**environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for_lines(tmp_path, 2, process)
        os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGUSR1)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 75, stderr
    assert (tmp_path / "codes").read_text().split() == ["75", "75"]
    assert (tmp_path / "requeued").read_text() == f"requeue {environ['SLURM_JOB_ID']}\n"
    run_to_the_end(job, tmp_path, **environ)
    assert_same_run(tmp_path, uninterrupted)
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1, "a finished job was requeued"
    mistaken = subprocess.run(
        [*job, "--set", "training.batch_size=3"], cwd=tmp_path, env=environment(**environ), check=False
    )
    assert mistaken.returncode == 2
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1, "a mistake was requeued"


# The commands of docs/scaling.md --------------------------------------------------------------------------------------


def commands_of_the_page() -> list[list[str]]:
    """Returns the commands of the page's bash blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", SCALING.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_launchers_understand_every_command_of_the_page():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    launched = {"torchrun": get_args_parser(), "accelerate": launch_command_parser()}
    found = Counter()
    for command in commands_of_the_page():
        name = command[0]
        if name not in launched:
            continue
        found[name] += 1
        given = [*command[2 if name == "accelerate" else 1 :], "--run", "runs/r", "--json"]
        arguments = launched[name].parse_args(given)
        assert (arguments.module, arguments.training_script) == (True, "edc"), command
        recipe = arguments.training_script_args[1]
        assert arguments.training_script_args[0] == "distill"
        assert arguments.training_script_args[-3:] == ["--run", "runs/r", "--json"]
        assert (ROOT / recipe).is_file() or recipe == "tiny.yaml"
    assert found["torchrun"] >= 3
    assert found["accelerate"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_commands_for_a_machine_without_a_gpu_start_two_processes(tmp_path, launcher):
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    (command,) = [c for c in commands_of_the_page() if c[0] == launcher and "cpu" in c]
    command[0] = str(Path(sys.executable).with_name(launcher))
    called = run_to_the_end(command, tmp_path)
    assert json.loads(called.stdout)["num_processes"] == 2
