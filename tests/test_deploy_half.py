"""float16 graphs: what is converted, what must not be, and that values which overflow survive."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edc.deploy.ensemble import ensemble_network
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.half import fp16_from_onnx
from edc.deploy.onnx.parity import check_onnx_parity
from edc.deploy.onnx.precision import precision_of_graph, require_precision
from edc.deploy.onnx.session import ort_session
from edc.errors import FailedError, ParityError

SHAPE = (3, 16, 16)


def network(seed: int = 0, gain: float = 1.0) -> nn.Module:
    """A CNN whose hidden values grow by `gain` and shrink again, so that its logits do not depend on it."""
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, 5),
    )
    with torch.no_grad():
        body[2].weight.mul_(gain)
        body[2].bias.mul_(gain)
        body[4].weight.div_(gain)
    return body.eval()


def images(num_images: int = 16) -> np.ndarray:
    return np.random.default_rng(0).random((num_images, *SHAPE), dtype=np.float32)


def export(module: nn.Module, path: Path) -> Path:
    onnx_from_network(module, path, input_shape=SHAPE, class_names=list("abcde"), metadata={"run": "demo"})
    return path


def test_whole_network_becomes_float16_with_float32_borders(tmp_path):
    source = export(network(), tmp_path / "fp32.onnx")
    half = fp16_from_onnx(source, tmp_path / "fp16.onnx", images=images())
    model = onnx.load(tmp_path / "fp16.onnx")
    borders = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert borders == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert half.kept_float == ()
    counts = require_precision(tmp_path / "fp16.onnx", "fp16")
    assert (counts.num_heavy, counts.num_heavy_fp16, counts.num_fp32_initializers) == (5, 5, 0)
    assert [(entry.key, entry.value) for entry in model.metadata_props if entry.key == "run"] == [("run", "demo")]
    parity = check_onnx_parity(tmp_path / "fp16.onnx", network(), images(), max_batch=8, precision="fp16")
    assert 1e-6 < parity.relative_diff < 5e-3  # rounded to 11 bits, and only that


def test_values_are_those_of_rounding_each_weight(tmp_path):
    """One linear layer: the result is the float32 product of float16 operands, rounded to float16."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 5, bias=False))
    fp16_from_onnx(export(linear, tmp_path / "a.onnx"), tmp_path / "b.onnx", images=images())
    got = ort_session(tmp_path / "b.onnx").run(None, {"images": images()})[0]
    weight = linear[1].weight.detach().numpy().astype(np.float16).astype(np.float64)
    wanted = images().reshape(16, -1).astype(np.float16).astype(np.float64) @ weight.T
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-4)


def test_layers_that_overflow_stay_float32_and_pass_their_values_on(tmp_path):
    module = network(gain=1e6)
    source = export(module, tmp_path / "fp32.onnx")
    half = fp16_from_onnx(source, tmp_path / "fp16.onnx", images=images())
    assert half.largest_value > 65504
    assert 2 <= len(half.kept_float) <= 4  # the two convolutions and the ReLU between
    parity = check_onnx_parity(tmp_path / "fp16.onnx", module, images(), max_batch=8, precision="fp16")
    assert parity.cosine_min > 0.9999


def test_gate_catches_an_overflow_that_calibration_did_not_see(tmp_path):
    module = network(gain=1e6)
    source = export(module, tmp_path / "fp32.onnx")
    fp16_from_onnx(source, tmp_path / "fp16.onnx", images=images(), headroom=1e-30)  # trusts every value to fit
    with pytest.raises(ParityError):
        check_onnx_parity(tmp_path / "fp16.onnx", module, images(), max_batch=8, precision="fp16")


def test_tail_of_an_ensemble_stays_float32(tmp_path):
    members = [network(seed) for seed in range(3)]
    merged = ensemble_network(members)
    half = fp16_from_onnx(export(merged, tmp_path / "fp32.onnx"), tmp_path / "fp16.onnx", images=images())
    assert any("log_softmax" in name for name in half.kept_float)
    counts = precision_of_graph(tmp_path / "fp16.onnx")
    assert (counts.num_heavy_fp16, counts.num_heavy) == (15, 15)
    check_onnx_parity(tmp_path / "fp16.onnx", merged, images(), max_batch=8, precision="fp16")


def test_mean_over_many_large_values_stays_float32(tmp_path):
    """Each value fits float16, their sum before the division does not."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x * 500).mean((2, 3)))

    half = fp16_from_onnx(export(Mean(), tmp_path / "a.onnx"), tmp_path / "b.onnx", images=images())
    assert half.largest_value <= 500
    assert len(half.kept_float) == 1
    assert "mean" in half.kept_float[0]


def test_epsilon_too_small_for_float16_keeps_what_divides_by_it_float32(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"], name="flatten"),
            helper.make_node("Abs", ["flat"], ["magnitude"], name="abs"),
            helper.make_node("Add", ["magnitude", "epsilon"], ["positive"], name="add"),
            helper.make_node("Div", ["flat", "positive"], ["logits"], name="div"),
        ],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 768])],
        [numpy_helper.from_array(np.array(1e-9, np.float32), "epsilon")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    half = fp16_from_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", images=images())
    assert half.kept_float == ("add", "div")
    zeros = np.zeros((1, *SHAPE), np.float32)
    assert ort_session(tmp_path / "b.onnx").run(None, {"images": zeros})[0].tolist() == [[0.0] * 768]  # not 0 / 0


def test_quantised_graph_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale"], ["y"], name="q")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["batch", 3])],
        [numpy_helper.from_array(np.array(1, np.float32), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(FailedError, match="QuantizeLinear"):
        fp16_from_onnx(tmp_path / "a.onnx", tmp_path / "b.onnx", images=images())
