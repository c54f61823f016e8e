"""ONNX files are written once the checker has accepted them, or not at all."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edc.deploy.onnx.checked import write_checked
from edc.errors import FailedError


def graph(operator: str) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    nodes = [helper.make_node(operator, ["x"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), ir_version=10)


def test_graph_that_the_checker_accepts_is_written_as_the_same_bytes(tmp_path: Path):
    for name in ("a.onnx", "b.onnx"):
        write_checked(graph("Relu"), tmp_path / name, what="the graph")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert onnx.load(tmp_path / "a.onnx") == graph("Relu")


def test_graph_that_the_checker_refuses_leaves_the_file_that_was_there(tmp_path: Path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"before")
    with pytest.raises(
        FailedError, match=r"a\.onnx: the ONNX checker rejects the float16 graph: .*NoSuchOperator"
    ) as caught:
        write_checked(graph("NoSuchOperator"), path, what="the float16 graph")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.onnx"]
    assert path.read_bytes() == b"before"
