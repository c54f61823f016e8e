"""The training loop, for teachers and students alike.

`fit` is the only loop. What differs between a teacher and a student is `learn`; what is validated, and so picks the
best epoch, is `plain_of(network)`: the network itself, or the fold of its members.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from edc.data import DataSet, steps_per_epoch, train_batches
from edc.errors import DivergedError, EdcError, Interrupted
from edc.method.step import Batch, Step
from edc.recipe import DataSection, TrainingSection
from edc.seeding import derive_seed, generator_for
from edc.system.memory import freed_memory_kept
from edc.system.signals import stop_requests
from edc.train.backward import backward_through
from edc.train.checkpoint import Position, append_metrics, load_checkpoint, load_state, save_checkpoint, save_state
from edc.train.distributed import anyone, by_main, pool_bad_images, raise_together, raised_together
from edc.train.evaluate import evaluate_accuracy
from edc.train.placement import to_device
from edc.train.prepare import prepared
from edc.train.progress import TrainingProgress, training_progress
from edc.train.schedule import build_optimizer, learning_rate_at
from edc.train.sync_batchnorm import share_buffers
from edc.train.tensorboard import TensorBoardCurves, tensorboard_curves

__all__ = ["fit"]

CHECKPOINT = "checkpoint.pt"
STEPS_BETWEEN_LOOKS = 20
"""Steps between reading losses back, because on a GPU every look waits for the queue. Processes meet there."""


def fit(
    network: nn.Module,
    data: DataSet,
    *,
    learn: Step,
    plain_of: Callable[[nn.Module], nn.Module],
    data_section: DataSection,
    training: TrainingSection,
    seed: int,
    folder: Path,
    label: str,
    accelerator: Accelerator,
) -> nn.Module:
    """Trains `network`, resuming from `folder` if it was cut off, and returns it with the weights of the best epoch.

    Leaves in `folder`: weights.safetensors (the best epoch by validation accuracy, the later one of equals),
    metrics.jsonl (one line per epoch), tensorboard/, and while it runs checkpoint.pt.

    Args:
        learn: one step, which gives the loss to minimise.
        plain_of: returns the network whose validation accuracy counts.

    Raises:
        DivergedError: the loss became NaN or infinite; the last checkpoint is untouched.
        DataError: an image of any process cannot be read, or more of all processes' than the recipe allows.
        Interrupted: a signal asked to stop; the state is on disk.
    """
    finished = folder / "weights.safetensors"
    if by_main(finished.is_file, accelerator):
        with raised_together(accelerator):
            network.load_state_dict(load_state(finished))
        return network.to(accelerator.device)
    network = prepared(network, data.image_shape, training, label=label, accelerator=accelerator)
    optimizer = build_optimizer(network, training)
    position = _resumed(folder, network, optimizer, accelerator)
    job = _Job(
        network=network,
        model=accelerator.prepare_model(network) if accelerator.num_processes > 1 else network,
        optimizer=optimizer,
        position=position,
        data=data,
        learn=learn,
        plain_of=plain_of,
        data_section=data_section,
        training=training,
        seed=seed,
        folder=folder,
        label=label,
        accelerator=accelerator,
        steps=steps_per_epoch(data.train, training.batch_size, data.extra),
    )
    with stop_requests() as stop:
        _train_epochs(job, stop)
        by_main(lambda: save_state(finished, position.best_state), accelerator)
        by_main(lambda: job.checkpoint.unlink(missing_ok=True), accelerator)
        accelerator.wait_for_everyone()
        if anyone(bool(stop), accelerator):  # this training is complete, the next must not start
            raise _interrupted(stop)
    network.load_state_dict(position.best_state)
    optimizer.zero_grad(set_to_none=True)  # a teacher would keep them in memory through all later trainings
    return network


@dataclass(frozen=True)
class _Job:
    """Everything one call of `fit` works with; `position` is the only part that changes."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    position: Position
    data: DataSet
    learn: Step
    plain_of: Callable[[nn.Module], nn.Module]
    data_section: DataSection
    training: TrainingSection
    seed: int
    folder: Path
    label: str
    accelerator: Accelerator
    steps: int
    """Steps per epoch."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT


def _resumed(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> Position:
    """Returns the position to continue from, network and optimizer restored; the start if there is no checkpoint."""
    checkpoint = folder / CHECKPOINT
    if not by_main(checkpoint.is_file, accelerator):
        return Position()
    with raised_together(accelerator):
        return load_checkpoint(checkpoint, network, optimizer)


def _train_epochs(job: _Job, stop: list[int]) -> None:
    """Trains and validates from where the job stands to its last epoch."""
    position, accelerator, is_main = job.position, job.accelerator, job.accelerator.is_main_process
    purge = position.epoch * job.steps + 1 if position.epoch else None
    with (
        tensorboard_curves(job.folder / "tensorboard", purge_step=purge) if is_main else nullcontext() as curves,
        training_progress(
            job.label,
            first_step=position.epoch * job.steps + position.batch,
            total_steps=job.training.epochs * job.steps,
            visible=is_main,
        ) as progress,
    ):
        for epoch in range(position.epoch, job.training.epochs):
            # Returned to the system after each epoch, so that a fragmented heap does not last for the whole training.
            with freed_memory_kept() if accelerator.device.type == "cpu" else nullcontext():
                _train_epoch(job, epoch, progress, stop)
            _close_epoch(job, epoch, progress, curves)


def _train_epoch(job: _Job, epoch: int, progress: TrainingProgress, stop: list[int]) -> None:
    """Runs the steps of `epoch` that are still to be done."""
    training, position, accelerator = job.training, job.position, job.accelerator
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    share = training.batch_size // num_processes
    started = time.monotonic()
    pending: list[Tensor] = []
    failed: list[EdcError] = []
    job.model.train()
    batches = train_batches(
        job.data.train,
        job.data_section,
        batch_size=training.batch_size,
        seed=job.seed,
        epoch=epoch,
        extra=job.data.extra,
        first_batch=position.batch,
        rank=rank,
        num_processes=num_processes,
    )
    for number, (pixels, labels) in enumerate(_batches(job, batches, failed), start=position.batch):
        step = epoch * job.steps + number
        if not training.sync_batchnorm:
            share_buffers(job.network)  # the perturbation runs on these, and a resumed run would have them
        for group in job.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, training, job.steps) * group.get("lr_scale", 1.0)
        torch.manual_seed(derive_seed(job.seed, "step", step, rank))  # for dropout and the like
        batch = Batch(
            images=to_device(pixels, accelerator.device, training),
            labels=labels.to(accelerator.device, non_blocking=True),
            generator=generator_for(job.seed, "perturb", step),
            rows=slice(rank * share, (rank + 1) * share),
            num_rows=training.batch_size,
        )
        job.optimizer.zero_grad(set_to_none=True)
        loss = backward_through(
            job.learn,
            job.model,
            job.network,
            batch,
            micro_batch_size=training.micro_batch_size,
            accelerator=accelerator,
        )
        with record_function("edc:optimizer"):
            job.optimizer.step()
        pending.append(loss)
        position.batch = number + 1
        stopping = bool(stop) and num_processes == 1
        if len(pending) == STEPS_BETWEEN_LOOKS or number == job.steps - 1 or stopping:
            stopping = anyone(bool(stop), accelerator)
            raise_together(failed[0] if failed else None, accelerator)
            for images in job.data.trained_on:
                pool_bad_images(images, accelerator)
            progress.loss = _look_at_losses(job, pending, step)
        progress.step(step + 1, num_images=training.batch_size)
        if stopping:
            position.seconds += time.monotonic() - started
            by_main(lambda: save_checkpoint(job.checkpoint, position, job.network, job.optimizer), accelerator)
            accelerator.wait_for_everyone()  # a launcher kills all processes when the first of them leaves
            raise _interrupted(stop)
    position.seconds += time.monotonic() - started


def _batches(
    job: _Job, batches: Iterator[tuple[Tensor, Tensor]], failed: list[EdcError]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches; the wait for one is visible in a profile.

    An error while other processes are in the middle of their step goes into `failed`, and all raise it at the next
    look. Until then black images replace the batches.
    """
    try:
        while True:
            with record_function("edc:data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch
    except EdcError as error:
        if job.accelerator.num_processes == 1:
            raise
        failed.append(error)
    share = job.training.batch_size // job.accelerator.num_processes
    while True:
        yield torch.zeros(share, *job.data.image_shape, dtype=torch.uint8), torch.zeros(share, dtype=torch.int64)


def _interrupted(stop: list[int]) -> Interrupted:
    return Interrupted(stop[0] if stop else signal.SIGTERM, saved=True)  # without one, it reached another process


def _look_at_losses(job: _Job, pending: list[Tensor], step: int) -> float:
    """Reads the pending losses back, adds them up and returns the last; raises at the first that is not finite."""
    losses: list[float] = job.accelerator.reduce(torch.stack(pending).float(), "mean").tolist()
    for number, loss in enumerate(losses, start=step - len(losses) + 1):
        if not math.isfinite(loss):
            saved = job.checkpoint.is_file()
            kept = f"{job.checkpoint} holds the last good state" if saved else "there was no checkpoint yet"
            raise DivergedError(
                f"{job.label}: the loss became {loss} at step {number} (epoch {number // job.steps}); {kept}. "
                "Try a smaller training.learning_rate, a longer warm-up, or precision fp32."
            )
    job.position.loss_sum += math.fsum(losses)
    pending.clear()
    return losses[-1]


def _close_epoch(job: _Job, epoch: int, progress: TrainingProgress, curves: TensorBoardCurves | None) -> None:
    """Validates, remembers the best, writes the epoch's line and the checkpoint."""
    training, position = job.training, job.position
    last_step = (epoch + 1) * job.steps - 1
    record: dict[str, Any] = {"epoch": epoch, "step": last_step + 1, "loss": position.loss_sum / job.steps}
    if (epoch + 1) % training.validate_every == 0 or epoch == training.epochs - 1:
        share_buffers(job.network)  # all validate, remember and return one network
        plain = job.plain_of(job.network)
        acc = evaluate_accuracy(plain, job.data.validation, job.data_section, training, job.accelerator)
        progress.validation_acc = record["validation_acc"] = acc
        if acc >= position.best_validation_acc:
            position.best_validation_acc, position.best_epoch = acc, epoch
            position.best_state = {k: v.detach().cpu().clone() for k, v in job.network.state_dict().items()}
    record["learning_rate"] = learning_rate_at(last_step, training, job.steps)
    record["seconds"] = round(position.seconds, 3)
    position.epoch, position.batch, position.loss_sum = epoch + 1, 0, 0.0

    def write() -> None:
        append_metrics(job.folder / "metrics.jsonl", record)
        if curves is not None:
            curves.add(record)
        if (epoch + 1) % training.checkpoint_every == 0:
            save_checkpoint(job.checkpoint, position, job.network, job.optimizer)

    by_main(write, job.accelerator)
