"""Averages over time: the moving average of a student, and the choice on validation images of what is deployed."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from accelerate import Accelerator
from command_line import Called, edc
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_cases import STUDENTS, TRAINING, run_case

from edc.data import load_data, train_batches
from edc.errors import CheckpointError, Interrupted, RecipeError, RunError
from edc.method.batch_ensemble import fold
from edc.recipe import Recipe, StudentSection
from edc.recipe.loading import load_recipe
from edc.runs.choice import CHOSEN, Candidate, best_of, candidates_of, kept_choice
from edc.runs.distill import distill, require_trainable
from edc.runs.folder import RunFolder
from edc.runs.networks import load_subject
from edc.runs.student import build_plain, build_student, deployable, load_student
from edc.seeding import derive_seed
from edc.subject import Subject
from edc.train.average import RunningAverage, decay_of
from edc.train.checkpoint import Position, load_checkpoint, save_checkpoint, save_state

VIEWS = "views, float64"
DECAY = 0.8  # of the case

# The average ----------------------------------------------------------------------------------------------------------


def test_average_is_the_closed_form_over_all_steps(tmp_path, accelerator, one_thread):
    """d^(t-1) network_1 + (1 - d) sum_{s=2..t} d^(t-s) network_s, of the members' parameters too."""
    training = TRAINING.model_copy(update={"epochs": 2, "validate_every": 2})
    seen: list[list[Tensor]] = []
    names: list[str] = []

    def after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        seen.append([p.detach().clone() for group in optimizer.param_groups for p in group["params"]])

    hook = register_optimizer_step_post_hook(after_step)
    try:
        run_case(
            VIEWS,
            tmp_path,
            accelerator,
            training=training,
            on_validation=lambda trained: names.__setitem__(slice(None), [n for n, _ in trained.named_parameters()]),
        )
    finally:
        hook.remove()
    averaged = load_file(tmp_path / "ema.safetensors")
    assert len(seen) == 8
    assert any(name.endswith("rho") for name in names)
    for i, name in enumerate(names):
        expected = DECAY**7 * seen[0][i]
        for step in range(2, 9):
            expected = expected + (1 - DECAY) * DECAY ** (8 - step) * seen[step - 1][i]
        torch.testing.assert_close(averaged[name], expected, rtol=0, atol=1e-10)
        assert not torch.equal(seen[0][i], seen[7][i]), name


def test_buffers_are_averaged_too_and_counters_stay_whole():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    average, seen = RunningAverage(network, decay=0.75), []
    for seed in range(4):
        network(torch.randn(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        average.update(network)
        seen.append(network[1].running_var.clone())
    expected = seen[0]
    for each in seen[1:]:
        expected = 0.75 * expected + 0.25 * each
    found = average.network.state_dict()
    torch.testing.assert_close(found["1.running_var"], expected, rtol=0, atol=1e-12)
    assert found["1.num_batches_tracked"].dtype == torch.int64
    assert not torch.equal(found["1.running_var"], network[1].running_var)


def test_average_of_the_best_epoch_is_kept_the_later_of_equals():
    network = nn.Linear(1, 1, bias=False)
    average = RunningAverage(network, decay=0.5)
    for weight, nll in ((1.0, 0.5), (2.0, 0.3), (3.0, 0.3), (4.0, 0.4)):
        with torch.no_grad():
            network.weight.fill_(weight)
        average.update(network)
        average.keep_if_best(nll)
    assert float(average.best_state["weight"]) == ((1 + 2) / 2 + 3) / 2
    assert average.best_score == 0.3


def test_auto_averages_over_three_percent_of_the_steps_and_over_two_at_least():
    assert decay_of("auto", num_steps=10_980) == pytest.approx(0.997, abs=1e-4)
    assert 1 / (1 - decay_of("auto", num_steps=200_000)) == pytest.approx(6_000)
    assert decay_of("auto", num_steps=8) == 0.5
    assert decay_of(0.9, num_steps=200_000) == 0.9


def test_a_training_with_auto_is_bit_equal_to_one_with_that_decay(tmp_path, accelerator, one_thread, monkeypatch):
    """Its 80 steps, 20 epochs of 4, are averaged over 2.4: extra images and epochs count, and no other field does."""
    training = TRAINING.model_copy(update={"epochs": 20, "validate_every": 20})
    section = STUDENTS["views"]
    for name, ema in (("auto", "auto"), ("given", 1 - 1 / 2.4)):
        monkeypatch.setitem(STUDENTS, "views", section.model_copy(update={"ema": ema}))
        run_case(VIEWS, tmp_path / name, accelerator, training=training)
    auto, given = (load_file(tmp_path / name / "ema.safetensors") for name in ("auto", "given"))
    assert all(torch.equal(auto[key], given[key]) for key in given)


def test_checkpoint_holds_the_average_and_one_without_it_says_so(tmp_path):
    network = nn.Linear(2, 2)
    optimizer, average = torch.optim.SGD(network.parameters(), 0.1), RunningAverage(network, decay=0.9)
    for _ in range(2):
        average.update(network)
        average.keep_if_best(0.5)
        nn.init.normal_(network.weight)
    save_checkpoint(tmp_path / "c.pt", Position(), network, optimizer, average)
    other = RunningAverage(nn.Linear(2, 2), decay=0.9)
    load_checkpoint(tmp_path / "c.pt", network, optimizer, other)
    for one in (average, other):
        one.update(network)
    assert other.best_score == 0.5
    assert torch.equal(other.best_state["weight"], average.best_state["weight"])
    assert torch.equal(other.network.weight, average.network.weight)
    save_checkpoint(tmp_path / "c.pt", Position(), network, optimizer)
    with pytest.raises(CheckpointError, match="cannot continue from this checkpoint"):
        load_checkpoint(tmp_path / "c.pt", network, optimizer, other)


# The choice -----------------------------------------------------------------------------------------------------------


def labels_of(candidates: list[Candidate]) -> list[str]:
    return [candidate.label for candidate in candidates]


def test_candidates_are_those_that_the_recipe_makes():
    trained, again, ema, ema_again = (
        "as trained",
        "as trained, BatchNorm re-estimated",
        "moving average",
        "moving average, BatchNorm re-estimated",
    )
    averaged, chosen = StudentSection(ema=0.9), StudentSection(choose="validation")
    assert labels_of(candidates_of(averaged, has_batchnorm=True)) == [trained, again, ema, ema_again]
    assert labels_of(candidates_of(averaged, has_batchnorm=False)) == [trained, ema]
    assert labels_of(candidates_of(chosen, has_batchnorm=True)) == [trained, again]
    always = StudentSection(ema=0.9, reestimate_batchnorm=True)
    assert labels_of(candidates_of(always, has_batchnorm=True)) == [again, ema_again]
    assert labels_of(candidates_of(StudentSection(), has_batchnorm=True)) == [trained, again], "members are folded"
    alone = ({"method": "kd"}, {"choose": "trained"}, {"reestimate_batchnorm": True})
    sections = [StudentSection(**fields) for fields in alone]
    assert [labels_of(candidates_of(each, has_batchnorm=True)) for each in sections] == [[trained], [trained], [again]]
    assert labels_of(candidates_of(StudentSection(), has_batchnorm=False)) == [trained]


@pytest.mark.parametrize(
    ("by", "scores", "best"),
    [
        ("calibrated_nll", [(0.6, 1.2), (0.6, 1.1), (0.5, 1.0)], 2),
        ("calibrated_nll", [(0.5, 1.1), (0.6, 1.1), (0.5, 1.2)], 1),
        ("calibrated_nll", [(0.5, 1.2), (0.6, 1.1), (0.6, 1.1)], 1),
        ("calibrated_nll", [(0.99, 0.01), (1.0, 0.05), (1.0, 0.04)], 2),
        ("calibrated_nll", [(0.5, float("nan")), (0.5, 1.2), (0.6, 1.3)], 1),
        ("accuracy", [(0.5, 0.1), (0.6, 0.9), (0.6, 0.8)], 2),
        ("accuracy", [(0.5, 0.1), (0.6, 0.9), (0.6, 0.9)], 1),
        ("accuracy", [(0.7, 9.0), (0.6, 0.9), (0.6, 0.8)], 0),
    ],
)
def test_the_measure_chooses_then_the_other_then_the_first(by, scores, best):
    kinds = [("trained", "trained"), ("trained", "reestimated"), ("ema", "trained")]
    found = [
        # The NLL before calibration has no part in it: here its order is the opposite one.
        Candidate(weights=w, batchnorm=n, validation_acc=acc, validation_nll=-nll, validation_calibrated_nll=nll)
        for (w, n), (acc, nll) in zip(kinds, scores, strict=True)
    ]
    assert best_of(found, by=by) == found[best]


def test_a_choice_of_an_older_edc_is_kept(tmp_path):
    """It was by accuracy, and has no calibrated NLL."""
    old = {"weights": "ema", "batchnorm": "trained", "validation_acc": 0.5, "validation_nll": 1.5}
    (tmp_path / CHOSEN).write_text(json.dumps({"chosen": old, "candidates": [old]}))
    choice = kept_choice(tmp_path)
    assert choice is not None
    assert (choice.chosen.label, choice.chosen.validation_calibrated_nll) == ("moving average", None)


RECIPE = """
name: r
data: {kind: synthetic, num_images: 96, image_size: 8, num_classes: 3, validation: 60, test: 40, crop_padding: 1}
network: cifar_resnet8
training: {epochs: 3, warmup_epochs: 1, batch_size: 16, learning_rate: 0.1}
teachers: {ensemble_size: 2}
students:
  kd: {method: kd, views: [cutmix], choose: validation}
  be: {views: [randaugment, mixup], perturbation: tdiv_sdiv, answers: split, ema: 0.9}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Called]:
    """A folder in which the run and its artifact have been made."""
    folder = tmp_path_factory.mktemp("chosen")
    (folder / "recipe.yaml").write_text(RECIPE)
    done = edc("distill", "recipe.yaml", "--device", "cpu", "--threads", "1", "--json", cwd=folder)
    assert done.exit_code == 0, done.stderr
    exported = edc("export", "--precision", "fp32", "--max-batch", "4", cwd=folder)
    assert exported.exit_code == 0, exported.stderr
    return folder, done


def reestimated(network: nn.Module, recipe: Recipe) -> nn.Module:
    """Means over batches of clean training images, by hand: a cumulative mean is what momentum None takes."""
    data = load_data(recipe.data)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seed = derive_seed("student", recipe.seed, "batchnorm")
    with torch.no_grad():
        for pixels, _ in train_batches(data.train, recipe.data, batch_size=16, seed=seed, epoch=-1):
            network(pixels.float() / 255)
    return network.eval()


def candidate_by_hand(recipe: Recipe, name: str, folder: Path, candidate: Candidate) -> nn.Module:
    data = load_data(recipe.data)
    network = build_student(recipe, name, data, fresh=False)
    network.load_state_dict(load_file(folder / f"{candidate.weights}.safetensors"))
    network = network if name == "kd" else fold(network, build_plain(recipe, data, fresh=False))
    return reestimated(network, recipe) if candidate.batchnorm == "reestimated" else network.eval()


@pytest.mark.parametrize(("name", "num_candidates"), [("kd", 2), ("be", 4)])
def test_the_choice_is_the_best_on_validation_images_and_is_what_is_evaluated(made, name, num_candidates):
    folder, done = made
    run = RunFolder(folder / "runs/r")
    recipe, choice = run.recipe(), kept_choice(run.student_path(name))
    data = load_data(recipe.data)
    assert choice is not None
    assert done.document["chosen"][name] == choice.model_dump(mode="json")
    assert len(choice.candidates) == num_candidates
    networks = {}
    for candidate in choice.candidates:
        network = networks[candidate] = candidate_by_hand(recipe, name, run.student_path(name), candidate)
        with torch.no_grad():
            logits = network(data.validation.images.float() / 255).double()
        assert candidate.validation_acc == float((logits.argmax(1) == data.validation.labels).double().mean())
        nll = float(nn.functional.cross_entropy(logits, data.validation.labels))
        assert candidate.validation_nll == pytest.approx(nll, rel=1e-4)
        calibrated = minimize_scalar(
            lambda t, z=logits: float(nn.functional.cross_entropy(z / t, data.validation.labels)),
            bounds=(0.01, 100),
            method="bounded",
        )
        assert candidate.validation_calibrated_nll == pytest.approx(calibrated.fun, rel=1e-4)
    best = min(choice.candidates, key=lambda each: each.validation_calibrated_nll)
    assert choice.chosen == best
    (row,) = [row for row in done.document["rows"] if row["subject"] == name]
    with torch.no_grad():
        logits = networks[best](data.test.images.float() / 255).double()
    assert row["raw"]["nll"] == pytest.approx(float(nn.functional.cross_entropy(logits, data.test.labels)), rel=1e-4)
    for norm_name, value in networks[best].state_dict().items():
        if "running" in norm_name:
            saved = load_student(recipe, name, data, run=run).state_dict()[norm_name]
            torch.testing.assert_close(saved, value, rtol=1e-4, atol=1e-5)


def test_members_keep_the_statistics_that_they_were_trained_with_where_their_fold_got_others(made):
    folder, done = made
    run = RunFolder(folder / "runs/r")
    recipe = run.recipe()
    data, student = load_data(recipe.data), run.student_path("be")
    choice = kept_choice(student)
    assert choice.chosen.batchnorm == "reestimated", "the test would pass without other statistics"
    members = build_student(recipe, "be", data, fresh=False).eval()
    members.load_state_dict(load_file(student / f"{choice.chosen.weights}.safetensors"))
    images = data.test.images.float() / 255
    with torch.no_grad():
        logits = members(images.repeat(2, 1, 1, 1)).view(2, len(images), -1).double()
    nll = float(nn.functional.nll_loss(logits.softmax(2).mean(0).log(), data.test.labels))
    (row,) = [row for row in done.document["rows"] if row["subject"] == "be (members)"]
    assert row["raw"]["nll"] == pytest.approx(nll, rel=1e-4)
    (loaded,) = load_subject(run.path, Subject("members", name="be")).networks
    with torch.no_grad():
        torch.testing.assert_close(loaded(images.repeat(2, 1, 1, 1)).view_as(logits).double(), logits)


def test_what_was_chosen_is_exported(made):
    folder, done = made
    run = RunFolder(folder / "runs/r")
    recipe = run.recipe()
    assert recipe.deploy == "be"
    chosen = Candidate.model_validate(done.document["chosen"]["be"]["chosen"])
    assert chosen.label != "as trained", "the test would pass without a choice"
    data = load_data(recipe.data)
    images = data.test.images[:4].float() / 255
    (row,) = [row for row in done.document["rows"] if row["subject"] == "be"]
    session = onnxruntime.InferenceSession(next((folder / "export/r").glob("student*.onnx")))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    others = {}
    for candidate in kept_choice(run.student_path("be")).candidates:
        with torch.no_grad():
            others[candidate.label] = candidate_by_hand(recipe, "be", run.student_path("be"), candidate)(images)
    expected = (others.pop(chosen.label) / row["calibration_temperature"]).log_softmax(1).numpy()
    found = torch.from_numpy(logits).log_softmax(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    for label, other in others.items():
        tempered = (other / row["calibration_temperature"]).log_softmax(1).numpy()
        assert np.abs(tempered - found).max() > 1e-3, label


def test_show_says_what_was_chosen(made):
    folder, done = made
    shown = edc("show", "runs/r", cwd=folder)
    label = Candidate.model_validate(done.document["chosen"]["be"]["chosen"]).label
    assert f"be: chosen on validation images, {label}" in shown.stdout


def test_run_stopped_within_the_student_and_before_its_choice_ends_bit_equal(made, tmp_path, one_thread):
    folder, done = made
    shutil.copytree(folder / "runs/teachers", tmp_path / "runs/teachers")
    recipe, run = load_recipe(folder / "recipe.yaml"), RunFolder(tmp_path / "runs/r")
    accelerator, steps = Accelerator(cpu=True), []

    def after_step(*_: object) -> None:
        steps.append(1)
        if len(steps) in (4, 24):  # 6 steps an epoch, 18 of each student
            signal.raise_signal(signal.SIGTERM)

    hook = register_optimizer_step_post_hook(after_step)
    try:
        for _ in range(2):
            with pytest.raises(Interrupted):
                distill(recipe, run=run, accelerator=accelerator)
    finally:
        hook.remove()
    finished = distill(recipe, run=run, accelerator=accelerator)
    assert finished["rows"] == done.document["rows"]
    assert finished["chosen"] == done.document["chosen"]
    # As if it had been killed between the end of the training and the choice.
    (run.student_path("be") / "weights.safetensors").unlink()
    (run.student_path("be") / "chosen.json").unlink()
    run.summary_path.unlink()
    assert distill(recipe, run=run, accelerator=accelerator)["rows"] == done.document["rows"]
    files = sorted(path.relative_to(folder) for path in folder.glob("runs/r/students/*/*.safetensors"))
    assert [path.name for path in files] == [
        "ema.safetensors",
        "trained.safetensors",
        "weights.safetensors",
        "trained.safetensors",
        "weights.safetensors",
    ]
    for path in files:
        found, wanted = load_file(tmp_path / path), load_file(folder / path)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items()), path
    for name in ("kd", "be"):
        texts = [(at / f"runs/r/students/{name}/metrics.jsonl").read_text() for at in (tmp_path, folder)]
        lines = [[json.loads(line) | {"seconds": 0} for line in text.splitlines()] for text in texts]
        for row, wanted_row in zip(*lines, strict=True):
            assert row.pop("loss") == pytest.approx(wanted_row.pop("loss"), rel=1e-12)
            assert row == wanted_row


def test_average_that_is_better_is_loaded_folded_and_evaluated(made, tmp_path, accelerator):
    """The student as trained is spoiled before the choice: its classifier says nothing."""
    folder, _ = made
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = RunFolder(tmp_path / "runs/r")
    student, recipe, data = run.student_path("be"), run.recipe(), load_data(run.recipe().data)
    spoiled = load_file(student / "trained.safetensors")
    save_state(student / "trained.safetensors", {k: v * 0 if "classifier" in k else v for k, v in spoiled.items()})
    for path in (run.summary_path, student / "chosen.json", student / "weights.safetensors"):
        path.unlink()
    summary = distill(recipe, run=run, accelerator=accelerator)
    chosen = Candidate.model_validate(summary["chosen"]["be"]["chosen"])
    assert chosen.weights == "ema"
    loaded, average = load_student(recipe, "be", data, run=run).state_dict(), load_file(student / "ema.safetensors")
    for key, value in average.items():
        assert "running" in key or "tracked" in key or torch.equal(loaded[key], value), key
    images = data.test.images.float() / 255
    network = deployable(load_student(recipe, "be", data, run=run), recipe, "be", data, accelerator=accelerator)
    with torch.no_grad():
        found, expected = network(images), candidate_by_hand(recipe, "be", student, chosen)(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (row,) = [row for row in summary["rows"] if row["subject"] == "be"]
    assert row["raw"]["nll"] == pytest.approx(float(nn.functional.cross_entropy(expected, data.test.labels)), rel=1e-3)


def test_damaged_choice_says_what_to_do(tmp_path):
    (tmp_path / "chosen.json").write_text("{")
    with pytest.raises(RunError, match=r"chosen.json: damaged .*; remove it and weights.safetensors beside it"):
        kept_choice(tmp_path)


# Recipes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ema": 1.0}, "found 1.0; expected a decay per step between 0 and 1, such as 0.997, or auto"),
        ({"ema": 0.0}, "found 0.0; expected a decay"),
        ({"ema": False}, "found False; expected a decay"),
        ({"ema": "3%"}, "found '3%'; expected a decay"),
        ({"choose": "test"}, "'validation'"),
        ({"choose": "validation", "reestimate_batchnorm": True}, "choose: found 'validation', which has no effect"),
        ({"choose": "trained", "reestimate_batchnorm": True}, "choose: found 'trained', with which reestimate_batch"),
        ({"choose": "trained", "ema": 0.9}, "choose: found 'trained', with which ema has no effect"),
    ],
)
def test_averages_and_choices_that_make_no_sense_are_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        StudentSection(**fields)


@pytest.mark.parametrize(("written", "read"), [("9e-1", 0.9), (0.997, 0.997), ("auto", "auto"), (None, None)])
def test_decays_are_read_as_yaml_gives_them(written, read):
    assert StudentSection(ema=written).ema == read


def test_choice_without_batchnorm_or_average_is_refused(accelerator):
    document = {
        "name": "r",
        "data": {"kind": "synthetic", "image_size": 32, "num_images": 64, "num_classes": 3},
        "network": "timm/convnext_atto",
        "training": {"batch_size": 16},
        "students": {"kd": {"method": "kd", "choose": "validation"}},
    }
    recipe = Recipe.model_validate(document)
    with pytest.raises(RecipeError, match=r"students.kd.choose: .* has no effect: timm/convnext_atto has no BatchNorm"):
        require_trainable(recipe, load_data(recipe.data), accelerator=accelerator)


def test_fold_choice_is_of_the_statistics_that_are_deployed(tmp_path):
    """With `reestimate_batchnorm` it was of those of the training, and the exported network has others."""
    (tmp_path / "recipe.yaml").write_text(
        "name: r\ndata: {kind: synthetic, image_size: 8, num_images: 64, test: 40}\nnetwork: cifar_resnet8\n"
        "training: {epochs: 2, warmup_epochs: 1, batch_size: 16}\nteachers: {ensemble_size: 2}\n"
        "students: {be: {reestimate_batchnorm: true}}\n"
    )
    done = edc("distill", "recipe.yaml", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.exit_code == 0, done.stderr
    deployed = next(row for row in done.document["rows"] if row["kind"] == "student")
    fold = StudentSection().fold
    assert done.document["fold_choice"]["be"][fold] == pytest.approx(deployed["validation_nll"], rel=1e-6)
