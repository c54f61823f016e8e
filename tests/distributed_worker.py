"""One process of two: runs every case of `training_cases.py` over gloo and writes what it found for the tests to judge.

Launched by conftest.py as `python distributed_worker.py FOLDER`, with RANK, WORLD_SIZE and MASTER_PORT set.
"""

import json
import os
import signal
import sys
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from training_cases import (
    APART,
    BROKEN_CASES,
    CASES,
    DATA,
    NORM_CASES,
    RECIPE,
    STEPS,
    TRAINING,
    broken_data,
    norm_case,
    plain,
    raise_signal_at,
    run_case,
    said_of_broken,
    small_data,
    write_broken_images,
)

from edc.data import load_data
from edc.errors import Interrupted, RunError
from edc.method.batch_ensemble import to_batch_ensemble
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.system.files import exclusive_lock
from edc.teachers.ensemble import obtain_teacher, teacher_key
from edc.train.evaluate import evaluate_accuracy, predict_logits
from edc.train.sync_batchnorm import convert_sync_batchnorm


def norms(rank: int) -> dict[str, Any]:
    """Two training batches and one evaluation of every norm on this process's half of the rows; then unequal shares."""
    found = {}
    for case in NORM_CASES:
        norm, batches, target = norm_case(case)
        norm = convert_sync_batchnorm(norm, torch.device("cpu"))
        mine = slice(4 * rank, 4 * rank + 4)
        norm(batches[0][mine])
        x = batches[1][mine].clone().requires_grad_()
        y = norm(x)
        (y * target[mine]).sum().backward()
        narrow = norm(batches[1][mine].bfloat16()) if case == "2d" else None
        state = {key: value.clone() for key, value in norm.state_dict().items()}
        uneven = convert_sync_batchnorm(norm_case(case)[0], torch.device("cpu"))
        fewer = batches[1][:3] if rank == 0 else batches[1][3:]
        found[case] = {
            "uneven": uneven(fewer).detach(),
            "uneven_state": uneven.state_dict(),
            "y": y.detach(),
            "x_grad": x.grad,
            "gradients": {name: parameter.grad for name, parameter in norm.named_parameters()},
            "state": state,
            "narrow": narrow,
            "evaluated": norm.eval()(batches[0][mine]).detach(),
        }
    return found


def predictions(accelerator: Accelerator) -> dict[str, Any]:
    """35 test images over two processes: one more on the first."""
    data, network = small_data(), plain(5)
    members = to_batch_ensemble(plain(5), 2)
    return {
        "plain": predict_logits(network, data.test, DATA, TRAINING, accelerator),
        "members": predict_logits(members, data.test, DATA, TRAINING, accelerator),
        "accuracy": evaluate_accuracy(network, data.test, DATA, TRAINING, accelerator),
    }


def trainings(folder: Path, accelerator: Accelerator) -> dict[str, Any]:
    found = {}
    for case in CASES:
        network, losses = run_case(case, folder / case, accelerator)
        found[case] = {"losses": losses, "state": {k: v.clone() for k, v in network.state_dict().items()}}
        average = folder / case / "ema.safetensors"
        accelerator.wait_for_everyone()
        if average.is_file():
            rows = [json.loads(line) for line in (folder / case / "metrics.jsonl").read_text().splitlines()]
            found[case] |= {
                "average": load_file(average),
                "ema_validation_acc": [r["ema_validation_acc"] for r in rows],
            }
    return found


def interrupted(folder: Path, accelerator: Accelerator, rank: int) -> dict[str, Any]:
    """SIGTERM reaches the second process alone, in the middle of an epoch; the same call then goes on."""
    case, before = "teacher, float32", raise_signal_at(9, signal.SIGTERM)
    stopped = False
    try:
        run_case(case, folder / "interrupted", accelerator, before_step=before if rank == 1 else lambda step: None)
    except Interrupted:
        stopped = True
    dist.barrier()
    network, losses = run_case(case, folder / "interrupted", accelerator)
    return {"stopped": stopped, "state": network.state_dict(), "steps_left": len(losses)}


def norms_apart(folder: Path, accelerator: Accelerator, rank: int) -> dict[str, Any]:
    """Each process has batch statistics of its own: a training, the same one interrupted, and a whole run."""
    case = "sequential, float64"
    network, _ = run_case(case, folder / "apart", accelerator, training=APART)
    with suppress(Interrupted):
        before = raise_signal_at(9, signal.SIGTERM)
        run_case(case, folder / "apart again", accelerator, training=APART, before_step=before)
    resumed, losses = run_case(case, folder / "apart again", accelerator, training=APART)
    assert 0 < len(losses) < 2 * STEPS, "it was not interrupted"  # two micro-batches a step
    summary = distill(RECIPE, run=RunFolder(folder / "runs/apart"), accelerator=accelerator)
    return {
        "state": network.state_dict(),
        "resumed": resumed.state_dict(),
        "summary": summary,
        "runs": str(folder / "runs"),
    }


def unreadable_images(folder: Path, accelerator: Accelerator, rank: int) -> dict[Any, Any]:
    """What is said of broken images, and how many of them this process has met itself."""
    if rank == 0:
        write_broken_images(folder / "images")
    dist.barrier()
    found = {}
    for way, limit in BROKEN_CASES:
        data = broken_data(folder / "images", limit)
        said = said_of_broken(way, data, folder / f"{way} {limit}", accelerator)
        found[way, limit] = {"said": said, "met": len(data.train.bad.names)}
    return found


def lock_held_by_another_job(folder: Path, accelerator: Accelerator, rank: int) -> str:
    """The second process plays the job that is training teacher 0: what both are told."""
    data = load_data(RECIPE.data)
    lock = folder / "locked" / teacher_key(RECIPE, data, 0)[0] / ".lock"
    with exclusive_lock(lock, held_by_other="") if rank == 1 else nullcontext():
        dist.barrier()
        try:
            obtain_teacher(RECIPE, data, 0, teachers_path=folder / "locked", accelerator=accelerator)
        except RunError as error:
            return str(error)
    return "trained"


def signal_after_the_last_step(folder: Path, accelerator: Accelerator, rank: int) -> bool:
    """SIGTERM reaches the second process alone, in the validation of the last epoch: whether this process stopped."""
    training = TRAINING.model_copy(update={"epochs": 2})
    validations = []

    def on_validation(_trained: nn.Module) -> None:
        validations.append(1)
        if rank == 1 and len(validations) == 2:
            signal.raise_signal(signal.SIGTERM)

    try:
        run_case("teacher, float32", folder / "late", accelerator, training=training, on_validation=on_validation)
    except Interrupted:
        return True
    return False


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = int(os.environ["RANK"])
    assert (accelerator.num_processes, accelerator.process_index) == (2, rank)
    found = {
        "norms": norms(rank),
        "predictions": predictions(accelerator),
        "trainings": trainings(folder, accelerator),
        "norms apart": norms_apart(folder, accelerator, rank),
        "unreadable": unreadable_images(folder, accelerator, rank),
        "locked": lock_held_by_another_job(folder, accelerator, rank),
        "interrupted": interrupted(folder, accelerator, rank),
        "stopped_late": signal_after_the_last_step(folder, accelerator, rank),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
