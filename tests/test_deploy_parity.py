"""The gate lets the right file through and each wrong one not."""

import copy
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edc.deploy.fuse import fuse_batchnorm
from edc.deploy.onnx import parity as gate
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.parity import check_onnx_parity, compare_outputs, paired_accuracy_drop
from edc.deploy.onnx.precision import precision_of_graph, require_precision
from edc.deploy.onnx.session import import_onnxruntime, ort_session
from edc.errors import FailedError, ParityError

SHAPE = (1, 8, 8)


class Normalised(nn.Module):
    """A small CNN on digits whose normalisation is inside, as edc's networks have it."""

    def __init__(self, mean: float = 0.3, std: float = 0.37) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.std = mean, std
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.body((images - self.mean) / self.std)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return (load_digits().images[:96, None] / 16).astype(np.float32)


@pytest.fixture(scope="module")
def network(images: np.ndarray) -> nn.Module:
    """A network whose BatchNorm statistics are those of real digits, trained for a few steps so that logits differ."""
    network = Normalised().train()
    labels = torch.from_numpy(load_digits().target[:96]).long()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(torch.from_numpy(images)), labels).backward()
        optimizer.step()
    return network.eval()


def export(network: nn.Module, path: Path) -> Path:
    onnx_from_network(network, path, input_shape=SHAPE, class_names=list("0123456789"), metadata={})
    return path


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fused = fuse_batchnorm(network, input_shape=SHAPE)
    assert fused.num_folded == 2
    return export(fused.network, tmp_path_factory.mktemp("parity") / "student.onnx")


def check(path: Path, network: nn.Module, images: np.ndarray, **overrides):
    return check_onnx_parity(path, network, images, **{"max_batch": 32, "precision": "fp32", **overrides})


def test_right_file_passes_at_one_odd_and_maximum(exported, network, images):
    parity = check(exported, network, images)
    assert parity.batch_sizes == (1, 7, 32)
    assert parity.num_images == 96
    assert parity.relative_diff < 5e-6
    assert parity.argmax_agreement == 1.0
    assert parity.cosine_min == pytest.approx(1, abs=1e-9)


def test_too_few_images_are_repeated_to_reach_the_maximum(exported, network, images):
    assert check(exported, network, images[:5], max_batch=16).batch_sizes == (1, 7, 16)


def test_flipped_weight_is_caught(exported, network, images, tmp_path):
    """One sign bit of one weight, the median one in size, of the first convolution."""
    model = onnx.load(exported)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    weight = numpy_helper.to_array(tensor).copy()
    index = np.argsort(np.abs(weight).ravel())[weight.size // 2]
    weight.ravel()[index] *= -1
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, tmp_path / "flipped.onnx")
    with pytest.raises(ParityError, match="largest difference"):
        check(tmp_path / "flipped.onnx", network, images)


def test_forgotten_batchnorm_is_caught(network, images, tmp_path):
    without = copy.deepcopy(network)
    without.body[4] = nn.Identity()
    with pytest.raises(ParityError, match="largest difference"):
        check(export(without, tmp_path / "without.onnx"), network, images)


def test_wrong_normalisation_is_caught(network, images, tmp_path):
    wrong = copy.deepcopy(network)
    wrong.std = 0.371  # in the third digit
    with pytest.raises(ParityError, match="largest difference"):
        check(export(wrong, tmp_path / "wrong.onnx"), network, images)


def test_backend_that_computes_in_bfloat16_is_caught(exported, network, images, monkeypatch):
    """What OpenVINO does by default on a CPU that has bfloat16, with nothing in the file to see it by."""
    rounded = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16().float())

    def run_in_bf16(_, batch, *, batch_size):
        return gate.network_outputs(rounded, batch, batch_size=batch_size)

    monkeypatch.setattr(gate, "onnx_outputs", run_in_bf16)
    with pytest.raises(ParityError, match="fp32 allows"):
        check(exported, network, images)


def test_file_that_is_right_at_one_batch_size_only_is_caught(network, images, tmp_path):
    class MixesImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(network)

        def forward(self, batch: Tensor) -> Tensor:
            own_mean = batch.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]
            return self.inner(batch) + 0.1 * (batch.mean() - own_mean) * torch.linspace(0, 1, 10)  # 0 at batch 1

    with pytest.raises(ParityError):
        check(export(MixesImages(), tmp_path / "mixes.onnx"), network, images)


@pytest.mark.parametrize("precision", ["fp16", "int8-cpu", "int8-trt"])
def test_float32_file_is_not_taken_for_a_lower_precision(exported, network, images, precision):
    with pytest.raises(ParityError, match=f"expected an {precision} graph"):
        check(exported, network, images, precision=precision)


def test_bfloat16_weights_are_seen_in_the_graph(exported, tmp_path):
    model = onnx.load(exported)
    tensor = model.graph.initializer[0]
    data = numpy_helper.to_array(tensor)
    bf16 = onnx.helper.make_tensor(
        "half",
        onnx.TensorProto.BFLOAT16,
        data.shape,
        data.view(np.uint32).__rshift__(16).astype(np.uint16).tobytes(),
        raw=True,
    )
    model.graph.initializer.append(bf16)
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["half"], ["whole"], to=onnx.TensorProto.FLOAT))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == tensor.name:
                node.input[i] = "whole"
    onnx.save(model, tmp_path / "bf16.onnx")
    assert precision_of_graph(tmp_path / "bf16.onnx").num_bf16_initializers == 1
    with pytest.raises(ParityError, match="bfloat16"):
        require_precision(tmp_path / "bf16.onnx", "fp32")


def test_comparison_matches_figures_worked_out_by_hand():
    reference = np.array([[1.0, 2.0, -4.0], [0.0, 3.0, 2.9]], np.float32)
    candidate = np.array([[1.5, 2.0, -4.0], [0.0, 2.8, 2.9]], np.float32)
    parity = compare_outputs(reference, candidate)
    assert parity.max_abs_diff == 0.5
    assert parity.mean_abs_diff == pytest.approx((0.5 + 0.2) / 6, rel=1e-6)
    assert parity.logit_scale == 4
    assert parity.argmax_agreement == 0.5
    assert compare_outputs(reference, candidate, tie=0.05).argmax_agreement == 1.0  # 0.1 is within 5 % of 4
    cosines = [np.corrcoef(a, b)[0, 1] for a, b in zip(reference.astype(float), candidate.astype(float), strict=True)]
    assert parity.cosine_min == pytest.approx(min(cosines), rel=1e-12)


def test_non_finite_and_misshapen_outputs_are_refused():
    with pytest.raises(ParityError, match="not finite"):
        compare_outputs(np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32))
    with pytest.raises(ParityError, match="shape"):
        compare_outputs(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


def test_mcnemar_matches_the_binomial_sum():
    reference = np.array([True] * 90 + [False] * 10)
    candidate = reference.copy()
    candidate[:9] = False  # nine lost
    candidate[-2:] = True  # two gained
    paired = paired_accuracy_drop(reference, candidate)
    assert (paired.num_lost, paired.num_gained) == (9, 2)
    assert paired.drop == pytest.approx(0.07)
    assert paired.p_value == pytest.approx(2 * (1 + 11 + 55) / 2**11)  # C(11,0) + C(11,1) + C(11,2), both tails
    assert paired_accuracy_drop(reference, reference).p_value == 1.0


def test_telemetry_is_off_and_the_provider_is_checked(exported):
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    assert ort_session(exported).get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(FailedError, match="no QNNExecutionProvider in this build"):
        ort_session(exported, providers=["QNNExecutionProvider"])


def test_silent_fallback_to_the_cpu_is_an_error(exported):
    """The GPU wheel lists CUDA on machines without a GPU and then runs on the CPU."""
    if "CUDAExecutionProvider" not in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider to fall back from")
    if torch.cuda.is_available():
        pytest.skip("CUDA works here")
    with pytest.raises(FailedError, match="it runs on CPUExecutionProvider"):
        ort_session(exported, providers=["CUDAExecutionProvider"])


def test_damaged_file_is_a_failed_error(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(FailedError, match="cannot load"):
        ort_session(tmp_path / "bad.onnx")


@pytest.mark.parametrize(("points", "lost"), [(0.7, 7), (1.4, 14), (2.9, 29), (5.6, 56), (0.5, 5)])
def test_a_drop_exactly_at_the_limit_is_within_it(points: float, lost: int):
    reference, candidate = np.ones(1000, np.bool_), np.ones(1000, np.bool_)
    candidate[:lost] = False
    assert paired_accuracy_drop(reference, candidate).within(points / 100)
    candidate[lost] = False
    assert not paired_accuracy_drop(reference, candidate).within(points / 100)
