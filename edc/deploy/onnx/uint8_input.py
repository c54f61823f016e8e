"""Let an ONNX file take uint8 NHWC pixels, as image decoders make them, instead of float NCHW in [0, 1]."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edc.deploy.onnx.checked import write_checked
from edc.errors import FailedError

__all__ = ["take_uint8_pixels"]


def take_uint8_pixels(path: Path) -> None:
    """Rewrites the file in place: its input becomes (batch, H, W, C) uint8; x / 255 and the transpose are nodes.

    Raises:
        FailedError: its input is not float (batch, C, H, W), or the ONNX checker refuses the result.
    """
    model = onnx.load(path)
    image = model.graph.input[0]
    shape = image.type.tensor_type.shape.dim
    if image.type.tensor_type.elem_type != TensorProto.FLOAT or len(shape) != 4:
        raise FailedError(f"{path}: its input {image.name} is not float (batch, C, H, W)")
    name, inner = image.name, f"{image.name}_float"
    batch, channels, height, width = (dim.dim_param or dim.dim_value for dim in shape)
    for node in model.graph.node:
        node.input[:] = [inner if read == name else read for read in node.input]
    model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info(name, TensorProto.UINT8, [batch, height, width, channels])
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(255, np.float32), "pixel_scale"))
    nodes = [
        helper.make_node("Cast", [name], ["pixels_float"], name="pixels_cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels_float", "pixel_scale"], ["pixels_unit"], name="pixels_div"),
        helper.make_node("Transpose", ["pixels_unit"], [inner], name="pixels_transpose", perm=[0, 3, 1, 2]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    write_checked(model, path, what="the graph with uint8 input")
