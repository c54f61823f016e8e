"""FLOPs counted in an ONNX file, against torch's own counter on the network that it was made from."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edc.benchmark.measure.flops import flops_of_graph
from edc.deploy.onnx.from_network import onnx_from_network
from edc.networks import build_network
from edc.recipe import NetworkSection


def exported(network, path, shape):
    names = [str(k) for k in range(5)]
    onnx_from_network(network.eval(), path, input_shape=shape, class_names=names, metadata={})
    return path


@pytest.mark.parametrize("name", ["wrn10x1", "timm/test_efficientnet", "timm/test_convnext"])
def test_flops_of_a_file_are_those_that_torch_counts(name, tmp_path):
    shape = (3, 32, 32)
    network = build_network(
        NetworkSection(name=name), num_classes=5, image_shape=shape, mean=(0.5,) * 3, std=(0.2,) * 3
    ).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape))
    assert flops_of_graph(exported(network, tmp_path / "a.onnx", shape)) == counter.get_total_flops()


def test_transposed_convolution_counts_what_each_input_is_multiplied_with(tmp_path):
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(4 * 17 * 17, 5))
    wanted = 2 * (3 * 8 * 8) * (4 * 3 * 3) + 2 * (4 * 17 * 17) * 5
    assert flops_of_graph(exported(network, tmp_path / "a.onnx", (3, 8, 8))) == wanted


def test_attention_counts_although_torch_overlooks_its_kernel_on_a_cpu(tmp_path):
    network = build_network(
        NetworkSection(name="timm/test_vit"),
        num_classes=5,
        image_shape=(3, 160, 160),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
    ).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 160, 160))
    tokens, layers, heads, width = 101, 6, 2, 32
    attention = layers * heads * 2 * (2 * tokens * tokens * width)  # queries by keys, weights by values
    counted = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
    assert flops_of_graph(exported(network, tmp_path / "a.onnx", (3, 160, 160))) == counted + attention
