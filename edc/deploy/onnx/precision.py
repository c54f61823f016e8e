"""The precision in which an ONNX file really computes, read from its graph and not from its name."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto

from edc.errors import ParityError

__all__ = [
    "HEAVY_OPERATORS",
    "QUANTIZED_OPERATORS",
    "Precision",
    "PrecisionCounts",
    "precision_of_graph",
    "require_precision",
]

Precision = Literal["fp32", "fp16", "int8-cpu", "int8-trt"]

QUANTIZED_OPERATORS = ("Conv", "Gemm", "MatMul")
"""ONNX's names of the convolutions and matrix products that an INT8 file computes in 8 bits."""
HEAVY_OPERATORS = (*QUANTIZED_OPERATORS, "ConvTranspose")
"""ONNX's names of all convolutions and matrix products: where the time goes."""


@dataclass(frozen=True)
class PrecisionCounts:
    """How many tensors and nodes of a graph have which type; `heavy` is `HEAVY_OPERATORS`."""

    num_nodes: int
    num_fp32_initializers: int
    num_fp16_initializers: int
    num_bf16_initializers: int
    num_fp16_nodes: int
    num_bf16_nodes: int
    num_quantize: int
    num_dequantize: int
    num_heavy: int
    num_heavy_fp16: int
    num_heavy_int8: int


def precision_of_graph(path: Path) -> PrecisionCounts:
    """Returns what the ONNX file at `path` computes in, by type inference over its graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=False)
    graph = model.graph
    initializers = Counter(tensor.data_type for tensor in graph.initializer)
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    operators = Counter(node.op_type for node in graph.node)
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    heavy = [node for node in graph.node if node.op_type in HEAVY_OPERATORS]

    def num_of(nodes: Iterable[onnx.NodeProto], elem_type: int) -> int:
        return sum(types.get(node.output[0]) == elem_type for node in nodes)

    return PrecisionCounts(
        num_nodes=len(graph.node),
        num_fp32_initializers=initializers[TensorProto.FLOAT],
        num_fp16_initializers=initializers[TensorProto.FLOAT16],
        num_bf16_initializers=initializers[TensorProto.BFLOAT16],
        num_fp16_nodes=num_of(graph.node, TensorProto.FLOAT16),
        num_bf16_nodes=num_of(graph.node, TensorProto.BFLOAT16),
        num_quantize=operators["QuantizeLinear"],
        num_dequantize=operators["DequantizeLinear"],
        num_heavy=len(heavy),
        num_heavy_fp16=num_of(heavy, TensorProto.FLOAT16),
        num_heavy_int8=sum(all(name in dequantized for name in node.input[:2]) for node in heavy),
    )


def require_precision(path: Path, precision: Precision) -> PrecisionCounts:
    """Returns the counts of the ONNX file at `path`, which must compute in `precision`.

    At least half of the convolutions and matrix products must be in the lower precision: a file that keeps more in
    float is slower for nothing and is not what its name says.

    Raises:
        ParityError: it does not.
    """
    counts = precision_of_graph(path)
    num_bf16 = counts.num_bf16_initializers + counts.num_bf16_nodes
    num_quantized = counts.num_quantize + counts.num_dequantize
    num_fp16 = counts.num_fp16_initializers + counts.num_fp16_nodes
    wrong = [f"{num_bf16} bfloat16 tensors or nodes"] if num_bf16 else []
    if precision == "fp32":
        wrong += [f"{num_fp16} float16 tensors or nodes"] if num_fp16 else []
        wrong += [f"{num_quantized} quantise/dequantise nodes"] if num_quantized else []
    elif precision == "fp16" and 2 * counts.num_heavy_fp16 < max(counts.num_heavy, 1):
        wrong += [f"only {counts.num_heavy_fp16} of {counts.num_heavy} convolutions and matrix products in float16"]
    elif precision in ("int8-cpu", "int8-trt") and 2 * counts.num_heavy_int8 < max(counts.num_heavy, 1):
        wrong += [f"only {counts.num_heavy_int8} of {counts.num_heavy} convolutions and matrix products on int8 inputs"]
    if wrong:
        raise ParityError(f"{path}: expected an {precision} graph, found {'; '.join(wrong)}")
    return counts
