"""INT8 graphs on real digits: accuracy, the ladder, and the form that each backend wants."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import OnnxSource
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.openvino import openvino_outputs
from edc.deploy.onnx.parity import compare_outputs, onnx_outputs
from edc.deploy.onnx.precision import precision_of_graph
from edc.deploy.onnx.quantize import RUNGS, Quantized, int8_from_onnx, int8_within_budget
from edc.deploy.onnx.sensitivity import heavy_nodes, noisiest_nodes
from edc.deploy.onnx.session import ort_session
from edc.errors import FailedError, ParityError

SHAPE = (1, 8, 8)


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CNN trained on the first thousand digits, as float32 ONNX."""
    torch.manual_seed(0)
    images, labels = digits()
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(60):
        batch = slice(100 * (step % 10), 100 * (step % 10) + 100)
        loss = nn.functional.cross_entropy(network(torch.from_numpy(images[batch])), torch.from_numpy(labels[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("int8") / "fp32.onnx"
    onnx_from_network(network, path, input_shape=SHAPE, class_names=list("0123456789"), metadata={"run": "demo"})
    return path


def correct(path: Path) -> np.ndarray:
    images, labels = digits()
    return onnx_outputs(ort_session(path, threads=1), images[1000:], batch_size=100).argmax(axis=1) == labels[1000:]


@pytest.mark.parametrize("flavour", ["int8-cpu", "int8-trt"])
def test_int8_keeps_the_accuracy_on_digits(source, tmp_path, flavour):
    images, _ = digits()
    reference = correct(source)
    assert reference.mean() > 0.85
    done = int8_within_budget(
        source,
        tmp_path / "int8.onnx",
        flavour=flavour,
        images=images[:128],
        reference_correct=reference,
        accuracy_of=correct,
        max_drop=0.01,
    )
    assert done.rung == "minmax"
    assert done.kept_float == ()
    assert done.accuracy.drop <= 0.01
    assert done.accuracy.candidate_accuracy == correct(tmp_path / "int8.onnx").mean()
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_cpu_flavour_is_unsigned_with_int32_biases_and_scales_per_channel(source, tmp_path):
    images, _ = digits()
    int8_from_onnx(source, tmp_path / "q.onnx", flavour="int8-cpu", images=images[:64])
    types = {numpy_helper.to_array(t).dtype.name for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert {"uint8", "int8", "int32"} <= types
    counts = precision_of_graph(tmp_path / "q.onnx")
    assert (counts.num_heavy_int8, counts.num_heavy) == (4, 4)
    assert scales_of_weights(tmp_path / "q.onnx", source)[0] == 16


def test_trt_flavour_is_symmetric_with_float_biases(source, tmp_path):
    images, _ = digits()
    int8_from_onnx(source, tmp_path / "q.onnx", flavour="int8-trt", images=images[:64])
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert {array.dtype.name for array in arrays.values()} - {"int64"} == {"float32", "int8"}  # int64: a shape
    zero_points = [array for name, array in arrays.items() if name.endswith("zero_point")]
    assert zero_points
    assert all((array == 0).all() for array in zero_points)
    counts = precision_of_graph(tmp_path / "q.onnx")
    assert (counts.num_heavy_int8, counts.num_quantize) == (4, 4)  # one pair in front of each layer, none behind
    assert scales_of_weights(tmp_path / "q.onnx", source)[0] == 16


def scales_of_weights(path: Path, source: Path) -> list[int]:
    """Return how many scales each convolution's weight has."""
    weights = [t.name for t in onnx.load(source).graph.initializer if len(t.dims) == 4]
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return [arrays[f"{name}_scale"].size for name in weights]


@pytest.mark.parametrize("calibration", ["minmax", "percentile"])
def test_activation_scale_is_the_range_of_the_calibration_images(source, tmp_path, calibration):
    images, _ = digits()
    int8_from_onnx(source, tmp_path / "q.onnx", flavour="int8-trt", images=images[:64], calibration=calibration)
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    # Digits reach 1.0 in far more than 0.01 % of their pixels, so both ways find the same range.
    assert float(arrays["images_scale"]) == pytest.approx(1 / 127, rel=0.01)


def test_ladder_goes_down_until_the_budget_is_met(source, tmp_path):
    images, _ = digits()
    reference = np.ones(100, dtype=bool)
    answers = iter([0.90, 0.95, 0.999])

    def accuracy_of(_: Path) -> np.ndarray:
        return np.arange(100) < 100 * next(answers)

    done = int8_within_budget(
        source,
        tmp_path / "int8.onnx",
        flavour="int8-cpu",
        images=images[:64],
        reference_correct=reference,
        accuracy_of=accuracy_of,
        max_drop=0.005,
    )
    assert [rung for rung, _ in done.tried] == list(RUNGS[:3])
    assert [accuracy.drop for _, accuracy in done.tried] == pytest.approx([0.10, 0.05, 0.0])
    assert done.kept_float == (heavy_nodes(source)[0], heavy_nodes(source)[-1])
    counts = precision_of_graph(tmp_path / "int8.onnx")
    assert (counts.num_heavy_int8, counts.num_heavy) == (2, 4)


def test_hopeless_network_is_a_failure_that_writes_nothing(source, tmp_path):
    images, _ = digits()
    with pytest.raises(ParityError, match=r"minmax 100\.00, percentile 100\.00"):
        int8_within_budget(
            source,
            tmp_path / "int8.onnx",
            flavour="int8-cpu",
            images=images[:64],
            reference_correct=np.ones(10, dtype=bool),
            accuracy_of=lambda _: np.zeros(10, dtype=bool),
            max_drop=0.005,
        )
    assert not list(tmp_path.iterdir())


def test_noisiest_layer_is_the_one_with_an_outlier(source, tmp_path):
    """One huge weight leaves no steps for its channel's others."""
    images, _ = digits()
    model = onnx.load(source)
    node = [node for node in model.graph.node if node.op_type == "Conv"][2]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    weight = numpy_helper.to_array(tensor).copy()
    weight[:, 0, 0, 0] = 5.0
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "outlier.onnx")
    assert noisiest_nodes(tmp_path / "outlier.onnx", images[:16], num_nodes=1) == (node.name,)


def test_quantiser_is_silent_and_leaves_logging_alone(source, tmp_path, capfd):
    images, _ = digits()
    before = (list(logging.getLogger().handlers), list(logging.getLogger().filters))
    int8_from_onnx(source, tmp_path / "q.onnx", flavour="int8-cpu", images=images[:32], calibration="percentile")
    assert capfd.readouterr() == ("", "")
    assert (list(logging.getLogger().handlers), list(logging.getLogger().filters)) == before
    metadata = {entry.key for entry in onnx.load(tmp_path / "q.onnx").metadata_props}
    assert metadata == {"class_names", "run"}


def test_too_few_calibration_images_are_refused(source, tmp_path):
    images, _ = digits()
    with pytest.raises(FailedError, match="expected at least 16"):
        int8_from_onnx(source, tmp_path / "q.onnx", flavour="int8-cpu", images=images[:10])


@pytest.mark.slow
def test_transformer_survives_the_graph_optimisations_of_onnx_runtime(tmp_path):
    """ONNX Runtime 1.31 miscomputes a transformer whose MatMul outputs are quantised."""
    torch.manual_seed(0)
    network = pytest.importorskip("timm").create_model("vit_tiny_patch16_224", num_classes=10)
    images = np.random.default_rng(0).random((16, 3, 224, 224), dtype=np.float32)
    path = tmp_path / "fp32.onnx"
    onnx_from_network(network, path, input_shape=(3, 224, 224), class_names=list("0123456789"), metadata={})
    int8_from_onnx(path, tmp_path / "q.onnx", flavour="int8-cpu", images=images)
    reference, candidate = (onnx_outputs(ort_session(p), images, batch_size=8) for p in (path, tmp_path / "q.onnx"))
    assert compare_outputs(reference, candidate).cosine_min > 0.95


# OpenVINO, the other backend that int8-cpu is for ---------------------------------------------------------------------


def ladder(source: Path, path: Path, elsewhere_of: Callable[[Path], np.ndarray] | None) -> Quantized:
    images = digits()[0][:300]
    how: Any = {"flavour": "int8-cpu", "images": images, "accuracy_of": correct, "max_drop": 0.02}
    return int8_within_budget(source, path, reference_correct=correct(source), elsewhere_of=elsewhere_of, **how)


def test_openvino_answers_as_onnxruntime_does_in_float(source):
    pytest.importorskip("openvino")
    images = digits()[0][:21]
    expected = onnx_outputs(ort_session(source, threads=1), images, batch_size=21)
    np.testing.assert_allclose(openvino_outputs(source, images, batch_size=8), expected, rtol=1e-4, atol=1e-4)


def test_file_is_judged_on_openvino_by_what_it_answers_there(source, tmp_path):
    pytest.importorskip("openvino")
    images, labels = digits()

    def there(path: Path) -> np.ndarray:
        return openvino_outputs(path, images[1000:], batch_size=100).argmax(1) == labels[1000:]

    found = ladder(source, tmp_path / "int8.onnx", there)
    assert found.elsewhere is not None
    drop = correct(source).mean() - there(tmp_path / "int8.onnx").mean()
    assert found.elsewhere.drop == pytest.approx(drop)
    assert drop <= 0.02


def test_rung_that_is_good_here_alone_is_taken_only_if_none_is_good_on_both(source, tmp_path):
    asked: list[bytes] = []

    def bad_at_first(path: Path) -> np.ndarray:
        asked.append(path.read_bytes())
        return correct(source) if len(asked) == 2 else np.zeros_like(correct(source))

    alone = ladder(source, tmp_path / "alone.onnx", None)
    second = ladder(source, tmp_path / "second.onnx", bad_at_first)
    assert RUNGS.index(second.rung) > RUNGS.index(alone.rung)
    assert (tmp_path / "second.onnx").read_bytes() == asked[1]
    asked.clear()
    never = ladder(source, tmp_path / "never.onnx", lambda path: np.zeros_like(correct(path)))
    assert never.rung == alone.rung
    assert never.elsewhere is not None
    assert never.elsewhere.drop == pytest.approx(correct(source).mean())
    assert (tmp_path / "never.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()


def test_openvino_does_not_run_what_the_export_found_unfit_for_it(source):
    pytest.importorskip("openvino")
    backend = open_backend("openvino", threads=1)
    backend.load(OnnxSource((source,)))
    with pytest.raises(FailedError, match=r"not for OpenVINO: fp32.onnx: it loses 2.05"):
        backend.load(OnnxSource((source,), not_for_openvino="fp32.onnx: it loses 2.05 points there"))
