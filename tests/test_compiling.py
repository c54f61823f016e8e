"""torch.compile: the same gradients where it works, and a sentence where it does not."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import small_network
from torch import nn

from edc.batch_ensemble import select_members, to_batch_ensemble
from edc.compiling import compile_network, example_for

SHAPE = (3, 10, 10)


def gradients(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    for m in range(2):
        with select_members(network, (m,)):
            network(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


WITHOUT_COMPILER = """
import torch, torch._inductor.config
from small_networks import small_network
from edc.batch_ensemble import to_batch_ensemble
from edc.compiling import compile_network, example_for
torch._inductor.config.cpp.cxx = ("/no/such/compiler",)
network = to_batch_ensemble(small_network(0).float(), 2)
example = example_for(network, (3, 10, 10))
print(compile_network(network, example, label="student"), tuple(network(example).shape))
"""


def test_without_a_compiler_the_network_runs_as_it_is_and_the_log_says_so():
    """In a process of its own, because torch remembers that there is no compiler."""
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split("\n")[0] == "False (4, 5)", ended.stderr
    assert "student: runs without torch.compile, which failed (" in ended.stderr


@pytest.mark.slow
def test_compiled_members_have_the_gradients_of_eager_ones_from_one_compilation_for_all_members():
    torch.compiler.reset()
    network = to_batch_ensemble(small_network(0).float(), 2).train()
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    expected = gradients(copy.deepcopy(network), images)
    keys = set(network.state_dict())
    assert compile_network(network, example_for(network, SHAPE), label="student")
    assert set(network.state_dict()) == keys, "a checkpoint must not care"
    found = gradients(network, images)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        gradients(network, images)
