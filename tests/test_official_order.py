"""The yardstick of benchmarks/step_cost.py computes what edc computes: only the order of work differs."""

import sys
from pathlib import Path

import pytest
import torch
from small_networks import randomise, small_network

from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.step import Batch
from edc.recipe import StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.backward import backward_through

M, N = 3, 6


@pytest.fixture
def official_loss(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from official_order import official_loss

    yield official_loss
    sys.modules.pop("official_order")


def test_loss_and_gradients_equal_the_official_order_of_work(official_loss, accelerator):
    teachers = TeacherEnsemble([small_network(10 + m) for m in range(M)])
    ours, theirs = (
        randomise(to_batch_ensemble(small_network(0), M, form=form), 1).train() for form in ("weight", "activation")
    )
    images = torch.rand((N, 3, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def batch() -> Batch:
        return Batch(images, torch.zeros(N), torch.Generator().manual_seed(5), slice(0, N), N)

    section = StudentSection(perturbation="tdiv_sdiv")
    step = student_step(section, teachers, training=TrainingSection(), form="joint")
    loss = backward_through(step, ours, ours, batch(), micro_batch_size=None, accelerator=accelerator)
    expected = official_loss(theirs, teachers, batch(), num_members=M)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-10)
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=0, atol=1e-10)
    statistics = dict(ours.named_buffers())
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(statistics[name], buffer, rtol=0, atol=1e-10)
