"""Which layers of an ONNX graph lose most to eight bits."""

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from edc.deploy.onnx.activations import activations
from edc.deploy.onnx.precision import QUANTIZED_OPERATORS

__all__ = ["heavy_nodes", "noisiest_nodes"]


def heavy_nodes(path: Path) -> tuple[str, ...]:
    """Returns the names of the convolutions and matrix products with weights in the graph at `path`, in order."""
    graph = onnx.load(path).graph
    return tuple(node.name for node in _with_weights(graph))


def noisiest_nodes(path: Path, images: NDArray[np.float32], *, num_nodes: int) -> tuple[str, ...]:
    """Returns the names of the `num_nodes` layers whose input and weight are least well represented in eight bits.

    A layer's noise is the squared rounding error of its input, with one scale, plus that of its weight, with one scale
    per output channel, each as a share of its energy: to first order they add up to the layer's relative output error.
    """
    graph = onnx.load(path).graph
    nodes = _with_weights(graph)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inputs: dict[str, list[float]] = {node.input[0]: [] for node in nodes}
    for values in activations(path, images):
        for name in inputs.keys() & values.keys():
            inputs[name].append(_noise(values[name], np.abs(values[name]).max()))
    noises = {
        node.name: _weight_noise(node, weights[node.input[1]]) + float(np.mean(inputs[node.input[0]] or [0.0]))
        for node in nodes
    }
    return tuple(sorted(noises, key=lambda name: (-noises[name], name))[:num_nodes])


def _with_weights(graph: onnx.GraphProto) -> list[NodeProto]:
    weights = {tensor.name for tensor in graph.initializer}
    quantized = [node for node in graph.node if node.op_type in QUANTIZED_OPERATORS]
    return [node for node in quantized if node.input[1] in weights]


def _weight_noise(node: NodeProto, weight: NDArray[np.float32]) -> float:
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    channels_first = node.op_type == "Conv" or transposed
    by_channel = (weight if channels_first else np.moveaxis(weight, -1, 0)).reshape(
        weight.shape[0 if channels_first else -1], -1
    )
    return _noise(by_channel, np.abs(by_channel).max(axis=1, keepdims=True))


def _noise(values: NDArray[np.float32], largest: NDArray[np.float32]) -> float:
    """Returns the error of rounding to 8 bits between -largest and largest, as a share of the energy."""
    scale = np.maximum(largest, 1e-30) / 127
    error = values - np.round(values / scale) * scale
    return float(np.square(error).sum() / max(float(np.square(values).sum()), 1e-30))
