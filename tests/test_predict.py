"""Predictions in order and in float32; BatchNorm statistics estimated again on training images."""

import dataclasses

import numpy as np
import torch
from torch import nn
from training_cases import DATA, TRAINING, plain, small_data

from edc.data import train_batches
from edc.data.data_set import take
from edc.method.batch_ensemble import to_batch_ensemble
from edc.recipe import TrainingSection
from edc.train.evaluate import labels_of, predict_logits, reestimate_batchnorm


def test_logits_are_float32_of_the_network_even_for_a_bf16_recipe(accelerator):
    data, network = small_data(), plain(0)
    training = TRAINING.model_copy(update={"precision": "bf16"})
    found = predict_logits(network.train(), data.test, DATA, training, accelerator)
    assert found.dtype == np.float32
    with torch.no_grad():
        expected = network.eval()(data.test.images.float() / 255)
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_members_are_the_leading_axis(accelerator):
    data, network = small_data(), to_batch_ensemble(plain(0), 3).eval()
    with torch.no_grad():
        network.network.classifier.sigma[1] += 1  # member 1 has twice the logits
    found = predict_logits(network, data.test, DATA, TRAINING, accelerator)
    assert found.shape == (3, 35, 3)
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-5, atol=1e-6)


def test_labels_are_those_of_the_split():
    data = small_data()
    assert labels_of(data.test).tolist() == data.test.labels.tolist()


def test_reestimated_statistics_are_means_over_batches_of_training_images(accelerator):
    """A norm right behind the images: its statistics are those of the augmented, clean batches themselves."""
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3)).train()
    network[0].running_mean.fill_(9.0)
    data = small_data()
    weights = network[2].weight.clone()
    result = reestimate_batchnorm(
        network, data, data_section=DATA, training=TRAINING, seed=3, accelerator=accelerator, num_images=48
    )
    batches = [p.double() / 255 for p, _ in train_batches(data.train, DATA, batch_size=16, seed=3, epoch=-1)][:3]
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in batches]).mean(0)
    torch.testing.assert_close(result[0].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result[0].running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert result[0].momentum == 0.1
    assert not any(module.training for module in result.modules())
    assert torch.equal(result[2].weight, weights)


def test_statistics_of_a_step_too_large_for_one_pass_are_taken_in_parts(accelerator):
    seen: list[int] = []
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    data = dataclasses.replace(small_data(), train=take(small_data().train, torch.arange(2048) % 64))
    training = TrainingSection(batch_size=2048, micro_batch_size=2)
    reestimate_batchnorm(network, data, data_section=DATA, training=training, seed=3, accelerator=accelerator)
    assert seen == [256] * 8


def test_reestimation_moves_every_norm_of_a_real_network_and_no_weight(accelerator):
    network = plain(0)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    reestimate_batchnorm(network, small_data(), data_section=DATA, training=TRAINING, seed=3, accelerator=accelerator)
    for key, value in network.state_dict().items():
        if "running" in key:
            assert not torch.equal(value, before[key]), key
        elif "num_batches" not in key:
            assert torch.equal(value, before[key]), key
