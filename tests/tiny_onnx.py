"""ONNX files made by hand, and what they compute in float64: a 1x1 convolution, ReLU, and a linear layer."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE, NUM_CLASSES, HIDDEN = 3, 8, 5, 4


@dataclass(frozen=True)
class TinyOnnx:
    """The file at `path` and its weights."""

    path: Path
    conv: np.ndarray
    linear: np.ndarray

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns logits (N, K) in float64."""
        hidden = np.maximum(np.einsum("nchw,oc->nohw", images.astype(np.float64), self.conv.astype(np.float64)), 0)
        return hidden.reshape(len(images), -1) @ self.linear.astype(np.float64)

    def probs(self, images: np.ndarray) -> np.ndarray:
        exponentials = np.exp(self.logits(images))
        return exponentials / exponentials.sum(1, keepdims=True)


def write_tiny_onnx(path: Path, seed: int = 0, *, float_type: int = TensorProto.FLOAT) -> TinyOnnx:
    """Writes the file; `float_type` FLOAT16 makes what computes float16 and leaves the borders float32."""
    rng = np.random.default_rng(seed)
    conv = rng.normal(size=(HIDDEN, CHANNELS)).astype(np.float32)
    linear = rng.normal(size=(HIDDEN * SIZE * SIZE, NUM_CLASSES)).astype(np.float32) / 8
    dtype = helper.tensor_dtype_to_np_dtype(float_type)
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=float_type),
        helper.make_node("Conv", ["x", "conv"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Flatten", ["z"], ["f"]),
        helper.make_node("MatMul", ["f", "linear"], ["o"]),
        helper.make_node("Cast", ["o"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", CHANNELS, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", NUM_CLASSES])],
        [
            numpy_helper.from_array(conv.astype(dtype)[:, :, None, None], "conv"),
            numpy_helper.from_array(linear.astype(dtype), "linear"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return TinyOnnx(path, conv, linear)


def tiny_images(num_images: int) -> np.ndarray:
    return np.random.default_rng(7).random((num_images, CHANNELS, SIZE, SIZE), dtype=np.float32)
