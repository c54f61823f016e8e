"""A model repository that Triton Inference Server serves as it is: two text files and the model, per model.

    <folder>/<name>/config.pbtxt
    <folder>/<name>/labels.txt
    <folder>/<name>/1/model.onnx or model.plan

A plan must have been built by the exact TensorRT of the server's container. Triton does not serve TensorRT-RTX engines.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edc.errors import ArtifactError

__all__ = ["Instances", "triton_config", "write_triton_model"]

Backend = Literal["onnxruntime", "tensorrt"]

Instances = Literal["auto", "cpu", "gpu"]
"""Where instances run; auto: on the server's GPUs, on its CPU if it has none."""

_MODEL_FILE = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}


def triton_config(
    name: str,
    *,
    backend: Backend,
    input_shape: Sequence[int],
    num_classes: int,
    max_batch: int,
    input_type: Literal["float32", "uint8"] = "float32",
    input_name: str = "images",
    output_name: str = "logits",
    instances: Instances = "auto",
    queue_delay_us: int = 500,
) -> str:
    """Returns the text of `config.pbtxt`: batches are gathered for up to `queue_delay_us` and warmed up at both ends.

    Args:
        input_shape: of one image, without the batch dimension, in the file's own layout.
        max_batch: the largest batch of the file: for a plan, its profile's.
    """
    data_type = {"float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}[input_type]
    dims = ", ".join(str(size) for size in input_shape)
    # The server warms up before it reports ready, so that no user's request compiles or allocates.
    warmup = "\n".join(_warmup(batch, input_name, data_type, dims) for batch in sorted({1, max_batch}))
    preferred = ", ".join(str(batch) for batch in sorted({max(1, max_batch // 2), max_batch}))
    return f"""name: {_quoted(name)}
backend: "{backend}"
default_model_filename: "{_MODEL_FILE[backend]}"
max_batch_size: {max_batch}
input [
  {{ name: {_quoted(input_name)} data_type: {data_type} dims: [ {dims} ] }}
]
output [
  {{
    name: {_quoted(output_name)}
    data_type: TYPE_FP32
    dims: [ {num_classes} ]
    label_filename: "labels.txt"
  }}
]
instance_group [ {{ count: 1 kind: KIND_{instances.upper()} }} ]
dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {queue_delay_us}
}}
{warmup}
"""


def write_triton_model(folder: Path, name: str, *, model: Path, class_names: Sequence[str], config: str) -> Path:
    """Writes the model `name` into the repository `folder`, with `model` copied as version 1; return its folder.

    Raises:
        ArtifactError: the model is there already, the name is no folder name, or a label holds a line break.
    """
    if not name or name in (".", "..") or any(character in name for character in "/\\\0"):
        raise ArtifactError(f"{name!r}: a Triton model is named like its folder; this is not a folder name")
    broken = [label for label in class_names if len(label.splitlines()) != 1]
    if broken:
        raise ArtifactError(f"classes: {broken[0]!r} does not fit on one line of labels.txt; rename the class")
    target = folder / name
    if target.exists():
        raise ArtifactError(f"{target}: already exists; remove it or choose another name")
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "1").mkdir(parents=True)
    try:
        suffix = ".onnx" if model.suffix == ".onnx" else ".plan"
        shutil.copyfile(model, temporary / "1" / f"model{suffix}")
        (temporary / "config.pbtxt").write_text(config, encoding="utf-8")
        (temporary / "labels.txt").write_text("".join(f"{label}\n" for label in class_names), encoding="utf-8")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _warmup(batch: int, input_name: str, data_type: str, dims: str) -> str:
    value = f"data_type: {data_type} dims: [ {dims} ] random_data: true"
    return f"""model_warmup {{
  name: "batch {batch}"
  batch_size: {batch}
  inputs {{ key: {_quoted(input_name)} value {{ {value} }} }}
}}"""


def _quoted(text: str) -> str:
    """Returns a string as protobuf's text format writes it, which for names is as JSON does."""
    return json.dumps(text, ensure_ascii=False)
