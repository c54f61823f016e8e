"""The method in the package against `reference.py`, METHOD.md written down straight: to 1e-10 in float64."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable

import pytest
import reference
import torch
from small_networks import randomise, small_network
from torch import Tensor, nn

from edc.method.batch_ensemble import fold, to_batch_ensemble
from edc.method.losses import kd_loss, label_loss, latent_be_loss
from edc.method.perturb import draw_pair, move, perturb
from edc.method.step import Batch
from edc.recipe import StudentSection, TrainingSection
from edc.runs.student import student_step
from edc.teachers.ensemble import TeacherEnsemble
from edc.train.schedule import build_optimizer

M, N, K = 3, 7, 5
SHAPE = (3, 10, 10)
LEARNING_RATES = (0.1, 0.07)
TEMPERATURE = 4.0


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def some_images(seed: int = 0) -> Tensor:
    """Images that reach 0 and 1, so that the clip has something to do."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand((N, *SHAPE), generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)


def some_labels() -> Tensor:
    return torch.tensor([0, 1, 2, 3, 4, 0, 2])


def plain_teachers() -> list[nn.Module]:
    """Teachers of different weights and different normalisation."""
    return [small_network(10 + m, mean=(0.1 * m + 0.3, 0.5, 0.6)) for m in range(M)]


def batch_of(images: Tensor, generator: torch.Generator) -> Batch:
    return Batch(images=images, labels=some_labels(), generator=generator, rows=slice(None), num_rows=len(images))


def joint(parts: Iterable[Tensor]) -> Tensor:
    """Returns the loss that is given as one part."""
    (part,) = parts
    return part


def compare(network: nn.Module, expected: reference.Network) -> None:
    """Holds every parameter and every running statistic of `network` against the reference."""
    state = network.state_dict()
    for key, value in (expected.w | expected.statistics).items():
        close(state.pop(key), value)
    for name in reference.LAYERS:
        close(1 + state.pop(f"{name}.rho"), expected.r[name])
        close(1 + state.pop(f"{name}.sigma"), expected.s[name])
    assert {key for key in state if "num_batches" not in key} == {"mean", "std"}


@pytest.mark.parametrize("form", ["activation", "weight"])
@pytest.mark.parametrize(("start", "alpha"), [("ones", 1.0), ("random factors", 0.7)])
def test_two_optimiser_steps_equal_the_reference(form, start, alpha):
    plain = small_network(0)
    network = to_batch_ensemble(plain, M, form=form).train()
    student = reference.network_from_state(plain.state_dict(), M)
    if start == "random factors":
        randomise(network, 1)
        student = reference.network_from_state(
            {k: v for k, v in network.state_dict().items() if not k.endswith(("rho", "sigma"))}, M
        )
        for name in reference.LAYERS:
            layer = network.get_submodule(name)
            student.r[name], student.s[name] = 1 + layer.rho.detach(), 1 + layer.sigma.detach()
    teachers = plain_teachers()
    reference_teachers = [reference.network_from_state(teacher.state_dict(), 1) for teacher in teachers]
    section = StudentSection(perturbation="tdiv_sdiv", temperature=TEMPERATURE, alpha=alpha)
    ensemble = TeacherEnsemble(teachers)
    learn = student_step(section, ensemble, training=TrainingSection())
    optimizer = build_optimizer(network, TrainingSection())

    for step, learning_rate in enumerate(LEARNING_RATES):
        images = some_images(step)
        moved = perturb(
            images,
            "tdiv_sdiv",
            teachers=ensemble,
            student=network,
            grey_levels=1.0,
            generator=torch.Generator().manual_seed(step),
        )
        optimizer.param_groups[0]["lr"] = learning_rate
        loss = joint(learn.losses(network, network, batch_of(images, torch.Generator().manual_seed(step))))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected_loss, expected_images = reference.train_step(
            student,
            reference_teachers,
            images,
            some_labels(),
            pair=draw_pair(M, torch.Generator().manual_seed(step)),
            temperature=TEMPERATURE,
            alpha=alpha,
            learning_rate=learning_rate,
            momentum=0.9,
            weight_decay=5e-4,
        )
        close(moved, expected_images)
        close(loss.detach(), expected_loss)
        compare(network, student)

    assert (student.r["stem"].std(0) > 1e-6).all(), "the members did not part: this test would see nothing"
    clean = some_images(9)
    close(
        network.eval()(clean.repeat(M, 1, 1, 1)).detach().view(M, N, K),
        reference.forward(student, clean, train=False).detach(),
    )
    for kind in ("mean_weights", "mean_factors"):
        folded = fold(network, small_network(99), kind=kind).state_dict()
        for key, value in reference.folded(student, kind).items():
            close(folded[key], value)
        close(folded["mean"], plain.mean)


def test_folds_differ_by_the_covariance_of_the_factors():
    network = randomise(to_batch_ensemble(small_network(0), M), 1)
    mean_weights = fold(network, small_network(2), kind="mean_weights").stem.weight
    mean_factors = fold(network, small_network(2), kind="mean_factors").stem.weight
    r, s = network.stem.rho.detach().numpy(), network.stem.sigma.detach().numpy()
    covariance = torch.tensor([[((s[:, o] - s[:, o].mean()) * r[:, c]).mean() for c in range(3)] for o in range(8)])
    close(mean_weights - mean_factors, network.stem.weight * covariance[:, :, None, None])


def direction_of(kind: str, *, student: nn.Module, teachers: TeacherEnsemble, seed: int = 5) -> Tensor:
    """Returns the unit direction of a perturbation, found from images in the middle of the range."""
    images = some_images() * 0.5 + 0.25
    moved = perturb(
        images,
        kind,
        teachers=teachers,
        student=student,
        grey_levels=1.0,
        generator=torch.Generator().manual_seed(seed),
    )
    assert 0 < moved.min() < moved.max() < 1, "clipped: the direction cannot be seen"
    return (moved - images).flatten(1) * 255 / math.sqrt(math.prod(SHAPE))


def unit(x: Tensor) -> Tensor:
    return x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True)


def middle() -> Tensor:
    return some_images() * 0.5 + 0.25


def test_tdiv_climbs_the_cross_entropy_of_two_teachers():
    teachers = plain_teachers()
    i, j = draw_pair(M, torch.Generator().manual_seed(5))
    x = middle().requires_grad_()
    target = teachers[j].eval()(x).softmax(-1).detach()
    (-(target * teachers[i].eval()(x).log_softmax(-1)).sum()).backward()
    close(direction_of("tdiv", student=small_network(0), teachers=TeacherEnsemble(teachers)), unit(x.grad))


def test_ods_climbs_one_random_combination_of_one_teachers_probabilities():
    teachers = plain_teachers()
    found = direction_of("ods", student=small_network(0), teachers=TeacherEnsemble(teachers))
    gradients = []  # of each class probability of each teacher: the direction must be in the span of one teacher's
    for teacher in teachers:
        rows = []
        for k in range(K):
            x = middle().requires_grad_()
            teacher.eval()(x).softmax(-1)[:, k].sum().backward()
            rows.append(x.grad.flatten(1))
        gradients.append(torch.stack(rows, 1))  # (N, K, D)
    fits = []
    for basis in gradients:
        # One w for the whole batch, known only up to each image's scale: the null space of the stacked residuals.
        residuals = basis - (basis @ found[:, :, None]) @ found[:, None, :]
        stacked = residuals.transpose(1, 2).reshape(-1, K)
        values = torch.linalg.svdvals(stacked - stacked.mean(1, keepdim=True))
        fits.append(float(values[-2] / values[0]))  # the last one is the constant: probabilities add up to one
    assert sorted(fits)[0] < 1e-7
    assert sorted(fits)[1] > 1e-3


def test_gaussian_has_the_size_of_the_others_and_no_direction():
    found = direction_of("gaussian", student=small_network(0), teachers=TeacherEnsemble(plain_teachers()))
    close(found.norm(dim=1), torch.ones(N, dtype=torch.float64))
    noise = torch.randn((N, *SHAPE), generator=torch.Generator().manual_seed(5))
    close(found, unit(noise.double()))


def test_gaussian_rows_are_rows_of_the_global_batch():
    images, teachers, student = middle(), TeacherEnsemble(plain_teachers()), small_network(0)

    def moved(rows: slice) -> Tensor:
        return perturb(
            images[rows],
            "gaussian",
            teachers=teachers,
            student=student,
            grey_levels=2.0,
            generator=torch.Generator().manual_seed(0),
            rows=rows,
            num_rows=N,
        )

    close(torch.cat([moved(slice(0, 3)), moved(slice(3, 7))]), moved(slice(None)))


def test_none_returns_the_images_themselves():
    images = some_images()
    teachers = TeacherEnsemble(plain_teachers())
    generator = torch.Generator()
    result = perturb(images, "none", teachers=teachers, student=small_network(0), grey_levels=1.0, generator=generator)
    assert result is images


def test_step_has_the_root_mean_square_asked_for():
    images, direction = middle(), torch.randn(N, *SHAPE, dtype=torch.float64)
    for grey_levels in (1.0, 3.0):
        change = move(images, direction, grey_levels=grey_levels) - images
        close(change.square().mean((1, 2, 3)).sqrt(), torch.full((N,), grey_levels / 255, dtype=torch.float64))


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_image_without_a_direction_stays_where_it_is(value):
    images, direction = middle(), torch.ones(N, *SHAPE, dtype=torch.float64)
    direction[2] = 0.0
    direction[2, 0, 0, 0] = value
    moved = move(images, direction, grey_levels=1.0)
    assert torch.equal(moved[2], images[2])
    close(moved[3], images[3] + 1 / 255)


def test_tiny_float32_gradient_keeps_its_direction():
    images, direction = middle().float(), torch.randn(N, *SHAPE) * 1e-30
    moved = move(images, direction, grey_levels=1.0)
    expected = reference.perturbed(images.double(), direction.double())
    torch.testing.assert_close(moved.double(), expected, rtol=0, atol=1e-6)


def test_moved_images_stay_in_the_unit_range():
    images = torch.tensor([0.0, 1.0, 0.5, 0.001], dtype=torch.float64).view(1, 1, 2, 2)
    direction = torch.tensor([-1.0, 1.0, 1.0, -1.0], dtype=torch.float64).view(1, 1, 2, 2)
    expected = torch.tensor([0.0, 1.0, 0.5 + 1 / 255, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    close(move(images, direction, grey_levels=1.0), expected)


def test_pair_is_uniform_over_ordered_pairs_of_different_members():
    generator = torch.Generator().manual_seed(0)
    draws = 6000
    counts = Counter(draw_pair(4, generator) for _ in range(draws))
    assert set(counts) == set(itertools.permutations(range(4), 2))
    expected = draws / 12
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 31.3  # the 0.999 quantile with 11 degrees of freedom


@pytest.mark.parametrize("kind", ["ods", "tdiv", "tdiv_sdiv"])
@pytest.mark.parametrize("training", [True, False])
def test_perturbation_leaves_no_trace_on_the_networks(kind, training):
    network = randomise(to_batch_ensemble(small_network(0), M), 1).train(training)
    teachers = TeacherEnsemble(plain_teachers())
    before = {key: value.clone() for key, value in (network.state_dict() | teachers.state_dict()).items()}
    images = some_images()
    moved = perturb(
        images, kind, teachers=teachers, student=network, grey_levels=1.0, generator=torch.Generator().manual_seed(0)
    )
    assert not moved.requires_grad
    assert not images.requires_grad
    assert [module.training for module in network.modules()] == [training] * len(list(network.modules()))
    assert not any(module.training for module in teachers.modules())
    after = network.state_dict() | teachers.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(p.grad is None for p in [*network.parameters(), *teachers.parameters()])
    assert network(images.repeat(M, 1, 1, 1)).shape == (M * N, K), "members are still selected"


def test_student_is_back_in_train_mode_when_the_perturbation_fails():
    network = to_batch_ensemble(small_network(0), M).train()
    with pytest.raises(RuntimeError):
        perturb(
            torch.rand(2, 1, 10, 10, dtype=torch.float64).repeat(1, 2, 1, 1),
            "tdiv_sdiv",
            teachers=TeacherEnsemble(plain_teachers()),
            student=network,
            grey_levels=1.0,
            generator=torch.Generator().manual_seed(0),
        )
    assert network.training


def test_latent_be_loss_is_one_to_one():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn((2, M, N, K), generator=generator, dtype=torch.float64)
    close(
        latent_be_loss(student, teacher, temperature=2.5),
        reference.distillation_loss(student, teacher, 2.5),
    )


def test_kd_target_is_the_mean_of_tempered_probabilities():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn((1, N, K), generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn((M, N, K), generator=generator, dtype=torch.float64)
    total = 0.0
    for n in range(N):
        exponentials = (teacher[:, n] / 4).exp()
        target = (exponentials / exponentials.sum(-1, keepdim=True)).mean(0)
        total -= float((target * reference.log_softmax(student[0, n] / 4)).sum())
    assert float(kd_loss(student, teacher, temperature=4.0)) == pytest.approx(16 * total / N, abs=1e-12)


def test_label_loss_is_the_mean_over_members_and_images():
    logits = torch.randn((M, N, K), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_hand = [-reference.log_softmax(logits[m, n])[some_labels()[n]] for m in range(M) for n in range(N)]
    close(label_loss(logits, some_labels()), torch.stack(by_hand).mean())


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_kd_student_mixes_labels_and_distillation_by_alpha(alpha):
    teachers, network = plain_teachers(), small_network(0).train()
    section = StudentSection(method="kd", alpha=alpha, temperature=3.0)
    images = some_images()
    learn = student_step(section, TeacherEnsemble(teachers), training=TrainingSection())
    loss = joint(learn.losses(network, network, batch_of(images, torch.Generator())))
    student = reference.forward(
        reference.network_from_state(small_network(0).state_dict(), 1), images, train=True
    ).detach()
    targets = torch.stack(
        [reference.log_softmax(teacher.eval()(images).detach() / 3).exp() for teacher in teachers]
    ).mean(0)
    distillation = 9 * -(targets * reference.log_softmax(student[0] / 3)).sum(-1).mean()
    ce = -reference.log_softmax(student[0])[range(N), some_labels()].mean()
    close(loss.detach(), (1 - alpha) * ce + alpha * distillation)


def test_labels_are_not_used_at_alpha_one():
    network = to_batch_ensemble(small_network(0), M).train()
    section, teachers = StudentSection(perturbation="tdiv"), TeacherEnsemble(plain_teachers())
    learn = student_step(section, teachers, training=TrainingSection())
    generator = torch.Generator().manual_seed(0)
    batch = Batch(some_images(), torch.full((N,), 10**6), generator, slice(None), N)  # no such class
    assert joint(learn.losses(network, network, batch)).isfinite()


def test_teachers_stay_frozen_and_in_eval_mode():
    ensemble = TeacherEnsemble([small_network(m).train() for m in range(M)])
    nn.ModuleDict({"teachers": ensemble}).train()
    assert not any(module.training for module in ensemble.modules())
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    images = some_images()
    expected = torch.cat(
        [
            reference.forward(reference.network_from_state(teacher.state_dict(), 1), images, train=False)
            for teacher in ensemble.members
        ]
    )
    close(ensemble(images), expected)
