"""`answers: split`: each image goes to one teacher and to its member, at the same expected gradient."""

import itertools
import math
from collections import Counter

import pytest
import torch
from command_line import edc
from pydantic import ValidationError
from reference import member_state
from small_networks import randomise, small_network
from torch import Tensor, nn

from edc.errors import RecipeError
from edc.method.batch_ensemble import member_logits, select_members, to_batch_ensemble
from edc.method.perturb import draw_others, perturb
from edc.method.step import Batch, StudentStep, draw_owners
from edc.recipe import Recipe, StudentSection
from edc.recipe.training_section import TrainingSection
from edc.runs.cost import units_per_step
from edc.runs.distill import _require_rows_for_all

M, K = 3, 5


def frozen_norms(network: nn.Module) -> nn.Module:
    """A batch whose statistics are not taken: only then is the loss a sum over images."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return network


def student_of(method: str) -> nn.Module:
    plain = small_network(0)
    return frozen_norms(randomise(to_batch_ensemble(plain, M), 1) if method == "latent_be" else plain)


def batch_of(num_rows: int, *, rows: slice = slice(None), seed: int = 3) -> Batch:
    images = torch.rand((num_rows, 3, 10, 10), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(num_rows) % K
    return Batch(images[rows], labels[rows], torch.Generator().manual_seed(seed), rows, num_rows)


def gradient_of(step: StudentStep, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    losses = list_of_backward(step, network, batch)
    for loss in losses:
        total += loss
    return total, {name: p.grad.clone() for name, p in network.named_parameters()}


def list_of_backward(step: StudentStep, network: nn.Module, batch: Batch) -> list[Tensor]:
    done = []
    for loss in step.losses(network, network, batch):
        loss.backward()
        done.append(loss.detach())
    assert len(done) == step.num_parts(network)
    return done


def teachers() -> list[nn.Module]:
    return [small_network(10 + m).eval().requires_grad_(False) for m in range(M)]


@pytest.mark.parametrize("alpha", [1.0, 0.6])
@pytest.mark.parametrize(
    ("method", "form", "num_rows"),
    [
        ("kd", "joint", 3),
        ("kd", "joint", 2),
        ("latent_be", "joint", 3),
        ("latent_be", "joint", 2),
        ("latent_be", "sequential", 3),  # where a member has no row it would have no pass: refused before a run
    ],
)
def test_mean_gradient_over_all_divisions_is_that_of_all(method, form, alpha, num_rows, monkeypatch):
    """All 6 ways to give 3 images to 3 teachers; and 2 images, where one teacher has none of them."""
    network = student_of(method)
    batch = batch_of(num_rows)
    common = {"teachers": teachers(), "method": method, "alpha": alpha}
    expected_loss, expected = gradient_of(StudentStep(**common), network, batch)
    divisions = sorted({order[:num_rows] for order in itertools.permutations(range(M))})
    mean_loss, mean = torch.zeros((), dtype=torch.float64), Counter()
    for owners in divisions:
        monkeypatch.setattr("edc.method.step.draw_owners", lambda *_, owners=owners: torch.tensor(owners))
        loss, gradient = gradient_of(StudentStep(**common, answers="split", form=form), network, batch)
        mean_loss += loss / len(divisions)
        for name, value in gradient.items():
            mean[name] = mean[name] + value / len(divisions)
    torch.testing.assert_close(mean_loss, expected_loss, rtol=0, atol=1e-10)
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-10)


def test_each_image_is_answered_by_its_teacher_and_learned_by_its_member():
    network = student_of("latent_be")
    ensemble, batch = teachers(), batch_of(7)
    owners = draw_owners(7, M, torch.Generator().manual_seed(3))
    all_logits, all_targets = member_logits(network, batch.images), torch.stack([t(batch.images) for t in ensemble])
    expected = torch.zeros((), dtype=torch.float64)
    for n, m in enumerate(owners.tolist()):
        target = (all_targets[m, n] / 4).softmax(-1)
        expected += 16 * -(target * (all_logits[m, n] / 4).log_softmax(-1)).sum() / 7
    (loss,) = StudentStep(ensemble, answers="split").losses(network, network, batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["activation", "weight"])
def test_members_may_have_different_numbers_of_rows(form):
    network = randomise(to_batch_ensemble(small_network(0), M, form=form), 1).eval()
    images = batch_of(6).images
    every = member_logits(network, images)
    with select_members(network, None, rows=(3, 1, 2)):
        found = network(images)
    torch.testing.assert_close(found, torch.cat([every[0, :3], every[1, 3:4], every[2, 4:]]), rtol=0, atol=1e-12)
    with select_members(network, (2, 0), rows=(1, 5)):
        found = network(images)
    torch.testing.assert_close(found, torch.cat([every[2, :1], every[0, 1:]]), rtol=0, atol=1e-12)
    assert network(images.repeat(M, 1, 1, 1)).shape == (18, K), "rows are still set"


def test_division_is_even_and_uniform():
    generator = torch.Generator().manual_seed(0)
    counts = Counter()
    for _ in range(2000):
        owners = draw_owners(10, 4, generator)
        assert sorted(owners[:4].tolist()) == sorted(owners[4:8].tolist()) == [0, 1, 2, 3]
        assert owners[8] != owners[9]
        counts.update(enumerate(owners.tolist()))
    expected = 2000 / 4
    chi_square = sum((counts[row, m] - expected) ** 2 / expected for row in range(10) for m in range(4))
    assert chi_square < 59.7  # the 0.999 quantile with 30 degrees of freedom


@pytest.mark.parametrize("pair", ["step", "row"])
def test_two_halves_of_a_batch_have_the_division_of_the_whole(pair):
    network, ensemble = student_of("latent_be"), teachers()
    step = StudentStep(ensemble, answers="split", perturbation="tdiv_sdiv", pair=pair)
    loss, whole = gradient_of(step, network, batch_of(12))
    losses, halves = zip(
        *(gradient_of(step, network, batch_of(12, rows=rows)) for rows in (slice(0, 6), slice(6, 12))), strict=True
    )
    torch.testing.assert_close(sum(losses) / 2, loss, rtol=0, atol=1e-10)
    for name, value in whole.items():
        torch.testing.assert_close(sum(half[name] for half in halves) / 2, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("method", "perturbation", "units"), [("kd", "none", 4), ("kd", "tdiv", 7)])
@pytest.mark.parametrize("ensemble_size", [2, 4, 8])
def test_cost_does_not_depend_on_the_number_of_teachers(method, perturbation, units, ensemble_size):
    for each in {method, "latent_be"}:
        section = StudentSection(method=each, perturbation=perturbation, answers="split")
        assert units_per_step(section, ensemble_size) == units
    assert units_per_step(StudentSection(answers="split", perturbation="tdiv_sdiv"), ensemble_size) == 10


# A pair of teachers for each row --------------------------------------------------------------------------------------


def drawn_pairs(num_rows: int, seed: int = 3) -> list[tuple[int, int]]:
    """The pair of each row, drawn as a step draws it: owners, then a shift for each block of M rows."""
    generator = torch.Generator().manual_seed(seed)
    owners = draw_owners(num_rows, M, generator)
    shifts = torch.randint(1, M, (-(-num_rows // M),), generator=generator)
    return [(i, (i + int(shifts[n // M])) % M) for n, i in enumerate(owners.tolist())]


@pytest.mark.parametrize("kind", ["tdiv", "tdiv_sdiv"])
def test_with_pair_row_each_image_moves_to_where_its_own_teacher_is_surprised_by_another(kind):
    """Image by image: H of the pair, its gradient, one step of one grey level; members as plain networks."""
    network, ensemble = student_of("latent_be"), teachers()
    members = []
    for m in range(M):
        members.append(small_network(99).eval())
        members[m].load_state_dict(member_state(network, m))
    generator = torch.Generator().manual_seed(3)
    owners, images = draw_owners(7, M, generator), batch_of(7).images * 0.5 + 0.25
    found = perturb(images, kind, teachers=ensemble, student=network, generator=generator, owners=owners)
    pairs = drawn_pairs(7)
    assert len(set(pairs)) > M, "all rows have the shift of one pair"
    for n, (i, j) in enumerate(pairs):
        x = images[n : n + 1].clone().requires_grad_()
        networks = [ensemble] + [members] * (kind == "tdiv_sdiv")
        surprises = [-(each[j](x).softmax(-1).detach() * each[i](x).log_softmax(-1)).sum() for each in networks]
        (gradient,) = torch.autograd.grad(surprises[0] - sum(surprises[1:]), x)
        expected = x[0] + math.sqrt(gradient.numel()) / 255 * gradient[0] / gradient.norm()
        torch.testing.assert_close(found[n], expected.detach(), rtol=0, atol=1e-10)


def test_with_pair_row_the_moved_image_is_answered_by_its_own_teacher():
    network, ensemble, batch = student_of("latent_be"), teachers(), batch_of(7)
    generator = torch.Generator().manual_seed(3)
    owners = draw_owners(7, M, generator)
    moved = perturb(batch.images, "tdiv", teachers=ensemble, generator=generator, owners=owners)
    logits, targets = member_logits(network, moved), torch.stack([t(moved) for t in ensemble])
    expected = torch.zeros((), dtype=torch.float64)
    for n, m in enumerate(owners.tolist()):
        target = (targets[m, n] / 4).softmax(-1)
        expected += 16 * -(target * (logits[m, n] / 4).log_softmax(-1)).sum() / 7
    step = StudentStep(ensemble, answers="split", perturbation="tdiv", pair="row")
    (loss,) = step.losses(network, network, batch)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)


def test_the_other_teacher_of_a_row_is_uniform_and_each_has_as_many_rows_in_a_block():
    generator, counts = torch.Generator().manual_seed(0), Counter()
    for _ in range(2000):
        owners = draw_owners(10, 4, generator)
        others = draw_others(owners, 4, generator, rows=slice(None), num_rows=10)
        assert sorted(others[:4].tolist()) == sorted(others[4:8].tolist()) == [0, 1, 2, 3]
        counts.update(zip(range(10), owners.tolist(), others.tolist(), strict=True))
    assert all(i != j for _, i, j in counts)
    expected = 2000 / 12
    chi_square = sum(
        (counts[row, i, j] - expected) ** 2 / expected
        for row in range(10)
        for i, j in itertools.permutations(range(4), 2)
    )
    assert chi_square < 160  # the 0.9995 quantile with 110 degrees of freedom is 163


@pytest.mark.parametrize("fields", [{}, {"perturbation": "ods", "answers": "split"}, {"perturbation": "tdiv_sdiv"}])
def test_pair_row_without_a_teacher_of_its_own_or_without_a_pair_is_refused(fields):
    with pytest.raises(ValidationError, match="pair: found 'row', which has no effect with answers"):
        StudentSection(pair="row", **fields)


def test_default_pair_makes_no_other_run_than_before_the_field_existed_and_row_costs_the_same():
    document = {"name": "r", "data": {"kind": "digits"}, "network": "wrn10x1"}
    old, step, row = (
        Recipe.model_validate(document | {"students": {"a": {"answers": "split", "perturbation": "tdiv", **more}}})
        for more in ({}, {"pair": "step"}, {"pair": "row"})
    )
    assert "pair" not in step.identity()["students"]["a"]
    assert old.digest() == step.digest() != row.digest()
    assert units_per_step(row.students["a"], 4) == units_per_step(step.students["a"], 4) == 7


def test_default_makes_no_other_run_than_before_the_field_existed():
    document = {"name": "r", "data": {"kind": "digits"}, "network": "wrn10x1", "students": {"a": {}}}
    plain, split = (
        Recipe.model_validate(document | {"students": {"a": {"answers": answers}}}) for answers in ("all", "split")
    )
    assert "answers" not in plain.identity()["students"]["a"]
    assert plain.digest() == Recipe.model_validate(document).digest() != split.digest()
    assert math.isclose(units_per_step(split.students["a"], 4), 4)


def test_batch_too_small_for_its_teachers_is_refused_before_anything_trains(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "name: r\ndata: {kind: synthetic, image_size: 8, num_images: 64, test: 40}\nnetwork: wrn10x1\n"
        "training: {epochs: 2, warmup_epochs: 1, batch_size: 7}\nteachers: {ensemble_size: 4}\n"
        "students: {be: {answers: split}}\n"
    )
    called = edc("distill", "recipe.yaml", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert "students.be.answers: 'split' divides each batch among 4 teachers, and 7 images" in called.stderr
    assert "one of them may get 1, and 2 are needed. Multiples of 4 from 8 on are enough" in called.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("batch", "micro", "num_processes", "num_teachers"),
    [(14, 7, 1, 3), (14, None, 2, 3), (12, 6, 1, 3), (12, None, 2, 3), (20, 10, 1, 4), (20, 8, 1, 4), (16, None, 2, 4)],
)
def test_a_part_of_a_batch_is_refused_exactly_if_a_teacher_may_have_fewer_than_two_of_its_rows(
    batch, micro, num_processes, num_teachers
):
    """A batch of 14 in parts of 7 passed, because 7 >= 2 * 3: rows 7 to 13 have one whole block of three, 9 to 11."""
    training = TrainingSection(batch_size=batch, micro_batch_size=micro)
    fewest = batch
    for seed in range(300):
        owners = draw_owners(batch, num_teachers, torch.Generator().manual_seed(seed))
        for start, end in training.parts(num_processes):
            fewest = min(fewest, int(torch.bincount(owners[start:end], minlength=num_teachers).min()))
    students = {"be": {"answers": "split"}}
    document = {"name": "r", "data": {"kind": "digits"}, "network": "wrn10x1", "students": students}
    document |= {"training": training.model_dump(mode="json"), "teachers": {"ensemble_size": num_teachers}}
    recipe = Recipe.model_validate(document)
    if fewest >= 2:
        _require_rows_for_all(recipe, "be", num_processes=num_processes)
    else:
        with pytest.raises(RecipeError, match=f"may get {fewest}, and 2 are needed"):
            _require_rows_for_all(recipe, "be", num_processes=num_processes)
