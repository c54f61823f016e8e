"""How a batch goes through the members: all as one joint batch, or one member after another.

    joint        M * N rows at once: BatchNorm statistics over all members, as published; memory grows with M
    sequential   N rows M times, each with its own backward pass: memory does not depend on M, BatchNorm statistics are
                 those of one member's rows at a time

Both train the same parameters, so a checkpoint fits either. Results depend on the form through BatchNorm, so it is a
column of the result. `auto` takes the joint form if its activations fit.
"""

import copy
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import Tensor, nn

from edc.method.batch_ensemble import ensemble_size_of
from edc.method.kinds import MemberForm
from edc.recipe import StudentSection, TrainingSection
from edc.system.files import write_json
from edc.system.machine import free_memory_bytes
from edc.system.saved import read_saved
from edc.train.distributed import by_main
from edc.train.placement import autocast

__all__ = ["KEPT", "activation_bytes", "choose_form", "kept_form"]

SHARE_OF_MEMORY = 0.4
"""Share of the free memory that activations may take. Gradients, optimizer and teachers need some; on a CPU the gaps
between the allocator's blocks take up to as much again (results/step_cost.md)."""
KEPT = "member_form.json"


def choose_form(
    section: StudentSection,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    training: TrainingSection,
    folder: Path,
    accelerator: Accelerator,
) -> tuple[MemberForm, str]:
    """Returns the form in which to train a student, and the reason if there was a choice.

    The choice of `auto` is kept in `folder`, because a resumed run must continue in the form in which it began.
    """
    if section.member_form != "auto":
        return section.member_form, ""
    if ensemble_size_of(network) == 1 or by_main((folder / "weights.safetensors").is_file, accelerator):
        return "joint", ""
    kept = folder / KEPT
    form = by_main(lambda: kept_form(kept), accelerator)
    if form is not None:
        return form, f"as {kept} says"
    rows = min(training.batch_size // accelerator.num_processes, training.micro_batch_size or training.batch_size)
    rows *= 1 if section.answers == "split" else ensemble_size_of(network)
    needed = activation_bytes(network, image_shape, training) * rows
    free = _free_bytes(accelerator)
    fits = torch.tensor(float(needed <= SHARE_OF_MEMORY * free), device=accelerator.device)
    all_fit = bool(accelerator.reduce(fits, "sum") == accelerator.num_processes)  # the same on every process
    form = "joint" if all_fit else "sequential"
    by_main(lambda: write_json(kept, {"form": form, "activation_bytes": needed, "free_bytes": free}), accelerator)
    return form, f"whose activations take {needed / 1e9:.1f} GB together; {free / 1e9:.1f} GB are free"


def kept_form(kept: Path) -> MemberForm | None:
    """Returns the form that the file `kept` says a student was begun in; None: it is not there."""
    if not kept.is_file():  # not chosen yet, or trained by an edc that did not choose
        return None
    return read_saved(_Kept, kept, advice="it must say joint or sequential, as the log does")[0].form


class _Kept(BaseModel):
    """The document of member_form.json, of which the other fields are for people."""

    form: MemberForm


def _free_bytes(accelerator: Accelerator) -> float:
    """Returns the memory that this process could use on the device of its network."""
    device = accelerator.device
    if device.type == "cuda":  # memory that torch's allocator keeps for later is free for us, though not for others
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return free_memory_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))


def activation_bytes(network: nn.Module, image_shape: tuple[int, int, int], training: TrainingSection) -> int:
    """Returns the bytes that one row of a batch keeps for its backward pass, counted on small batches on the CPU."""
    network = copy.deepcopy(network).cpu().train()  # a copy, because running it moves BatchNorm's statistics
    few, more = (_saved_bytes(network, image_shape, rows, training) for rows in (2, 4))
    return (more - few) // (2 * ensemble_size_of(network))


def _saved_bytes(network: nn.Module, image_shape: tuple[int, int, int], rows: int, training: TrainingSection) -> int:
    """Returns the bytes of all tensors that `rows` images per member keep for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.rand(rows * ensemble_size_of(network), *image_shape, dtype=next(network.parameters()).dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(images.device, training):
        network(images)
    return sum(sizes.values())
