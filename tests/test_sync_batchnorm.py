"""BatchNorm over two real processes against torch's own on the concatenated batch, in float64."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn
from training_cases import NORM_CASES, norm_case

from edc.errors import RecipeError
from edc.train.sync_batchnorm import (
    AllReduceBatchNorm,
    AllReduceBatchNormAct,
    convert_sync_batchnorm,
    require_synchronisable,
)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("case", NORM_CASES)
def test_two_processes_normalise_as_one_on_the_whole_batch(two_processes, case):
    norm, batches, target = norm_case(case)
    norm(batches[0])
    x = batches[1].clone().requires_grad_()
    y = norm(x)
    (y * target).sum().backward()
    first, second = (found["norms"][case] for found in two_processes)
    close(torch.cat([first["y"], second["y"]]), y.detach())
    close(torch.cat([first["x_grad"], second["x_grad"]]), x.grad)
    for name, parameter in norm.named_parameters():
        close(first["gradients"][name] + second["gradients"][name], parameter.grad)
    assert len(first["gradients"]) == (0 if case == "no scale" else 2)
    if case == "2d":  # the worker has let a third batch pass, in bf16
        norm(batches[1].bfloat16().double())
    for found in (first, second):
        assert found["state"].keys() == norm.state_dict().keys()
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(found["state"][key], value, rtol=0, atol=1e-11 if case != "2d" else 1e-6)
    if case == "no statistics":  # in evaluation, too, torch then takes those of the batch, on each process its own
        return
    evaluated = torch.cat([first["evaluated"], second["evaluated"]])
    torch.testing.assert_close(evaluated, norm.eval()(batches[0]).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", NORM_CASES)
def test_processes_with_unequal_numbers_of_rows_normalise_as_one(two_processes, case):
    """3 rows and 5, as members have them whose images are divided among teachers that do not divide the batch."""
    norm, batches, _ = norm_case(case)
    close(torch.cat([found["norms"][case]["uneven"] for found in two_processes]), norm(batches[1]).detach())
    for found in two_processes:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(found["norms"][case]["uneven_state"][key], value, rtol=0, atol=1e-11)


def test_bf16_stays_bf16_and_is_summed_in_float32(two_processes):
    norm, batches, _ = norm_case("2d")
    expected = norm(batches[1].bfloat16().double()).detach()
    narrow = torch.cat([found["norms"]["2d"]["narrow"] for found in two_processes])
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), expected, rtol=2**-8, atol=2**-8)


def test_one_process_keeps_torchs_own_numbers():
    norm, batches, _ = norm_case("2d")
    converted = convert_sync_batchnorm(norm_case("2d")[0], torch.device("cpu"))
    assert type(converted) is AllReduceBatchNorm
    assert torch.equal(converted(batches[0]), norm(batches[0]))
    assert torch.equal(converted.running_var, norm.running_var)


def test_conversion_keeps_parameters_and_state_dict():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)))
    before = list(network.parameters()), list(network.state_dict())
    converted = convert_sync_batchnorm(network, torch.device("cpu"))
    assert all(a is b for a, b in zip(converted.parameters(), before[0], strict=True))
    assert list(converted.state_dict()) == before[1]
    assert type(converted[2][0]) is AllReduceBatchNorm
    convert_sync_batchnorm(converted, torch.device("cpu"))  # a second time changes nothing


def test_norm_with_a_forward_of_its_own_is_refused_by_name():
    class OwnNorm(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.BatchNorm2d(3), OwnNorm(3))
    with pytest.raises(RecipeError, match=r"training.sync_batchnorm: 1 is a OwnNorm, which cannot"):
        convert_sync_batchnorm(network, torch.device("cpu"))
    assert type(network[0]) is nn.BatchNorm2d, "changed before it was refused"
    require_synchronisable(network, torch.device("cuda"))


def test_timms_norms_with_activations_can_be_synchronised_on_a_cpu():
    torch.manual_seed(0)
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    x = torch.rand(2, 3, 32, 32)
    expected = copy.deepcopy(network).eval()(x).detach()
    converted = convert_sync_batchnorm(network, torch.device("cpu")).eval()
    norms = [module for module in converted.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert {type(norm) for norm in norms} <= {AllReduceBatchNorm, AllReduceBatchNormAct}
    assert len(norms) > 20
    torch.testing.assert_close(converted(x), expected, rtol=0, atol=0)
    convert_sync_batchnorm(converted, torch.device("cpu"))  # a second time changes nothing


def test_cuda_conversion_keeps_timms_built_in_activations():
    torch.manual_seed(0)
    network = timm.create_model("efficientnet_lite0", num_classes=3).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = network(x).detach()
    converted = convert_sync_batchnorm(network, torch.device("cuda")).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(x), expected)
