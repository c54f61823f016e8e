"""The training loop, for teachers and students alike.

`fit` is the only loop. What differs between a teacher and a student is `learn`; what is validated, and so picks the
best epoch, is `plain_of(network)`: the network itself, or the fold of its members.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import record_function

from edc.data import DataSet, near, steps_per_epoch, train_batches
from edc.errors import EdcError
from edc.method.kinds import View
from edc.method.step import Batch, Step
from edc.recipe import BestBy, DataSection, TrainingSection
from edc.seeding import derive_seed, generator_for
from edc.system.memory import freed_memory_kept
from edc.system.signals import interrupted_by, stop_requests
from edc.train.average import Ema, RunningAverage, average_of
from edc.train.backward import backward_through, read_back
from edc.train.checkpoint import CheckpointWriter, Position, load_finished, resumed, save_state
from edc.train.distributed import anyone, by_main, kept_coming, pool_bad_images, raise_together, raised_together
from edc.train.evaluate import Validated, validated
from edc.train.placement import convolutions_tuned, float32_of, place, to_device
from edc.train.prepare import prepared
from edc.train.progress import TrainingProgress, training_progress
from edc.train.schedule import build_optimizer, learning_rate_at
from edc.train.sync_batchnorm import share_buffers
from edc.train.tracking.epoch_log import EpochLog, Tracked

__all__ = ["EMA_WEIGHTS", "WEIGHTS", "fit"]

CHECKPOINT, WEIGHTS, EMA_WEIGHTS = "checkpoint.pt", "weights.safetensors", "ema.safetensors"
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
    views: Sequence[View] = (),
    observe: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    ema: Ema | None = None,
    best_by: BestBy = "accuracy",
    weights: str = WEIGHTS,
    tracked: Tracked | None = None,
) -> nn.Module:
    """Trains `network`, resuming from `folder` if it was cut off, and returns it with the weights of the best epoch.

    Leaves in `folder`: `weights` (the best epoch on validation images by `best_by`, of equals the later one), the same
    of the average in ema.safetensors, metrics.jsonl (a line per epoch), tensorboard/, and while it runs checkpoint.pt.

    Args:
        learn: one step, which gives the loss to minimise; `plain_of` returns the network that is validated.
        views: those of the student; the data's part in them is described at `train_batches`.
        observe: returns what else to write of the network after this epoch, if it validates; may leave it in eval mode.
        ema: the decay of a moving average of the network, which is validated as the network is, see `decay_of`.

    Raises:
        DivergedError: the loss became NaN or infinite; the last checkpoint is untouched.
        DataError: an image of any process cannot be read, or more of all processes' than the recipe allows.
        Interrupted: a signal asked to stop; the state is on disk.
    """
    finished = folder / weights
    if by_main(finished.is_file, accelerator):
        with raised_together(accelerator):
            load_finished(finished, network, advice=f"remove it, and {label} is trained anew")
        return place(network, accelerator.device, training)
    network = prepared(network, data.image_shape, training, label=label, accelerator=accelerator)
    optimizer = build_optimizer(network, training)
    steps = steps_per_epoch(data.train, training.batch_size, data.extra)
    average = average_of(network, ema, num_steps=training.epochs * steps)
    position = resumed(folder / CHECKPOINT, network, optimizer, average, accelerator=accelerator)
    job = _Job(
        network=network,
        model=accelerator.prepare_model(network) if accelerator.num_processes > 1 else network,
        optimizer=optimizer,
        average=average,
        position=position,
        data=near(data, accelerator.device, views=views),
        learn=learn,
        plain_of=plain_of,
        data_section=data_section,
        training=training,
        views=views,
        observe=observe,
        best_by=best_by,
        seed=seed,
        folder=folder,
        label=label,
        accelerator=accelerator,
        steps=steps,
        writer=CheckpointWriter(folder / CHECKPOINT, position, network, optimizer, average),
    )
    with stop_requests() as stop, job.writer:
        _train_epochs(job, EpochLog(folder, tracked, accelerator), stop)
        by_main(lambda: _save_best(job, finished), accelerator)
        accelerator.wait_for_everyone()
        if anyone(bool(stop), accelerator):  # this training is complete, the next must not start
            raise interrupted_by(stop)
    network.load_state_dict(position.best_state)
    optimizer.zero_grad(set_to_none=True)  # a teacher would keep them in memory through all later trainings
    return network


def _save_best(job: "_Job", finished: Path) -> None:
    """Leaves the best weights in place of the checkpoint; `finished` says that nothing of it is needed any more."""
    job.writer.wait()
    if job.average is not None:
        save_state(job.folder / EMA_WEIGHTS, job.average.best_state)
    save_state(finished, job.position.best_state)
    job.writer.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Job:
    """Everything one call of `fit` works with; the networks, the optimizer and `position` change."""

    network: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: RunningAverage | None
    position: Position
    data: DataSet
    learn: Step
    plain_of: Callable[[nn.Module], nn.Module]
    data_section: DataSection
    training: TrainingSection
    views: Sequence[View]
    observe: Callable[[nn.Module, int], Mapping[str, float]] | None
    best_by: BestBy
    seed: int
    folder: Path
    label: str
    accelerator: Accelerator
    steps: int
    """Steps per epoch."""
    writer: CheckpointWriter


def _train_epochs(job: _Job, log: EpochLog, stop: list[int]) -> None:
    """Trains and validates from where the job stands to its last epoch."""
    position, accelerator = job.position, job.accelerator
    by_main(lambda: log.open(purge_step=position.epoch * job.steps + 1 if position.epoch else None), accelerator)
    with (
        closing(log),
        training_progress(
            job.label,
            first_step=position.epoch * job.steps + position.batch,
            total_steps=job.training.epochs * job.steps,
            visible=accelerator.is_main_process,
        ) as progress,
    ):
        for epoch in range(position.epoch, job.training.epochs):
            # Returned to the system after each epoch, so that a fragmented heap does not last for the whole training.
            with (
                freed_memory_kept() if accelerator.device.type == "cpu" else nullcontext(),
                float32_of(job.training),
                convolutions_tuned(accelerator.device, shapes_stay=job.learn.shapes_stay),
            ):
                _train_epoch(job, epoch, progress, stop)
            _close_epoch(job, epoch, progress, log)


def _train_epoch(job: _Job, epoch: int, progress: TrainingProgress, stop: list[int]) -> None:
    """Runs the steps of `epoch` that are still to be done."""
    training, position, accelerator = job.training, job.position, job.accelerator
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    share = training.batch_size // num_processes
    started = time.monotonic()
    pending: list[Tensor] = []
    failed: list[EdcError] = []
    job.model.train()
    batches = _batches(job, epoch, failed)
    for number, (pixels, labels) in enumerate(batches, start=position.batch):
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
            if job.average is not None:
                job.average.update(job.network)
        pending.append(loss)
        position.batch = number + 1
        stopping = bool(stop) and num_processes == 1
        if len(pending) == STEPS_BETWEEN_LOOKS or number == job.steps - 1 or stopping:
            stopping = anyone(bool(stop), accelerator)
            raise_together(failed[0] if failed else job.writer.failure(), accelerator)
            for images in job.data.trained_on:
                pool_bad_images(images, accelerator)
            losses = read_back(
                pending,
                step,
                steps_per_epoch=job.steps,
                label=job.label,
                writer=job.writer,
                accelerator=accelerator,
            )
            position.loss_sum += math.fsum(losses)
            progress.loss = losses[-1]
            pending.clear()
        progress.step(step + 1, num_images=training.batch_size)
        if stopping:
            position.seconds += time.monotonic() - started
            by_main(job.writer.save, accelerator)
            accelerator.wait_for_everyone()  # a launcher kills all processes when the first of them leaves
            raise interrupted_by(stop)
    position.seconds += time.monotonic() - started


def _batches(job: _Job, epoch: int, failed: list[EdcError]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields this process's batches of `epoch` that are still to be done."""
    batches = train_batches(
        job.data.train,
        job.data_section,
        batch_size=job.training.batch_size,
        seed=job.seed,
        epoch=epoch,
        extra=job.data.extra,
        first_batch=job.position.batch,
        rank=job.accelerator.process_index,
        num_processes=job.accelerator.num_processes,
        randaugment="randaugment" in job.views,
        shuffled=any(view != "randaugment" for view in job.views),
        device=job.accelerator.device,
    )
    share = job.training.batch_size // job.accelerator.num_processes
    return kept_coming(batches, failed, share=share, image_shape=job.data.image_shape, accelerator=job.accelerator)


def _close_epoch(job: _Job, epoch: int, progress: TrainingProgress, log: EpochLog) -> None:
    """Validates, remembers the best, writes the epoch's line, and begins to write the checkpoint."""
    training, position = job.training, job.position
    last_step = (epoch + 1) * job.steps - 1
    record: dict[str, Any] = {"epoch": epoch, "step": last_step + 1, "loss": position.loss_sum / job.steps}
    if (epoch + 1) % training.validate_every == 0 or epoch == training.epochs - 1:
        found = _validated(job, job.network)
        progress.validation_acc = found.acc
        record |= found.figures()
        position.keep_if_best(found.score, job.network)
        if job.observe is not None and (observed := job.observe(job.network, epoch)):
            record["observed"] = observed
        if job.average is not None:
            average = _validated(job, job.average.network)
            record |= average.figures("ema_")
            job.average.keep_if_best(average.score)
    record["learning_rate"] = learning_rate_at(last_step, training, job.steps)
    record["seconds"] = round(position.seconds, 3)
    position.epoch, position.batch, position.loss_sum = epoch + 1, 0, 0.0

    def write() -> None:
        log.add(record)
        if (epoch + 1) % training.checkpoint_every == 0:
            job.writer.begin()

    by_main(write, job.accelerator)


def _validated(job: _Job, network: nn.Module) -> Validated:
    """Returns figures of the plain network of `network`, one and the same on all processes from here on."""
    share_buffers(network)
    plain, images = job.plain_of(network), job.data.validation
    return validated(plain, images, job.data_section, job.training, job.accelerator, by=job.best_by)
