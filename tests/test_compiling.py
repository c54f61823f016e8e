"""torch.compile: the same gradients where it works, and a sentence where it does not."""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small_networks import small_network
from torch import nn

from edc.errors import Interrupted
from edc.method.batch_ensemble import select_members, to_batch_ensemble
from edc.networks import Classifier
from edc.recipe import TrainingSection
from edc.system.signals import stop_at_once
from edc.train.compiling import compile_network, example_for

SHAPE = (3, 10, 10)


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    for m in range(2):
        with select_members(network, (m,)):
            network(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


WITHOUT_COMPILER = """
import torch, torch._inductor.config
from accelerate import Accelerator
from small_networks import small_network
from edc.method.batch_ensemble import to_batch_ensemble
from edc.train.compiling import compile_network, example_for
from edc.networks import Classifier
from edc.recipe import TrainingSection
torch._inductor.config.cpp.cxx = ("/no/such/compiler",)
network = to_batch_ensemble(small_network(0).float(), 2)
training = TrainingSection(batch_size=4)
example = example_for(network, (3, 10, 10), training=training)
alone = Accelerator(cpu=True)
for _ in range(2):
    worked = compile_network(network, example, training=training, label="student", accelerator=alone)
    print(worked, tuple(network(example).shape))
"""


@pytest.mark.slow
def test_without_a_compiler_the_network_runs_as_it_is_and_the_log_says_so():
    """In a process of its own, because torch remembers that there is no compiler."""
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split("\n")[:2] == ["False (4, 5)"] * 2, ended.stderr
    assert ended.stderr.count("student: runs without torch.compile, which failed (") == 1


class Witness(nn.Module):
    """Says what it was called with; torch.compile leaves its work to Python, so that no compiler takes time."""

    seen: ClassVar[list[dict[str, object]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    @torch.compiler.disable
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(
            {
                "images": tuple(images.shape),
                "channels last": images.is_contiguous(memory_format=torch.channels_last),
                "gradient": images.requires_grad,
                "autocast": torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
            }
        )
        return images.mean((2, 3)) * self.weight


@pytest.mark.parametrize(
    ("training", "num_processes", "rows", "dtype"),
    [
        (TrainingSection(batch_size=12, precision="bf16"), 1, 12, torch.bfloat16),
        (TrainingSection(batch_size=12), 2, 6, None),
        (TrainingSection(batch_size=12, micro_batch_size=5), 2, 5, None),
    ],
)
def test_trial_is_the_step_of_the_run_and_happens_once(training, num_processes, rows, dtype, accelerator):
    network = Witness()
    Witness.seen.clear()
    example = example_for(network, SHAPE, training=training, num_processes=num_processes, to_images=True)
    for _ in range(2):
        assert compile_network(network, example, training=training, label="teacher 0", accelerator=accelerator)
    assert Witness.seen == [{"images": (rows, *SHAPE), "channels last": True, "gradient": True, "autocast": dtype}]
    assert example.grad is not None, "the gradient that perturbations ask for was not tried"


class Signalled(nn.Module):
    """Gets the request to stop while torch is compiling it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.weight


def test_signal_within_the_trial_is_no_failure_of_the_compiler(accelerator, monkeypatch):
    def compile_and_stop(_graph: torch.fx.GraphModule, _examples: list[torch.Tensor]) -> None:
        signal.raise_signal(signal.SIGTERM)

    network = Signalled()
    training = TrainingSection(batch_size=4)
    example = example_for(network, SHAPE, training=training)
    monkeypatch.setattr(Signalled, "compile", lambda self: nn.Module.compile(self, backend=compile_and_stop))
    with stop_at_once(), pytest.raises(Interrupted):
        compile_network(network, example, training=training, label="it", accelerator=accelerator)


def test_networks_of_one_class_are_all_compiled(accelerator, monkeypatch):
    """Teachers and students share `Classifier.forward`, of which torch compiles eight graphs unless told otherwise."""
    torch.compiler.reset()
    monkeypatch.setattr(Classifier, "compile", lambda self: nn.Module.compile(self, backend="eager"))
    training = TrainingSection(batch_size=4)
    networks = [Classifier(nn.Conv2d(3, 2, 3, padding=k), (0.5,) * 3, (0.5,) * 3) for k in range(12)]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for network in networks:
            example = example_for(network, SHAPE, training=training)
            assert compile_network(network, example, training=training, label="it", accelerator=accelerator)
            with torch.inference_mode():
                network(example)


def test_trial_of_members_shares_the_rows_of_one_among_them():
    network = to_batch_ensemble(small_network(0).float(), 3)
    assert len(example_for(network, SHAPE, training=TrainingSection(batch_size=12))) == 12
    assert len(example_for(network, SHAPE, training=TrainingSection(batch_size=4))) == 3 * 2


@pytest.mark.slow
def test_compiled_members_have_the_gradients_of_eager_ones_from_one_compilation_for_all_members(accelerator):
    torch.compiler.reset()
    network = to_batch_ensemble(small_network(0).float(), 2).train()
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = gradients(copy.deepcopy(network), images)
    keys = set(network.state_dict())
    training = TrainingSection(batch_size=8)
    assert compile_network(
        network,
        example_for(network, SHAPE, training=training),
        training=training,
        label="student",
        accelerator=accelerator,
    )
    assert set(network.state_dict()) == keys, "a checkpoint must not care"
    found = gradients(network, images)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        gradients(network, images)
