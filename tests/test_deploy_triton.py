"""Triton's own protobuf schema reads the configuration we write."""

import pytest

from edc.deploy.artifact.triton import triton_config, write_triton_model
from edc.errors import ArtifactError

CLASSES = ("cat", 'Hund "Rex"', "ネコ")


def parsed(text: str):
    reason = "tritonclient is not installed: pip install 'tritonclient[grpc]'"
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    from google.protobuf import text_format

    return schema, text_format.Parse(text, schema.ModelConfig())


def test_onnx_configuration_says_what_the_file_is():
    text = triton_config("student", backend="onnxruntime", input_shape=(3, 32, 32), num_classes=3, max_batch=64)
    schema, config = parsed(text)
    assert (config.name, config.backend, config.default_model_filename) == ("student", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 64
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("images", schema.TYPE_FP32, [3, 32, 32])]
    (output,) = config.output
    assert (output.name, output.data_type, list(output.dims)) == ("logits", schema.TYPE_FP32, [3])
    assert output.label_filename == "labels.txt"
    assert list(config.dynamic_batching.preferred_batch_size) == [32, 64]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(g.count, g.kind) for g in config.instance_group] == [(1, schema.ModelInstanceGroup.KIND_AUTO)]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 64]
    assert list(config.model_warmup[0].inputs["images"].dims) == [3, 32, 32]


def test_plan_configuration_with_uint8_input_and_awkward_names():
    text = triton_config(
        'a "b"',
        backend="tensorrt",
        input_shape=(32, 32, 3),
        num_classes=3,
        max_batch=1,
        input_type="uint8",
        input_name="bild\\ä",
        instances="cpu",
    )
    schema, config = parsed(text)
    assert (config.name, config.backend, config.default_model_filename) == ('a "b"', "tensorrt", "model.plan")
    assert (config.input[0].name, config.input[0].data_type) == ("bild\\ä", schema.TYPE_UINT8)
    assert [group.kind for group in config.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]
    assert list(config.dynamic_batching.preferred_batch_size) == [1]
    assert [warmup.batch_size for warmup in config.model_warmup] == [1]


def test_repository_has_the_files_where_triton_looks(tmp_path):
    (tmp_path / "student-fp32.onnx").write_bytes(b"weights")
    source = tmp_path / "student-fp32.onnx"
    folder = write_triton_model(tmp_path / "triton", "student", model=source, class_names=CLASSES, config="config\n")
    files = sorted(path.relative_to(tmp_path / "triton").as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["student/1/model.onnx", "student/config.pbtxt", "student/labels.txt"]
    assert (folder / "1" / "model.onnx").read_bytes() == b"weights"
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(CLASSES)
    with pytest.raises(ArtifactError, match="already exists"):
        write_triton_model(tmp_path / "triton", "student", model=source, class_names=CLASSES, config="")


@pytest.mark.parametrize(("name", "label"), [("../out", "cat"), ("", "cat"), ("student", "two\nlines")])
def test_names_that_do_not_fit_are_refused_before_writing(tmp_path, name, label):
    (tmp_path / "m.onnx").write_bytes(b"weights")
    with pytest.raises(ArtifactError):
        write_triton_model(tmp_path / "triton", name, model=tmp_path / "m.onnx", class_names=[label], config="")
    assert not (tmp_path / "triton").exists()
