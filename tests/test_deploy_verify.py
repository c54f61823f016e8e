"""`edc verify` on ONNX files of strangers: what the manifest says is what the graph takes, returns and consists of."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from command_line import edc
from conftest import Workshop
from onnx import TensorProto, helper
from tiny_artifact import write_changed_onnx, write_tiny_artifact

from edc.benchmark.options import BenchOptions
from edc.benchmark.request import prepare
from edc.deploy.verify import verify
from edc.errors import ArtifactError
from edc.predict.run import PredictOptions, predict
from edc.system.files import sha256_of


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An artifact that passes, and its manifest."""
    manifest = write_tiny_artifact(tmp_path / "artifact")
    assert len(verify(tmp_path / "artifact")) == 3
    return tmp_path / "artifact", manifest


def one_more_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("password", TensorProto.FLOAT, [1]))


def one_more_output(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].output[0]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 8, 8]))


def fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4


def other_size(model: onnx.ModelProto) -> None:
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.ClearField("dim_value")


def renamed(model: onnx.ModelProto) -> None:
    old, model.graph.input[0].name = model.graph.input[0].name, "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == old else name for name in node.input]


def operator_of_others(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "mine"
    model.opset_import.append(helper.make_opsetid("mine", 1))


def control_flow(model: onnx.ModelProto) -> None:
    name = model.graph.node[0].output[0]
    branch = helper.make_graph([], "b", [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])
    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["c"], ["unused"], then_branch=branch, else_branch=branch))


def weight_outside_in_a_constant(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_more_input, r"its inputs are .*password.*the manifest says"),
        (one_more_output, r"its outputs are .*the manifest says"),
        (fixed_batch, r"its inputs are .*\[4, 3, .*the manifest says .*\[None, 3"),
        (other_size, r"its inputs are .*\[None, 3, None, None\].*the manifest says"),
        (renamed, r"its inputs are .*pixels.*the manifest says .*images"),
        (operator_of_others, r"has mine\.\w+, which edc never writes"),
        (control_flow, "has If, which edc never writes"),
        (weight_outside_in_a_constant, r"keeps the weight 'w' outside the file, in '\.\./secret'"),
    ],
)
def test_onnx_that_is_not_what_the_manifest_says_is_refused(
    artifact: tuple[Path, dict[str, Any]], change: Callable[[onnx.ModelProto], None], message: str
):
    folder, manifest = artifact
    model = onnx.load(folder / "student.onnx")
    change(model)
    write_changed_onnx(folder, model.SerializeToString(), manifest)
    with pytest.raises(ArtifactError, match=rf"student.onnx: {message}"):
        verify(folder)


@pytest.mark.parametrize("change", [operator_of_others, control_flow, weight_outside_in_a_constant])
def test_what_is_no_arithmetic_is_run_neither_by_predict_nor_by_bench(
    artifact: tuple[Path, dict[str, Any]], change: Callable[[onnx.ModelProto], None], tmp_path: Path
):
    folder, manifest = artifact
    model = onnx.load(folder / "student.onnx")
    change(model)
    write_changed_onnx(folder, model.SerializeToString(), manifest)
    message = r"student.onnx: (has|keeps) .*(which edc never writes|outside the file)"
    with pytest.raises(ArtifactError, match=message):
        predict(folder, tmp_path, tmp_path / "out.csv", PredictOptions())
    with pytest.raises(ArtifactError, match=message):
        prepare(folder, BenchOptions(run=tmp_path / "runs/none"))


@pytest.mark.parametrize("content", [b"x", b"\x08\x08", b"PK\x03\x04" * 9, bytes(500)])
def test_what_is_no_onnx_is_refused(artifact: tuple[Path, dict[str, Any]], content: bytes):
    folder, manifest = artifact
    write_changed_onnx(folder, content, manifest)
    with pytest.raises(ArtifactError, match=r"student.onnx: not a valid ONNX file"):
        verify(folder)


@pytest.fixture
def exported(workshop: Workshop, tmp_path: Path) -> Path:
    shutil.copytree(workshop.artifact, tmp_path / "exported")
    return tmp_path / "exported"


def test_manifest_of_other_classes_or_images_than_the_files_say_is_refused(exported: Path):
    path = exported / "manifest.json"
    good = json.loads(path.read_text())
    classes = ["class1", "class0", *good["classes"][2:]]
    path.write_text(json.dumps({**good, "classes": classes}))
    with pytest.raises(ArtifactError, match=r"student.onnx: its classes are .*class0.*the manifest says .*class1"):
        verify(exported)
    for field, value in (("value_range", [0, 255]), ("orientation", "stored"), ("image_size", [4, 4])):
        changed = {**good["preprocessing"], field: value}
        assert changed != good["preprocessing"]
        path.write_text(json.dumps({**good, "preprocessing": changed}))
        with pytest.raises(ArtifactError, match=r"student.onnx: its preprocessing is .*the manifest says"):
            verify(exported)


def test_what_a_server_would_load_is_checked_too(exported: Path):
    manifest = json.loads((exported / "manifest.json").read_text())
    served = exported / "triton/student/1/model.onnx"
    served.parent.mkdir(parents=True)
    model = onnx.load(exported / "student.onnx")
    entry = {**manifest["files"][-1], "path": "triton/student/1/model.onnx", "role": "triton", "format": "other"}

    def listed(content: bytes) -> None:
        served.write_bytes(content)
        digest = {"sha256": sha256_of(served), "bytes": len(content), "precision": "none"}
        document = {**manifest, "files": [*manifest["files"], entry | digest]}
        (exported / "manifest.json").write_text(json.dumps(document))

    listed((exported / "student.onnx").read_bytes())
    assert any("onnx: 5 files" in line for line in verify(exported))
    model.producer_name = "somebody"
    listed(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"triton/student/1/model.onnx: is no copy of a network of this artifact"):
        verify(exported)
    weight_outside_in_a_constant(model)
    listed(model.SerializeToString())
    with pytest.raises(ArtifactError, match=r"triton/student/1/model.onnx: keeps the weight 'w' outside the file"):
        verify(exported)


def test_parity_of_a_role_that_no_network_has(exported: Path, workshop: Workshop):
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["files"][0]["role"] = "pupil"
    (exported / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"student.onnx: the manifest says 'pupil', and .* has no such network"):
        verify(exported, run=workshop.run)


def test_parity_of_an_artifact_without_a_baseline_needs_no_teachers(workshop: Workshop, tmp_path: Path):
    called = edc("export", "runs/tiny", "--no-baseline", "--output", tmp_path / "alone", cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    shutil.copytree(workshop.run, tmp_path / "without_teachers/tiny")
    done = verify(tmp_path / "alone", run=tmp_path / "without_teachers/tiny")
    assert done[-1].startswith("parity: 1 files compute what the networks of")
