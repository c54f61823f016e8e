"""ONNX files against the torch network they came from, and what must not be in them."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edc.deploy.ensemble import ensemble_network
from edc.deploy.onnx.from_network import onnx_from_network
from edc.deploy.onnx.session import ort_session
from edc.errors import FailedError

SHAPE = (3, 16, 16)
CLASSES = ("aeroplane", "Würfel", "cat")


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, 3),
    ).eval()


def images(num_images: int) -> np.ndarray:
    return np.random.default_rng(0).random((num_images, *SHAPE), dtype=np.float32)


def export(network: nn.Module, path: Path) -> None:
    onnx_from_network(network, path, input_shape=SHAPE, class_names=CLASSES, metadata={"image_size": [16, 16]})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    export(small_network(), path)
    return path


@pytest.mark.parametrize("batch_size", [1, 2, 7, 33])
def test_file_computes_the_network_at_every_batch_size(exported, batch_size):
    batch = images(batch_size)
    with torch.no_grad():
        wanted = small_network().double()(torch.from_numpy(batch).double()).numpy()
    session = ort_session(exported, threads=1)
    np.testing.assert_allclose(session.run(["logits"], {"images": batch})[0], wanted, rtol=1e-4, atol=1e-6)


def test_second_export_is_the_same_bytes(exported, tmp_path):
    network = small_network().train()
    export(network, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    assert network.training  # the caller's network is untouched
    assert [path.name for path in tmp_path.iterdir()] == ["again.onnx"]


def test_file_says_nothing_about_the_machine(exported):
    content = exported.read_bytes()
    for trace in (Path(torch.__file__).parent, Path(__file__).parent, Path.home(), "site-packages", "stack_trace"):
        assert str(trace).encode() not in content
    model = onnx.load(exported)
    values = (*model.graph.input, *model.graph.output, *model.graph.initializer, *model.graph.node)
    assert not any(value.metadata_props or value.doc_string for value in values)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [20]


def test_metadata_holds_labels_and_preprocessing(exported):
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert metadata == {"class_names": list(CLASSES), "image_size": [16, 16]}


@torch.no_grad()
def test_ensemble_output_is_the_log_of_the_mean_probability(tmp_path):
    members = [small_network(seed) for seed in range(3)]
    with torch.no_grad():
        members[1][4].weight.mul_(3000)  # so sure that its other probabilities are zero in float32
    export(ensemble_network(members), tmp_path / "ensemble.onnx")
    batch = images(5)
    logits = torch.from_numpy(ort_session(tmp_path / "ensemble.onnx").run(None, {"images": batch})[0])
    doubles = torch.from_numpy(batch).double()
    wanted = torch.stack([member.double()(doubles).softmax(1) for member in members]).mean(0)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.double().softmax(1), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(logits.double(), wanted.log(), rtol=1e-5, atol=1e-5)


def test_failed_export_leaves_nothing(tmp_path):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2)) * (self.weight if x.sum() > 0 else 2 * self.weight)

    with pytest.raises(FailedError, match="cannot export"):
        export(Branches(), tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_network_over_two_gigabytes_is_refused_before_exporting(tmp_path):
    with torch.device("meta"):
        network = nn.Linear(2**15, 2**14 + 2**10)
    with pytest.raises(FailedError, match=r"2\.13 GiB"):
        export(network, tmp_path / "big.onnx")
