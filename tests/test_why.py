"""What a student has in common with its ensemble, by epoch: figures by hand, samples, costs, a whole run."""

import json
import math
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workshop
from reference import member_state
from small_networks import randomise, small_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from training_cases import TRAINING, broken_data, write_broken_images

from edc.data import DataSet, ExtraImages, MemoryImages
from edc.data.batches import images_at
from edc.errors import DataError
from edc.method.batch_ensemble import fold, to_batch_ensemble
from edc.method.step import draw_owners
from edc.metrics.agreement import mean_kl
from edc.recipe import StudentSection, TrainingSection
from edc.runs.why.observer import NUM_IMAGES, Observer, epochs_observed
from edc.runs.why.sample import read_sample
from edc.seeding import generator_for
from edc.teachers.ensemble import TeacherEnsemble

M, K, SHAPE = 3, 5, (3, 10, 10)


def images_of(num_images: int, seed: int) -> MemoryImages:
    pixels = torch.randint(
        40, 215, (num_images, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return MemoryImages(pixels, torch.arange(num_images) % K)


def data_of(num_train: int = 7, num_extra: int = 0) -> DataSet:
    extra = ExtraImages((images_of(num_extra, 3),), 0.5) if num_extra else None
    train, held = images_of(num_train, 1), images_of(5, 2)
    return DataSet(train, held, held, tuple("abcde"), SHAPE, (0.5,) * 3, (0.2,) * 3, extra)


def probs_of(network: nn.Module, images: Tensor) -> np.ndarray:
    """Softmax in float64, image by image, as the formula says."""
    logits = network(images).detach().numpy()
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(float((a * np.log(a / b)).sum()) for a, b in zip(p, q, strict=True)) / len(p)


def pairwise(networks: list[nn.Module], images: Tensor) -> float:
    probs = [probs_of(network, images) for network in networks]
    return sum(kl(probs[a], probs[b]) for a, b in permutations(range(M), 2)) / (M * (M - 1))


def disagree(networks: list[nn.Module], images: Tensor) -> float:
    classes = [probs_of(network, images).argmax(1) for network in networks]
    return sum(len({each[n] for each in classes}) > 1 for n in range(len(images))) / len(images)


def moved_by_hand(teachers: list[nn.Module], members: list[nn.Module], images: Tensor) -> Tensor:
    """TDiv - SDiv, image by image, each with its own pair, drawn by the seed of the sample."""
    generator = generator_for("sample", "perturb")
    owners = draw_owners(len(images), M, generator)
    shifts = torch.randint(1, M, (-(-len(images) // M),), generator=generator)
    moved = []
    for n, i in enumerate(owners.tolist()):
        x, j = images[n : n + 1].clone().requires_grad_(), (i + int(shifts[n // M])) % M
        surprises = [
            -(each[j](x).softmax(-1).detach() * each[i](x).log_softmax(-1)).sum() for each in (teachers, members)
        ]
        (gradient,) = torch.autograd.grad(surprises[0] - surprises[1], x)
        moved.append(x[0].detach() + 3 * math.sqrt(gradient.numel()) / 255 * gradient[0] / gradient.norm())
    return torch.stack(moved)


def test_figures_are_those_by_hand(accelerator):
    """Of 5 training images 3 go through the networks at once."""
    teachers = [small_network(10 + m).eval() for m in range(M)]
    network, data = randomise(to_batch_ensemble(small_network(0), M), 1), data_of(5, num_extra=4)
    members = [small_network(99).eval() for _ in range(M)]
    for m, member in enumerate(members):
        member.load_state_dict(member_state(network, m))
    observer = Observer(
        StudentSection(perturbation="tdiv_sdiv", perturbation_grey_levels=3),
        data,
        TeacherEnsemble(teachers),
        plain_of=fold,
        training=TRAINING.model_copy(update={"batch_size": 4, "micro_batch_size": 3}),
        num_workers=0,
        accelerator=accelerator,
    )
    found = observer(network.train(), 0)
    assert data.extra is not None
    splits = {"train": data.train, "validation": data.validation, "extra": data.extra.parts[0]}
    clean = {name: images.images.double() / 255 for name, images in splits.items()}
    moved = moved_by_hand(teachers, members, clean["train"])
    expected = {}
    for name, images in clean.items():
        ensemble, student = np.mean([probs_of(t, images) for t in teachers], 0), probs_of(fold(network), images)
        expected[f"agreement_{name}"] = float(np.mean(ensemble.argmax(1) == student.argmax(1)))
        expected[f"kl_{name}"] = kl(ensemble, student)
    for kind, images in (("clean", clean["train"]), ("moved", moved)):
        expected[f"teachers_kl_{kind}"] = pairwise(teachers, images)
        expected[f"members_kl_{kind}"] = pairwise(members, images)
        expected[f"teachers_disagree_{kind}"] = disagree(teachers, images)
        ensemble = np.mean([probs_of(t, images) for t in teachers], 0).argmax(1)
        agreements = [np.mean(probs_of(member, images).argmax(1) == ensemble) for member in members]
        expected[f"members_agreement_{kind}"] = float(np.mean(agreements))
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=2e-5)  # answers go from process to process in float32
    assert abs(expected["teachers_kl_moved"] - expected["teachers_kl_clean"]) > 1e-3, "nothing moved"


def test_members_that_have_drifted_apart_are_said_once_while_there_is_time(accelerator, capsys):
    """The second member negates what goes from one layer to the next: it computes what it did, and the fold nothing."""
    teacher, data = randomise(small_network(0), 1).eval(), data_of(64)
    with torch.no_grad():  # so that it does not say the same of all images
        teacher.classifier.bias -= teacher(data.train.images.double() / 255).mean(0)
    network = to_batch_ensemble(teacher, 2)
    teachers = TeacherEnsemble([teacher, teacher])
    common: dict[str, Any] = {"plain_of": fold, "training": TRAINING, "num_workers": 0, "accelerator": accelerator}
    observer = Observer(StudentSection(), data, teachers, name="be", **common)
    assert observer(network, 0)["agreement_train"] == 1
    assert "apart" not in capsys.readouterr().err
    with torch.no_grad():
        for factors in (network.body[0].depthwise.sigma, network.body[0].shortcut.sigma, network.head["mix"].rho):
            factors[1] = -2  # kept as the distance from 1
    found = observer(network, 0)
    assert found["members_agreement_clean"] == 1
    assert found["agreement_train"] < 0.5
    said = " ".join(capsys.readouterr().err.split())
    fold_share = f"{100 * found['agreement_train']:.0f} %"
    assert said.startswith("warning: be: its members have drifted apart: after epoch 1 of ")
    assert f"on 100 % of training images, their fold, which is deployed, on {fold_share}. A training.f" in said
    assert "below the present 1 (0.25) may keep" in said
    observer(network, 0)
    assert "apart" not in capsys.readouterr().err


def test_a_network_without_members_or_perturbation_has_the_figures_that_it_can_have(accelerator):
    teachers, data = TeacherEnsemble([small_network(10 + m) for m in range(M)]), data_of(17)
    common = {"plain_of": lambda trained: trained, "training": TRAINING, "num_workers": 0, "accelerator": accelerator}
    section = StudentSection(method="kd")
    found = Observer(section, data, teachers, **common)(small_network(0), 0)
    assert {name.rpartition("_")[0] for name in found} == {"agreement", "kl", "teachers_kl", "teachers_disagree"}
    assert not any("extra" in name or "moved" in name for name in found)
    found = Observer(StudentSection(method="kd", perturbation="gaussian"), data, teachers, **common)(
        small_network(0), 0
    )
    assert {name for name in found if "moved" in name} == {"teachers_kl_moved", "teachers_disagree_moved"}
    one = TeacherEnsemble([small_network(10)])
    assert Observer(section, data, one, **common)(small_network(0), 0).keys() == {
        "agreement_train", "kl_train", "agreement_validation", "kl_validation"
    }  # fmt: skip


def test_a_class_that_a_teacher_rules_out_is_worth_nothing_and_no_figure_is_infinite():
    with np.errstate(divide="ignore"):
        certain = np.log(np.array([[1.0, 0.0]]))
    assert mean_kl(certain, np.log(np.array([[0.5, 0.5]]))) == pytest.approx(math.log(2))


# Which images, which epochs -------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_by_the_name_of_the_split_from_all_sources(accelerator):
    numbers = torch.arange(500)
    pixels = torch.stack([numbers // 256, numbers % 256, numbers * 0], 1).to(torch.uint8)[:, :, None, None]
    sources = [MemoryImages(pixels[:100], numbers[:100]), MemoryImages(pixels[100:], numbers[100:])]
    samples = [
        read_sample(sources, name, NUM_IMAGES, num_workers=0, accelerator=accelerator) for name in ("a", "a", "b")
    ]
    first, again, other = (sample.pixels[:, 0, 0, 0].int() * 256 + sample.pixels[:, 1, 0, 0] for sample in samples)
    assert torch.equal(first, samples[0].indices.int())
    assert len(set(first.tolist())) == NUM_IMAGES == 256
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 25 < int((first < 100).sum()) < 80


def test_unreadable_images_are_replaced_as_in_training_or_end_the_run(tmp_path):
    write_broken_images(tmp_path)
    train = broken_data(tmp_path, 0.13).train
    pixels = images_at([train], torch.arange(32))
    assert pixels.shape == (32, 3, 8, 8)
    dark = [int(pixels[n, 0, 0, 0]) for n in range(16)]
    assert dark == [9 * (n + (n in (2, 5))) for n in range(16)]
    with pytest.raises(DataError, match="not a readable image"):
        images_at([broken_data(tmp_path, 0.0).train], torch.arange(32))


def fake_data(num_train: int, num_validation: int) -> DataSet:
    train, held = (MemoryImages(torch.empty(n, 0, 0, 0), torch.zeros(n)) for n in (num_train, num_validation))
    return DataSet(train, held, held, ("a", "b"), (0, 0, 0), (), ())


SPLIT = StudentSection(method="kd", answers="split")


@pytest.mark.parametrize(
    ("section", "num_train", "changes", "every"),
    [
        (StudentSection(perturbation="tdiv_sdiv"), 45_000, {}, 1),  # 5,120 passes of 1.7 millions
        (SPLIT, 2000, {}, 3),  # 512 of 7,680: two epochs in three are left out to stay at 3 %
        (SPLIT, 2000, {"validate_every": 2}, 4),
        (SPLIT, 2000, {"validate_every": 5}, 5),
        (StudentSection(answers="split", perturbation="tdiv_sdiv"), 2000, {}, 9),  # 5,120 of 19,200
    ],
)
def test_as_many_epochs_are_looked_at_as_add_three_per_cent(section, num_train, changes, every):
    training = TrainingSection(epochs=131).model_copy(update=changes)
    found = epochs_observed(section, fake_data(num_train, 2000), training=training, ensemble_size=4)
    first = training.validate_every - 1
    assert found == {*range(first, 131, every), 130}


# A whole run ----------------------------------------------------------------------------------------------------------


def test_a_run_has_the_figures_in_its_metrics_and_in_tensorboard(workshop: Workshop):
    for student, num_figures in (("kd", 6), ("latent_be", 12)):
        folder = workshop.run / "students" / student
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [len(line["observed"]) for line in lines] == [num_figures] * 2
        curves = EventAccumulator(str(folder / "tensorboard"))
        curves.Reload()
        tags = Counter(tag for tag in curves.Tags()["scalars"] if tag.startswith("observed/"))
        assert set(tags) == {f"observed/{name}" for name in lines[0]["observed"]}
        for name in lines[0]["observed"]:
            points = [(point.step, point.value) for point in curves.Scalars(f"observed/{name}")]
            assert points == [(line["step"], pytest.approx(line["observed"][name], rel=1e-6)) for line in lines]
