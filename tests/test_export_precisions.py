"""The artifact in every precision, with engines, Triton and uint8 input, and `edc verify` on it."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from command_line import edc
from conftest import Workshop
from onnx import TensorProto, numpy_helper
from tiny_onnx import tiny_images, write_tiny_onnx

from edc.deploy.artifact.manifest import load_manifest
from edc.deploy.onnx.half import fp16_from_onnx
from edc.deploy.onnx.precision import precision_of_graph
from edc.deploy.onnx.quantize import int8_from_onnx
from edc.deploy.onnx.uint8_input import take_uint8_pixels
from edc.errors import ArtifactError
from edc.system.files import sha256_of


@pytest.fixture(scope="module")
def everything(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workshop's run exported in all that can be written here; int8 of a barely trained network may lose a lot."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edc[rtx]'")
    target = tmp_path_factory.mktemp("everything") / "artifact"
    options = ["--precision", "fp16,int8", "--max-drop", "100", "--max-batch", "8", "--trt", "--sm", "86", "--triton"]
    called = edc("export", "runs/tiny", "--output", str(target), *options, cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    return target


def test_each_subject_is_there_in_each_precision(everything):
    found = {(file.role, file.format, file.precision) for file in load_manifest(everything).files}
    onnx_kinds = {("onnx", precision) for precision in ("fp32", "fp16", "int8-cpu", "int8-trt")}
    engine_kinds = {("tensorrt_rtx", precision) for precision in ("fp32", "fp16", "int8-trt")}
    for role in ("student", "ensemble"):
        assert {(kind, precision) for r, kind, precision in found if r == role} == onnx_kinds | engine_kinds
    assert {(kind, precision) for r, kind, precision in found if r == "teacher"} == onnx_kinds


def test_graphs_hold_the_precision_that_the_manifest_says(everything):
    for file in load_manifest(everything).files:
        if file.format != "onnx":
            continue
        counts = precision_of_graph(everything / file.path)
        assert (counts.num_heavy_fp16 > 0) == (file.precision == "fp16"), file.path
        assert (counts.num_quantize > 0) == file.precision.startswith("int8"), file.path
        assert counts.num_bf16_nodes == 0


def test_engines_say_that_they_were_not_run(everything):
    engines = [file for file in load_manifest(everything).files if file.format == "tensorrt_rtx"]
    assert len(engines) == 6
    for engine in engines:
        assert engine.parity is None
        assert "not run" in engine.notes["run"]
        sidecar = json.loads((everything / f"{engine.path}.json").read_text())
        assert sidecar["sha256"] == engine.sha256 == sha256_of(everything / engine.path)
        assert (sidecar["min_batch"], sidecar["max_batch"], sidecar["compute_capabilities"]) == (1, 8, [86])


def test_lower_precisions_of_one_file_are_the_same_bytes_each_time(tmp_path):
    tiny = write_tiny_onnx(tmp_path / "tiny.onnx")
    images = tiny_images(32)
    for write in (
        lambda path: fp16_from_onnx(tiny.path, path, images=images),
        lambda path: int8_from_onnx(tiny.path, path, flavour="int8-cpu", images=images),
        lambda path: int8_from_onnx(tiny.path, path, flavour="int8-trt", images=images),
        lambda path: int8_from_onnx(tiny.path, path, flavour="int8-cpu", images=images, calibration="percentile"),
    ):
        write(tmp_path / "first.onnx")
        write(tmp_path / "second.onnx")
        assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_differences_between_members_fold_and_fusion_are_recorded(everything):
    differences = load_manifest(everything).differences
    assert differences["fused_from_unfused"].max_abs_diff < 1e-4 * differences["fused_from_unfused"].logit_scale
    assert 0 < differences["folded_from_members"].max_abs_diff < 10


def test_verify_accepts_it_and_repeats_parity(everything, workshop):
    called = edc("verify", str(everything), "--run", "runs/tiny", "--json", cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    document = json.loads(called.stdout)
    assert document["ok"]
    assert any("parity" in line for line in document["checks"])


def test_one_changed_byte_is_found(everything, workshop, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(everything, copy)
    path = copy / "student.fp16.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    called = edc("verify", str(copy), cwd=workshop.folder)
    assert called.exit_code == 2
    assert "student.fp16.onnx" in called.stderr
    assert "SHA-256" in called.stderr
    assert "Traceback" not in called.stderr


def test_weights_outside_the_file_are_refused(everything, tmp_path):
    from edc.deploy.verify import verify

    copy = tmp_path / "copy"
    shutil.copytree(everything, copy)
    path = copy / "student.onnx"
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret.bin")
    path.write_bytes(model.SerializeToString())
    document = json.loads((copy / "manifest.json").read_text())
    entry = next(file for file in document["files"] if file["path"] == "student.onnx")
    entry |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"outside the file, in '\.\./\.\./secret\.bin'"):
        verify(copy)


def test_uint8_pixels_give_what_float_images_give(tmp_path):
    tiny = write_tiny_onnx(tmp_path / "tiny.onnx")
    pixels = np.round(tiny_images(5) * 255).astype(np.uint8)
    take_uint8_pixels(tiny.path)
    session = onnxruntime.InferenceSession(tiny.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))})
    np.testing.assert_allclose(logits, tiny.logits(pixels / 255), atol=1e-4)


def test_artifact_with_uint8_input_says_so_and_agrees_with_the_float_one(workshop, tmp_path):
    target = tmp_path / "uint8"
    called = edc(
        "export", "runs/tiny", "--output", str(target), "--input", "uint8", "--max-batch", "8", cwd=workshop.folder
    )
    assert called.exit_code == 0, called.stderr
    how = load_manifest(target).preprocessing
    assert (how.layout, how.dtype) == ("NHWC", "uint8")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    outputs = []
    for folder, images in (
        (target, pixels),
        (workshop.artifact, (pixels / 255).astype(np.float32).transpose(0, 3, 1, 2)),
    ):
        session = onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"images": np.ascontiguousarray(images)})[0])
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int9"], "--precision: found 'int9'"),
        (["--sm", "eighty"], "--sm: found 'eighty'"),
        (["--trt", "--sm", "42"], "42 is not one of"),
    ],
)
def test_wrong_options_write_nothing(workshop, tmp_path, options, message):
    target = tmp_path / "none"
    called = edc("export", "runs/tiny", "--output", str(target), *options, cwd=workshop.folder)
    assert called.exit_code in (1, 2)
    assert message in called.stderr
    assert "Traceback" not in called.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_weight_in_an_exported_file_is_caught_by_verify(everything, workshop, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(everything, copy)
    path = copy / "student.onnx"
    model = onnx.load(path)
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest).copy()
    middle = np.abs(values).ravel().argsort()[values.size // 2]
    values.ravel()[middle] *= -1
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    path.write_bytes(model.SerializeToString())
    document = json.loads((copy / "manifest.json").read_text())
    before = next(file["sha256"] for file in document["files"] if file["path"] == "student.onnx")
    changed = [file for file in document["files"] if file["sha256"] == before]
    assert len(changed) == 2  # the other is Triton's copy
    for entry in changed:
        (copy / entry["path"]).write_bytes(path.read_bytes())
        entry |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(document))
    assert edc("verify", str(copy), cwd=workshop.folder).exit_code == 0  # the digests were made to fit
    called = edc("verify", str(copy), "--run", "runs/tiny", cwd=workshop.folder)
    assert called.exit_code == 1
    assert "student.onnx" in called.stderr


def test_triton_serves_each_file_where_it_belongs(everything):
    """fp32 anywhere, fp16 on GPUs, 8 bits on the CPU; read by Triton's own schema."""
    reason = "tritonclient is not installed: pip install 'tritonclient[grpc]'"
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    from google.protobuf import text_format

    found = {}
    for path in (everything / "triton").glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), schema.ModelConfig())
        assert config.name == path.parent.name
        assert (path.parent / "1" / config.default_model_filename).is_file()
        (group,) = config.instance_group
        found[config.name] = schema.ModelInstanceGroup.Kind.Name(group.kind)
    wanted = {"fp32": "KIND_AUTO", "fp16": "KIND_GPU", "int8-cpu": "KIND_CPU"}
    assert found == {
        f"{role}_{precision}_onnx": kind for role in ("student", "ensemble") for precision, kind in wanted.items()
    }
