"""The sides of `step_cost.py`: functions that compute the gradients of one step, which is all but the optimizer.

official                the official order of work, factors in float32 as edc has them: under bfloat16 autocast torch
                        then keeps activations in float32, as the plain formula does everywhere
official_bf16_factors   the same with factors rounded to the images' type: faster, and not the same numbers
torch_uncertainty       the official order of work with TorchUncertainty's BatchConv2d and BatchLinear
joint, sequential       edc's forms
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from official_order import official_loss
from torch import Tensor, nn

from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.member_layers import BatchEnsembleLayer
from edc.method.step import Batch
from edc.networks import build_network
from edc.recipe import NetworkSection, StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.seeding import generator_for
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.backward import backward_through
from edc.train.placement import autocast

__all__ = ["FORMS", "OURS", "step_of"]

OURS = ("joint", "sequential")
FORMS = ("official", "official_bf16_factors", "torch_uncertainty", *OURS)


def step_of(
    form: str, *, network: str, classes: int, size: int, batch: int, members: int, precision: str
) -> Callable[[], None]:
    """Returns the step of a form, on the same images, weights and random draws as every other form's."""

    def built(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        section, shape = NetworkSection(name=network), (3, size, size)
        return build_network(section, num_classes=classes, image_shape=shape, mean=(0.5,) * 3, std=(0.25,) * 3)

    training = TrainingSection(precision=precision)  # type: ignore[arg-type]
    teachers = TeacherEnsemble([built(m) for m in range(members)]).to(memory_format=torch.channels_last)
    pixels = torch.rand(batch, 3, size, size, generator=generator_for("step_cost"))
    images, labels = pixels.contiguous(memory_format=torch.channels_last), torch.zeros(batch)
    student = _student(form, built(99), members).train().to(memory_format=torch.channels_last)

    def drawn() -> Batch:
        return Batch(images, labels, generator_for("step_cost", "pair"), slice(0, batch), batch)

    if form in OURS:
        # One teacher has nobody to disagree with.
        section = StudentSection(perturbation="tdiv_sdiv" if members > 1 else "ods")
        accelerator = Accelerator(cpu=True)
        learn = student_step(section, teachers, training=training, form=form)  # type: ignore[arg-type]

        def step() -> None:
            backward_through(learn, student, student, drawn(), micro_batch_size=None, accelerator=accelerator)
            student.zero_grad()

        return step

    def official_step() -> None:
        with autocast(images.device, training):
            loss = official_loss(student, teachers, drawn(), num_members=members)
        loss.backward()
        student.zero_grad()

    return official_step


def _student(form: str, network: nn.Module, members: int) -> nn.Module:
    if form in OURS:
        return to_batch_ensemble(network, members)
    if form == "torch_uncertainty":
        return _with_torch_uncertainty(network, members)
    student = to_batch_ensemble(network, members, form="activation")
    if form == "official_bf16_factors":
        for layer in student.modules():
            if isinstance(layer, BatchEnsembleLayer):
                layer.factors = partial(_in_autocast_type, layer.factors)  # type: ignore[method-assign]
    return student


def _in_autocast_type(factors: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    r, s = factors()
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else r.dtype
    return r.to(dtype), s.to(dtype)


def _with_torch_uncertainty(network: nn.Module, num_members: int) -> nn.Module:
    """Returns a copy of `network` with TorchUncertainty's layers, its weights, and factors of one."""
    from torch_uncertainty.layers import BatchConv2d, BatchLinear

    network = copy.deepcopy(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                layer: Any = BatchConv2d.from_conv2d(child, num_members)
                layer.conv.weight.data.copy_(child.weight.data)
            elif isinstance(child, nn.Linear):
                layer = BatchLinear.from_linear(child, num_members)
                layer.linear.weight.data.copy_(child.weight.data)
            else:
                continue
            nn.init.ones_(layer.r_group)
            nn.init.ones_(layer.s_group)
            if child.bias is not None:
                layer.bias.data.copy_(child.bias.data.expand(num_members, -1))
            setattr(parent, name, layer)
    return network
