"""A float16 ONNX file from a float32 one: float32 at the borders, and inside where float16 could not hold the values.

The converters that come with ONNX Runtime and onnxconverter-common pass every value through float16, also between two
nodes that are both to stay float32, so a value that overflows does so after all. Here a value has the type of the node
that makes it, and a Cast stands only where a reader needs the other one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from edc.deploy.onnx.activations import activations
from edc.deploy.onnx.checked import write_checked
from edc.errors import FailedError

__all__ = ["Half", "fp16_from_onnx"]

FP16_MAX = 65504.0
FP16_TINY = 6.104e-5  # the least normal float16: an epsilon below it loses its digits or becomes zero
# The inputs of these that the ONNX standard fixes at float32, by index.
_FIXED_FLOAT_INPUTS = {"Resize": (2,)}
_ROOTS = ("Sqrt", "Pow", "Reciprocal")
_SUMS = ("ReduceMean", "ReduceSum", "GlobalAveragePool", "AveragePool")


@dataclass(frozen=True)
class Half:
    """Which float nodes stayed float32, and the largest value in calibration."""

    num_fp16_nodes: int
    kept_float: tuple[str, ...]
    largest_value: float


def fp16_from_onnx(source: Path, path: Path, *, images: NDArray[np.float32], headroom: float = 4.0) -> Half:
    """Writes the float32 ONNX file `source` to `path` in float16, and return what was kept in float32.

    A node keeps float32 when any value it reads, makes or sums up exceeds 65504 / `headroom` on `images`, when it
    reads a constant too small for float16 or divides by what came of one, and from a LogSoftmax on: the mean of an
    ensemble is a few numbers only.

    Shapes:
        images (N, C, H, W), real ones: calibration reads ranges from them

    Raises:
        FailedError: the graph is quantised already or has subgraphs, or the checker refuses the result.
    """
    model = onnx.load(source)
    strange = [n.op_type for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear", "If", "Loop")]
    if strange:
        raise FailedError(f"{source}: has {strange[0]} nodes; float16 is made from the plain float32 file")
    largest, sums = _largest_values(source, model.graph, images)
    kept = _kept_float(model.graph, largest, sums, limit=FP16_MAX / headroom)
    types = _float_values(model)
    num_fp16_nodes = _convert(model.graph, types, kept)
    write_checked(model, path, what="the float16 graph")
    return Half(num_fp16_nodes, tuple(sorted(kept)), max(largest.values(), default=0.0))


def _largest_values(
    source: Path, graph: onnx.GraphProto, images: NDArray[np.float32]
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the largest |value| of each tensor, and for each summing node's output a bound on its undivided sum."""
    largest = {tensor.name: float(np.abs(array).max(initial=0)) for tensor, array in _float_initializers(graph)}
    sums: dict[str, float] = {}
    for values in activations(source, images):
        for name, value in values.items():
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max(initial=0)))
        for node in graph.node:
            if node.op_type in _SUMS and {node.input[0], node.output[0]} <= values.keys():
                num_summed = values[node.input[0]].size / max(values[node.output[0]].size, 1)
                sums[node.output[0]] = largest[node.input[0]] * num_summed
    return largest, sums


def _kept_float(
    graph: onnx.GraphProto, largest: Mapping[str, float], sums: Mapping[str, float], *, limit: float
) -> set[str]:
    """Returns the names of the nodes that stay float32."""
    tiny = {
        tensor.name
        for tensor, array in _float_initializers(graph)
        if array.size == 1 and 0 < abs(float(array.reshape(()))) < FP16_TINY
    }
    kept: set[str] = set()
    behind_log_softmax: set[str] = set()
    near_epsilon: set[str] = set()  # sums with an epsilon and their roots, whose readers divide by them
    for node in graph.node:
        too_large = any(largest.get(name, 0.0) > limit for name in (*node.input, *node.output))
        too_large |= any(sums.get(name, 0.0) > limit for name in node.output)
        behind = node.op_type == "LogSoftmax" or any(name in behind_log_softmax for name in node.input)
        if behind:
            behind_log_softmax.update(node.output)
        reads_tiny = any(name in tiny for name in node.input)
        divides = node.op_type in (*_ROOTS, "Div", "Mul") and any(name in near_epsilon for name in node.input)
        if reads_tiny or (divides and node.op_type in _ROOTS):
            near_epsilon.update(node.output)
        if too_large or behind or reads_tiny or divides:
            kept.add(node.name)
    return kept


def _convert(graph: onnx.GraphProto, is_float: set[str], kept: set[str]) -> int:
    """Rewrites the graph in place, node by node in its own order; return how many nodes compute in float16."""
    initializers = {tensor.name: array for tensor, array in _float_initializers(graph)}
    outputs = {value.name for value in graph.output}
    in_fp16: set[str] = set()  # values that exist in float16; all others are float32 or not floats
    casts: dict[tuple[str, int], str] = {}
    nodes: list[NodeProto] = []
    num_fp16_nodes = 0

    def as_type(name: str, elem_type: int) -> str:
        if name not in is_float or (name in in_fp16) == (elem_type == TensorProto.FLOAT16):
            return name
        if (name, elem_type) not in casts:
            casts[name, elem_type] = cast = f"{name}_{'fp16' if elem_type == TensorProto.FLOAT16 else 'fp32'}"
            if name in initializers:
                half = np.clip(initializers[name], -FP16_MAX, FP16_MAX).astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(half, cast))
            else:
                nodes.append(helper.make_node("Cast", [name], [cast], name=f"cast_{cast}", to=elem_type))
        return casts[name, elem_type]

    for node in list(graph.node):
        touches_float = any(name in is_float for name in (*node.input, *node.output))
        elem_type = TensorProto.FLOAT16 if touches_float and node.name not in kept else TensorProto.FLOAT
        num_fp16_nodes += elem_type == TensorProto.FLOAT16
        fixed = _FIXED_FLOAT_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            node.input[i] = as_type(name, TensorProto.FLOAT if i in fixed else elem_type)
        nodes.append(node)
        if elem_type == TensorProto.FLOAT16:
            _retype(node)
            in_fp16.update(name for name in node.output if name in is_float)
    for i, node in enumerate(list(nodes)):
        for j, name in enumerate(node.output):
            if name in outputs and name in in_fp16:
                _put_back(nodes, i, j)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    _drop_unused_initializers(graph)
    return num_fp16_nodes


def _put_back(nodes: list[NodeProto], i: int, j: int) -> None:
    """Keeps a graph output float32: its maker writes to another name, and a Cast at the end writes the output."""
    name = nodes[i].output[j]
    inner = f"{name}_inner_fp16"
    for node in nodes:
        node.input[:] = [inner if read == name else read for read in node.input]
    nodes[i].output[j] = inner
    nodes.append(helper.make_node("Cast", [inner], [name], name=f"cast_{inner}", to=TensorProto.FLOAT))


def _retype(node: NodeProto) -> None:
    """Turns float32 in a node's attributes into float16: a Cast's target, constants that it carries."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            half = numpy_helper.to_array(attribute.t).clip(-FP16_MAX, FP16_MAX).astype(np.float16)
            attribute.t.CopyFrom(numpy_helper.from_array(half, attribute.t.name))


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Returns the names of all float32 values: inputs, weights and what nodes compute."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    names = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    return names | {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}


def _float_initializers(graph: onnx.GraphProto) -> list[tuple[TensorProto, NDArray[np.float32]]]:
    floats = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT]
    return [(tensor, numpy_helper.to_array(tensor)) for tensor in floats]


def _drop_unused_initializers(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    used = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(used)
