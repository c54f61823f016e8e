"""What an ONNX file holds besides arithmetic on tensors, read without running any of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edc.system.documents import require_regular

__all__ = ["MOST_ONNX_BYTES", "outside_arithmetic", "read_onnx", "weights_outside"]

MOST_ONNX_BYTES = 2 << 30
"""Of one protobuf message."""
STANDARD = ("", "ai.onnx")
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
MOST_LEVELS = 20
"""Of graphs within graphs."""


def read_onnx(path: Path) -> Any:
    """Returns the `onnx.ModelProto` in a file, without the weights that it keeps elsewhere.

    Raises:
        OSError: no regular file, or one that cannot be read.
        ValueError: no ONNX; the text is one line.
    """
    import onnx
    from google.protobuf.message import DecodeError

    require_regular(path)
    if path.stat().st_size > MOST_ONNX_BYTES:
        raise ValueError(f"larger than {MOST_ONNX_BYTES >> 30} GiB, which no ONNX file is")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise ValueError(f"no ONNX model ({error})") from None
    if not model.HasField("graph"):
        raise ValueError("no ONNX model (it has no graph)")
    return model


def outside_arithmetic(model: Any) -> list[str]:
    """Returns the operators of the model that choose what runs (If, Loop, Scan), or whose code is not ONNX's own.

    Functions that the model itself defines count by what is in them.

    Raises:
        ValueError: graphs are nested too deeply to look into.
    """
    defined = {(function.domain, function.name) for function in model.functions}
    nodes = [*_nodes(model.graph.node, 1)]
    for function in model.functions:
        nodes += _nodes(function.node, 1)
    found = {
        node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
        for node in nodes
        if (node.domain, node.op_type) not in defined and (node.domain not in STANDARD or node.op_type in CONTROL_FLOW)
    }
    return sorted(found)


def _nodes(nodes: Any, level: int) -> Iterator[Any]:
    if level > MOST_LEVELS:
        raise ValueError(f"graphs nested deeper than {MOST_LEVELS} levels")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node, level + 1)


def weights_outside(model: Any) -> list[tuple[str, str]]:
    """Returns the name of each tensor that the model keeps outside its file, wherever in the graph, and its place."""
    nodes = [node for graph in (model.graph, *model.functions) for node in _nodes(graph.node, 1)]
    values = [attribute for node in nodes for attribute in node.attribute]
    graphs = [model.graph, *(graph for value in values for graph in (value.g, *value.graphs))]
    tensors = [tensor for graph in graphs for tensor in graph.initializer]
    tensors += [tensor for value in values for tensor in (value.t, *value.tensors)]
    sparse = [tensor for graph in graphs for tensor in graph.sparse_initializer]
    sparse += [tensor for value in values for tensor in (value.sparse_tensor, *value.sparse_tensors)]
    tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    return [
        (tensor.name, next((entry.value for entry in tensor.external_data if entry.key == "location"), "?"))
        for tensor in tensors
        if tensor.external_data or tensor.data_location == tensor.EXTERNAL
    ]
