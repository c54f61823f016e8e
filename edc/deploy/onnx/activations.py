"""Every intermediate value of an ONNX graph on real images, to which the lower precisions are fitted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edc.deploy.onnx.session import ort_session_from_bytes

__all__ = ["activations"]


_BATCH = 8
"""Small, because all intermediate values of a batch are in memory at once."""


def activations(path: Path, images: NDArray[np.float32]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yields every float32 value that the graph at `path` computes, by name, and its input; for batches of `images`."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    outputs = {value.name for value in model.graph.output}
    for value in list(model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in outputs:
            model.graph.output.append(value)
    session = ort_session_from_bytes(model.SerializeToString(), what=str(path))
    input_name = session.get_inputs()[0].name
    names = [value.name for value in session.get_outputs()]
    for start in range(0, len(images), _BATCH):
        batch = np.ascontiguousarray(images[start : start + _BATCH])
        yield {input_name: batch, **dict(zip(names, session.run(names, {input_name: batch}), strict=True))}
