"""A torch network as an ONNX file that holds nothing but the network.

torch's exporter writes the absolute path of every source line into the file. All of that is removed, so that two
exports of the same weights are the same bytes on any machine, and say nothing about the machine.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from edc.deploy.onnx.checked import write_checked
from edc.errors import FailedError, first_line

__all__ = ["fits_in_a_file", "onnx_from_network"]

_OPSET = 20
_MAX_BYTES = 2**31 - 2**20  # protobuf's limit, less a megabyte for everything that is not a weight


def onnx_from_network(
    network: nn.Module,
    path: Path,
    *,
    input_shape: tuple[int, int, int],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    """Writes `network` to `path` as float32 ONNX from images to logits with a free batch size; checked, or not at all.

    Args:
        input_shape: (C, H, W) of the images the network takes.
        class_names: the labels, in the order of the output; kept in the file's metadata as a JSON list.
        metadata: more for the file's metadata (preprocessing, digests); what is not a string is kept as JSON.

    Raises:
        FailedError: the file would be over protobuf's 2 GB, or torch or the ONNX checker refuse the network.
    """
    if not fits_in_a_file(network):
        gib = _num_bytes(network) / 2**30
        raise FailedError(f"{path}: the weights take {gib:.2f} GiB, an ONNX file holds 2 GiB at most")
    plain = copy.deepcopy(network).eval().cpu().float().requires_grad_(False)
    images = torch.zeros((2, *input_shape))  # a batch of 1 would let the exporter fix the batch dimension
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                plain,
                (images,),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise FailedError(f"{path}: torch cannot export this network to ONNX: {_innermost(error)}") from error
    if program is None:
        raise FailedError(f"{path}: torch's exporter returned no program")
    model = program.model_proto
    _strip(model)
    labels = {"class_names": list(class_names), **metadata}
    for key, value in sorted(labels.items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)
    write_checked(model, path, what="the export")


def fits_in_a_file(network: nn.Module) -> bool:
    """Returns whether one ONNX file can hold the network's weights in float32."""
    return _num_bytes(network) <= _MAX_BYTES


def _num_bytes(network: nn.Module) -> int:
    return sum(4 * tensor.numel() for tensor in (*network.parameters(), *network.buffers()))


def _strip(model: onnx.ModelProto) -> None:
    """Removes from the model all that does not compute: paths, stack traces, remarks, intermediate types."""
    del model.metadata_props[:]
    model.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        function.doc_string = ""
        del function.value_info[:]
        _strip_nodes(function.node)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    # Consumers infer intermediate types themselves; the exporter's carry its internal symbol names.
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.doc_string = ""
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Any) -> None:
    for node in nodes:
        del node.metadata_props[:]
        node.doc_string = ""
        for attribute in node.attribute:
            attribute.doc_string = ""
            for graph in (attribute.g, *attribute.graphs):
                if graph.node:
                    _strip_graph(graph)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's progress remarks and its own deprecation warnings off the terminal; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=r"torch\.|onnxscript|copyreg|timm\.")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _innermost(error: BaseException) -> str:
    """Returns the innermost cause in one line: the exporter wraps the reason in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)[:300]
