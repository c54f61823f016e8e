"""`teachers.class_weights`: classes count alike in the training of teachers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight
from training_cases import DATA

from edc.data import DataSet, load_data
from edc.data.data_set import take
from edc.method.losses import label_loss
from edc.recipe import Recipe
from edc.teachers.ensemble import class_weights_of, teacher_key


def recipe(**teachers: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "weighted",
            "data": DATA.model_dump(exclude_unset=True),
            "network": "cifar_resnet8",
            "training": {"epochs": 4, "warmup_epochs": 1, "batch_size": 16},
            "teachers": {"ensemble_size": 2, **teachers},
            "students": {"kd": {"method": "kd"}},
        }
    )


@pytest.fixture(scope="module")
def uneven() -> DataSet:
    """Data of which one class has no training image, and another a few."""
    data = load_data(recipe().data)
    labels = data.train.labels
    few = (labels == 1).cumsum(0) <= 2
    return replace(data, train=take(data.train, ((labels != 0) & ((labels != 1) | few)).nonzero().flatten()))


def test_weights_are_those_of_scikit_learn_and_one_on_average(uneven):
    weights = class_weights_of(recipe(class_weights="balanced"), uneven)
    labels = uneven.train.labels.numpy()
    present = np.unique(labels)
    assert weights.numpy()[present] == pytest.approx(compute_class_weight("balanced", classes=present, y=labels))
    assert weights[0] == 0
    assert float(weights[uneven.train.labels].mean()) == pytest.approx(1, abs=1e-6)
    assert class_weights_of(recipe(), uneven) is None


def test_loss_weighs_each_image_by_its_label_and_parts_add_up_to_the_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 12, 3), generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    weights = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    log_probs = logits[0] - logits[0].exp().sum(-1, keepdim=True).log()
    by_hand = sum(-weights[label] * log_probs[n, label] for n, label in enumerate(labels)) / 12
    whole = label_loss(logits, labels, weights)
    assert float(whole) == pytest.approx(float(by_hand), abs=1e-12)
    parts = [label_loss(logits[:, some], labels[some], weights) for some in (slice(0, 6), slice(6, 12))]
    assert float(sum(parts) / 2) == pytest.approx(float(whole), abs=1e-12)
    assert float(label_loss(logits, labels, torch.ones(3))) == pytest.approx(
        float(label_loss(logits, labels)), abs=1e-12
    )


def test_older_recipes_and_their_teachers_have_the_digests_that_they_had(uneven):
    plain, weighted = recipe(), recipe(class_weights="balanced")
    assert "class_weights" not in plain.identity()["teachers"]
    assert "class_weights" not in teacher_key(plain, uneven, 0)[1]
    assert weighted.digest() != plain.digest()
    assert teacher_key(weighted, uneven, 0)[0] != teacher_key(plain, uneven, 0)[0]


def test_weights_for_teachers_that_are_trained_already_are_an_error():
    with pytest.raises(ValidationError, match="class_weights: has no effect, because checkpoints lists trained"):
        recipe(ensemble_size=None, checkpoints=["a.pt", "b.pt"], class_weights="balanced")
