"""Views: mixup, cutmix and RandAugment, the same for teachers and student, before the perturbation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from command_line import edc
from conftest import TINY_RECIPE
from data_files import WITH_WORKERS, samples_of
from pydantic import ValidationError
from scipy import stats
from small_networks import randomise, small_network
from torch import Tensor, nn

from edc.data import load_data, load_training_data, train_batches
from edc.data.batches import rand_augmented
from edc.data.extra import rows_of_batches
from edc.method.batch_ensemble import to_batch_ensemble
from edc.method.perturb import move
from edc.method.step import Batch, StudentStep
from edc.method.views import mixed, own_share
from edc.recipe import DataSection, Recipe, StudentSection
from edc.seeding import derive_seed

N, K, M, SHAPE = 8, 5, 3, (3, 10, 12)


def images_of(num_images: int = N) -> Tensor:
    return torch.rand((num_images, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_hand(images: np.ndarray, targets: np.ndarray, kind: str, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image after another, one pixel after another, as the papers write it."""
    mixed_images, mixed_targets = np.empty_like(images), np.empty_like(targets)
    height, width = images.shape[2:]
    for n, (own, down, across) in enumerate(draws):
        partner = n + 1 if n % 2 == 0 else n - 1
        if kind == "mixup":
            share = own
            mixed_images[n] = own * images[n] + (1 - own) * images[partner]
        else:
            cut = math.sqrt(np.float32(1) - own)
            half_height, half_width = math.floor(0.5 * cut * height), math.floor(0.5 * cut * width)
            top, left = math.floor(down * height), math.floor(across * width)
            num_own = 0
            for row in range(height):
                for column in range(width):
                    in_rows = top - half_height <= row < top + half_height
                    is_cut = in_rows and left - half_width <= column < left + half_width
                    mixed_images[n, :, row, column] = images[partner if is_cut else n, :, row, column]
                    num_own += not is_cut
            share = num_own / (height * width)
        mixed_targets[n] = share * targets[n] + (1 - share) * targets[partner]
    return mixed_images, mixed_targets


@pytest.mark.parametrize("views", [("mixup",), ("cutmix",), ("mixup", "cutmix"), ("cutmix", "mixup")])
def test_images_and_labels_are_mixed_as_by_hand(views):
    images, targets = images_of(), torch.eye(K, dtype=torch.float64)[torch.arange(N) % K]
    found_images, found_targets = mixed(images, targets, views, generator=seeded())
    wanted_images, wanted_targets = images.numpy(), targets.numpy()
    generator = seeded()
    for view in views:
        draws = torch.rand(N, 3, generator=generator).numpy()
        wanted_images, wanted_targets = by_hand(wanted_images, wanted_targets, view, draws)
    np.testing.assert_allclose(found_images.numpy(), wanted_images, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found_targets.numpy(), wanted_targets, rtol=0, atol=1e-12)
    assert not np.allclose(wanted_images, images.numpy())
    assert mixed(images, torch.arange(N), views, generator=seeded())[1].equal(torch.arange(N)), "numbers are not mixed"


def test_share_of_mixup_is_uniform():
    shares = own_share("mixup", torch.rand(20_000, 3, generator=seeded()), 8, 8)
    assert stats.kstest(shares.flatten().numpy(), "uniform").pvalue > 0.01
    counts = np.histogram(shares.flatten().numpy(), bins=20, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 0.01


def test_share_of_cutmix_is_distributed_as_in_torchvision():
    """torchvision mixes the labels of a batch by one share; two images with labels 0 and 1 show it."""
    reference, images, labels = transforms.CutMix(num_classes=2), torch.zeros(2, 1, 32, 32), torch.tensor([0, 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wanted = np.array([float(reference(images, labels)[1][0, 0]) for _ in range(4000)])
    shares = own_share("cutmix", torch.rand(20_000, 3, generator=seeded()), 32, 32).mean((1, 2, 3)).numpy()
    assert stats.ks_2samp(shares, wanted).pvalue > 0.01


# In a step ------------------------------------------------------------------------------------------------------------


class Listening(nn.Module):
    """A network that keeps the images that it was asked about."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.heard = network, []

    def forward(self, images: Tensor) -> Tensor:
        self.heard.append(images)
        return self.network(images)


def frozen_norms(network: nn.Module) -> nn.Module:
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def batch_of(rows: slice = slice(0, N)) -> Batch:
    return Batch(images_of()[rows], (torch.arange(N) % K)[rows], seeded(), rows, N)


def step_of(**fields: object) -> StudentStep:
    teachers = [small_network(10 + m).eval().requires_grad_(False) for m in range(M)]
    return StudentStep(teachers, num_classes=K, **fields)  # type: ignore[arg-type]


def test_teachers_and_student_see_the_same_view_perturbed_after_it():
    teachers = [Listening(small_network(10 + m)).eval().requires_grad_(False) for m in range(2)]
    student = Listening(small_network(0))
    step = StudentStep(teachers, method="kd", views=("mixup",), perturbation="gaussian")
    list(step.losses(student, student, batch_of()))
    generator = seeded()
    view, _ = mixed(images_of(), torch.arange(N), ("mixup",), generator=generator)
    noise = torch.randn((N, *SHAPE), generator=generator)
    expected = move(view, noise.double(), grey_levels=1.0)
    for network in (*teachers, student):
        (heard,) = network.heard
        torch.testing.assert_close(heard, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["kd", "latent_be"])
def test_loss_with_labels_is_the_mixture_of_both_labels_losses(method):
    plain = small_network(0)
    network = frozen_norms(randomise(to_batch_ensemble(plain, M), 1) if method == "latent_be" else plain)
    alpha, common = 0.6, {"method": method, "views": ("mixup",)}
    (with_labels,), (without,) = (
        list(step_of(alpha=a, **common).losses(network, network, batch_of())) for a in (alpha, 1.0)
    )
    own = torch.rand(N, 3, generator=seeded())[:, 0].double()
    images, _ = mixed(images_of(), torch.arange(N), ("mixup",), generator=seeded())
    num_members = M if method == "latent_be" else 1
    log_probs = network(images.repeat(num_members, 1, 1, 1)).log_softmax(-1).view(num_members, N, K)
    of_labels = torch.zeros((), dtype=torch.float64)
    for m in range(num_members):
        for n in range(N):
            partner = n + 1 if n % 2 == 0 else n - 1
            of_labels -= own[n] * log_probs[m, n, n % K] + (1 - own[n]) * log_probs[m, n, partner % K]
    expected = alpha * without + (1 - alpha) * of_labels / (num_members * N)
    torch.testing.assert_close(with_labels, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("answers", ["all", "split"])
def test_parts_of_a_batch_have_the_views_of_the_whole(answers):
    """Two processes, and micro-batches of 2 in the second of them."""
    network = frozen_norms(randomise(to_batch_ensemble(small_network(0), M), 1))
    step = step_of(views=("mixup", "cutmix"), alpha=0.5, answers=answers)

    def gradient(batch: Batch, share: float) -> None:
        for part in batch.in_parts(None if len(batch.images) > 4 or not batch.rows.start else 2):
            for loss in step.losses(network, network, part):
                (loss * share * len(part.images) / len(batch.images)).backward()

    gradient(batch_of(), 1.0)
    expected = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    for rows in (slice(0, 4), slice(4, 8)):
        gradient(batch_of(rows), 0.5)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=1e-10)


# RandAugment ----------------------------------------------------------------------------------------------------------


def write_folder(root: Path) -> None:
    for split, num_images in (("train", 20), ("val", 4)):
        for sample in samples_of(num_images):
            folder = root / split / str(sample.label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{sample.key}.jpg").write_bytes(sample.content)


SYNTHETIC = DataSection(kind="synthetic", num_images=32, image_size=12, num_classes=2, augmentation="none")


def batches(section: DataSection, *, epoch: int = 0, randaugment: bool = True, **options: int) -> list[Tensor]:
    data = load_data(section)
    found = train_batches(data.train, section, batch_size=8, seed=3, epoch=epoch, randaugment=randaugment, **options)
    return [pixels for pixels, _ in found]


def test_randaugment_is_torchvisions_by_a_seed_of_image_and_epoch():
    data = load_data(SYNTHETIC)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(derive_seed(3, "order", 1)))
    before = torch.random.get_rng_state()
    found = torch.cat(batches(SYNTHETIC, epoch=1))
    assert torch.equal(torch.random.get_rng_state(), before), "it drew from the generator of everybody"
    reference = transforms.RandAugment(num_ops=2, magnitude=9)
    with torch.random.fork_rng():
        for row, index in enumerate(order.tolist()):
            torch.manual_seed(derive_seed(3, "randaugment", 1, index))
            assert torch.equal(found[row], reference(data.train.images[index])), index
    unchanged = torch.cat(batches(SYNTHETIC, epoch=1, randaugment=False))
    assert float((found != unchanged).flatten(1).any(1).float().mean()) > 0.5, "hardly an image was changed"
    assert not torch.equal(torch.cat(batches(SYNTHETIC, epoch=2)).sort(0)[0], found.sort(0)[0])


def test_randaugment_of_processes_and_of_a_resumed_epoch_is_that_of_one():
    whole = batches(SYNTHETIC)
    halves = [batches(SYNTHETIC, rank=rank, num_processes=2) for rank in (0, 1)]
    assert all(torch.equal(torch.cat(both), one) for both, one in zip(zip(*halves, strict=True), whole, strict=True))
    assert all(map(torch.equal, batches(SYNTHETIC, first_batch=2), whole[2:]))


@WITH_WORKERS
@pytest.mark.parametrize("augmentation", ["none", "resized_crop_flip"])
def test_randaugment_of_files_does_not_depend_on_workers(tmp_path, augmentation):
    write_folder(tmp_path)
    section = DataSection(kind="image_folder", root=tmp_path, image_size=16, augmentation=augmentation, num_workers=0)
    found = batches(section)
    assert len(found) >= 1
    assert all(map(torch.equal, found, batches(section.model_copy(update={"num_workers": 1}))))
    plain = batches(section, randaugment=False)
    order = torch.randperm(
        len(load_data(section).train), generator=torch.Generator().manual_seed(derive_seed(3, "order", 0))
    )
    for row, index in enumerate(order[:8].tolist()):
        expected = rand_augmented(plain[0][row], derive_seed(3, "randaugment", 0, index))
        assert torch.equal(found[0][row], expected)
    assert not torch.equal(found[0], plain[0])


@WITH_WORKERS
@pytest.mark.parametrize("kind", ["synthetic", "image_folder"])
def test_randaugment_of_extra_images_has_seeds_of_their_own(tmp_path, kind):
    write_folder(tmp_path)
    section = DataSection(
        kind=kind,
        **({"root": tmp_path} if kind == "image_folder" else {"num_images": 32}),
        image_size=16,
        augmentation="none",
        num_workers=0,
        train_limit=8,
        extra=({"kind": "remainder"},),
    )
    data = load_training_data(section)
    assert data.extra is not None
    common = {"batch_size": 8, "seed": 3, "extra": data.extra}
    for epoch in (0, 3):  # the extra images are gone through a second time
        rows_of = rows_of_batches(data.train, data.extra, batch_size=8, seed=3, epoch=epoch)
        plain, viewed = (
            list(train_batches(data.train, section, epoch=epoch, randaugment=randaugment, **common))
            for randaugment in (False, True)
        )
        assert len(viewed) == len(plain) == 2
        for number, ((before, labels), (after, _)) in enumerate(zip(plain, viewed, strict=True)):
            rows = rows_of(number)
            assert (labels == -1).sum() == (rows.sources > 0).sum() == 4
            for row, (source, index, turn) in enumerate(
                zip(rows.sources.tolist(), rows.indices.tolist(), rows.turns.tolist(), strict=True)
            ):
                parts = (turn, source, index) if source else (epoch, index)
                expected = rand_augmented(before[row], derive_seed(3, "randaugment", *parts))
                assert torch.equal(after[row], expected), (epoch, number, row)


def test_randaugment_takes_grey_images():
    grey = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
    views = [rand_augmented(grey, seed) for seed in range(60)]
    assert {(tuple(view.shape), view.dtype) for view in views} == {((1, 8, 8), torch.uint8)}
    assert sum(not torch.equal(view, grey) for view in views) > 30


# Recipes --------------------------------------------------------------------------------------------------------------

DOCUMENT = {"name": "r", "data": {"kind": "digits"}, "network": "wrn10x1", "students": {"a": {}}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"views": ["mixup", "mixup"]}, "views: found mixup, mixup; expected each of them once"),
        ({"views": ["cutmix", "randaugment"]}, "views: found cutmix, randaugment; expected 'randaugment' first"),
        ({"views": ["flip"]}, "'mixup', 'cutmix' or 'randaugment'"),
    ],
)
def test_views_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        StudentSection(**fields)


def test_mixed_views_without_labels_need_alpha_one(tmp_path: Path):
    data = {"kind": "image_folder", "root": str(tmp_path), "image_size": 8, "unlabelled": True}
    document = DOCUMENT | {"data": data, "teachers": {"checkpoints": ["a.pt", "b.pt"]}}
    Recipe.model_validate(document | {"students": {"a": {"views": ["mixup"]}}})
    with pytest.raises(ValidationError, match=r"students.a.alpha: found 0.5, but data.unlabelled leaves no labels"):
        Recipe.model_validate(document | {"students": {"a": {"views": ["mixup"], "alpha": 0.5}}})


def test_mixed_views_of_extra_images_need_alpha_one():
    data = {"kind": "digits", "train_limit": 200, "extra": ["remainder"]}

    def recipe(**fields: object) -> Recipe:
        students = {"a": {"views": ["mixup"], **fields}, "b": {}}
        return Recipe.model_validate(DOCUMENT | {"data": data, "students": students})

    recipe()
    recipe(alpha=0.5, extra=False)
    with pytest.raises(ValidationError, match=r"students.a.alpha: found 0.5 with mixup, .* images? .*data.extra"):
        recipe(alpha=0.5)


def test_default_makes_no_other_run_than_before_the_fields_existed():
    plain = Recipe.model_validate(DOCUMENT)
    assert not {"views", "ema", "choose"} & set(plain.identity()["students"]["a"])
    digests = {plain.digest()}
    for fields in ({"views": ["mixup"]}, {"views": ["mixup", "cutmix"]}, {"ema": 0.9}, {"choose": "validation"}):
        digests.add(Recipe.model_validate(DOCUMENT | {"students": {"a": fields}}).digest())
    assert len(digests) == 5


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ("batch_size: 15", "mixup and cutmix mix images in pairs, of 15 that go through"),
        ("batch_size: 18, micro_batch_size: 5", "mixup and cutmix mix images in pairs, of 5 that go through"),
    ],
)
def test_batches_that_do_not_come_in_pairs_are_refused_before_anything_trains(tmp_path, training, said):
    recipe = TINY_RECIPE.replace("batch_size: 16", training)
    recipe = recipe.replace("{method: kd}", "{method: kd, views: [randaugment, mixup, cutmix]}")
    (tmp_path / "recipe.yaml").write_text(recipe)
    called = edc("distill", "recipe.yaml", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert f"students.kd.views: {said}" in called.stderr
    assert not (tmp_path / "runs").exists()
