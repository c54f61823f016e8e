"""The mean of an ensemble's probabilities, in numpy and in torch, against scipy in float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from torch import nn

from edc.deploy import ensemble as in_torch
from edc.deploy.fuse import tempered_ensemble
from edc.metrics import ensemble_log_probs


def by_scipy(logits: np.ndarray) -> np.ndarray:
    return logsumexp(log_softmax(logits.astype(np.float64), axis=-1), axis=0) - np.log(len(logits))


@pytest.mark.parametrize("num_members", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.1, 3.0, 400.0])
def test_mean_of_probabilities_is_scipys(num_members: int, scale: float):
    logits = scale * np.random.default_rng(num_members).standard_normal((num_members, 7, 10))
    np.testing.assert_allclose(ensemble_log_probs(logits), by_scipy(logits), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(in_torch.ensemble_log_probs(torch.from_numpy(logits)), by_scipy(logits), rtol=1e-12)
    log_probs = log_softmax(logits, axis=-1)
    np.testing.assert_allclose(ensemble_log_probs(list(log_probs)), by_scipy(logits), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_each_members_logits_before_the_mean(temperature: float):
    logits = 3 * np.random.default_rng(0).standard_normal((4, 7, 10))
    wanted, images = by_scipy(logits / temperature), torch.zeros(7, 1)
    np.testing.assert_allclose(ensemble_log_probs(logits, temperature=temperature), wanted, rtol=1e-12)
    found = in_torch.ensemble_log_probs(torch.from_numpy(logits), temperature=temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    fixed = [Fixed(torch.from_numpy(each)) for each in logits]
    for network in (
        in_torch.ensemble_network(fixed, temperature=temperature),
        tempered_ensemble(fixed, temperature, input_shape=(1, 1, 1)),  # nothing in it to fold into
    ):
        np.testing.assert_allclose(network(images), wanted, rtol=1e-5, atol=1e-6)


class Fixed(nn.Module):
    """The same logits for any images."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits, requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def test_temperature_is_folded_into_the_members_classifiers_where_it_costs_nothing():
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(3)]
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 1, 2, 2)))
    with torch.inference_mode():
        folded = tempered_ensemble(members, 2.5, input_shape=(1, 2, 2))
        wanted = by_scipy(np.stack([member(images).numpy() for member in members]) / 2.5)
        np.testing.assert_allclose(folded(images), wanted, rtol=1e-5, atol=1e-6)
    assert folded.temperature == 1
    np.testing.assert_allclose(folded.members[0][3].weight.detach(), members[0][3].weight.detach() / 2.5, rtol=1e-12)


def test_float32_stays_float32_and_the_input_stays_as_it_is():
    logits = np.random.default_rng(0).standard_normal((3, 6, 4), np.float32)
    before = logits.copy()
    found = ensemble_log_probs(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_scipy(logits), rtol=1e-5)
    np.testing.assert_array_equal(logits, before)


def test_class_that_no_member_thinks_possible_has_probability_zero():
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.array([[[0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0]]]))
    np.testing.assert_allclose(np.exp(ensemble_log_probs(log_probs)), [[0.75, 0.25, 0.0]], rtol=1e-15)


def test_metrics_import_numpy_alone_because_workers_do_before_they_time():
    script = "import sys, edc.metrics; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"scipy", "torch", "onnx", "sklearn"}.isdisjoint(printed)
