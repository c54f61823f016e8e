"""What a dry run says of the teachers: figures by hand from their answers, cases, and what cannot be said yet."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from conftest import Workshop
from rich.console import Console
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from edc.cli.tables.advice import print_advice
from edc.data import load_training_data
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.runs.why.advice import FITTED_FROM, Advice, advice_of
from edc.teachers.ensemble import load_teachers
from edc.teachers.from_library import has_library_weights


def nlls(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The NLL of each image after the best temperature, found by another search."""

    def of(log_t: float) -> np.ndarray:
        scaled = log_probs / np.exp(log_t)
        return -(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))[np.arange(len(labels)), labels]

    grid = np.linspace(-3, 3, 601)
    best = grid[np.argmin([of(at).mean() for at in grid])]
    return of(minimize_scalar(lambda at: of(at).mean(), bracket=(best - 0.02, best, best + 0.02)).x)


def ensemble_nlls(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same of members (M, N, K): after the mean of their probabilities, or before it and after it, the better."""

    def mean_at(log_t: float) -> np.ndarray:
        return logsumexp(log_softmax(members / np.exp(log_t), -1), 0) - np.log(len(members))

    def of(log_t: float) -> float:
        return -mean_at(log_t)[np.arange(len(labels)), labels].mean()

    grid = np.linspace(-2.9, 2.9, 581)
    best = grid[np.argmin([of(at) for at in grid])]
    before = minimize_scalar(of, bounds=(best - 0.02, best + 0.02), method="bounded", options={"xatol": 1e-7}).x
    return min((nlls(mean_at(at), labels) for at in (0.0, before)), key=np.mean)


@pytest.fixture(scope="module")
def recipe(workshop: Workshop) -> Recipe:
    return RunFolder(workshop.run).recipe()


def test_figures_are_those_of_the_teachers_answers(workshop, recipe, accelerator):
    data, run = load_training_data(recipe.data), RunFolder(workshop.run)
    found = advice_of(recipe, data, run=run, accelerator=accelerator)
    assert isinstance(found, Advice)
    teachers = load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=accelerator)
    log_probs, labels = {}, {}
    for name, images in (("train", data.train), ("validation", data.validation)):
        with torch.no_grad():
            log_probs[name] = teachers(images.images.float() / 255).double().log_softmax(-1).numpy()
        labels[name] = images.labels.numpy()
    right = {name: log_probs[name].argmax(-1) == labels[name] for name in labels}
    ensemble = np.log(np.exp(log_probs["validation"]).mean(0))
    of_ensemble = ensemble_nlls(log_probs["validation"], labels["validation"])
    of_teachers = np.mean([nlls(each, labels["validation"]) for each in log_probs["validation"]], 0)
    gain = (ensemble.argmax(-1) == labels["validation"]) - right["validation"].mean(0)
    assert (found.num_teachers, found.num_train, found.num_validation) == (2, len(data.train), len(data.validation))
    assert found.train_acc == pytest.approx(right["train"].mean())
    assert found.validation_acc == pytest.approx(right["validation"].mean())
    assert found.ensemble_validation_acc - found.validation_acc == pytest.approx(gain.mean())
    assert found.calibrated_nll == pytest.approx(of_teachers.mean(), abs=1e-5)
    assert found.ensemble_calibrated_nll == pytest.approx(of_ensemble.mean(), abs=1e-5)
    for interval, values in ((found.gain_acc, gain), (found.gain_calibrated_nll, of_teachers - of_ensemble)):
        expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-4)
    assert found.case == ("fitted" if right["train"].mean() >= 0.95 else "not_fitted")


def test_of_teachers_that_are_not_there_nothing_is_said_and_nothing_is_trained(recipe, accelerator, tmp_path):
    data = load_training_data(recipe.data)
    said = advice_of(recipe, data, run=RunFolder(tmp_path / "run"), accelerator=accelerator)
    assert said == "0 of 2 teachers are trained"
    assert list(tmp_path.iterdir()) == []
    missing = tmp_path / "none.pt"
    own = {"checkpoints": [{"file": str(missing)}, {"file": str(missing)}]}
    of_files = Recipe.model_validate(recipe.model_dump(exclude={"teachers"}) | {"teachers": own})
    said = advice_of(of_files, data, run=RunFolder(tmp_path / "run"), accelerator=accelerator)
    assert isinstance(said, str)
    assert str(missing) in said


def test_weights_that_a_library_has_not_fetched_are_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert not has_library_weights("torchvision/resnet18")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/resnet18-f37072fd.pth").touch()
    assert has_library_weights("torchvision/resnet18")
    assert not has_library_weights("timm/resnet18")


def said_of(advice: Advice | str) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_advice(advice, console=console)
    return console.export_text()


def test_words_tell_the_cases_apart_and_claim_no_gain_that_may_be_none(workshop, recipe, accelerator):
    data = load_training_data(recipe.data)
    found = advice_of(recipe, data, run=RunFolder(workshop.run), accelerator=accelerator)
    assert isinstance(found, Advice)
    interval = dataclasses.replace(found.gain_acc, value=0.05, low=0.03, high=0.07)
    sure = dataclasses.replace(found, case="fitted", train_acc=0.97, gain_acc=interval, gain_calibrated_nll=interval)
    assert "The teachers have fitted their training images." in said_of(sure)
    assert "+5.0 (+3.0 to +7.0) points of accuracy and +0.050 (+0.030 to +0.070) nats" in said_of(sure)
    assert "cannot be told from none" not in said_of(sure)
    unsure = dataclasses.replace(sure, gain_acc=dataclasses.replace(interval, low=-0.01), case="not_fitted")
    assert "cannot be told from none" in said_of(unsure)
    assert "The teachers have not fitted their training images" in said_of(unsure)
    unlabelled = said_of(dataclasses.replace(sure, case="unknown", train_acc=None))
    assert "no labels" in unlabelled
    assert "training images and" not in unlabelled


def test_words_of_one_teacher_of_a_loss_and_of_teachers_that_others_trained(workshop, recipe, accelerator):
    data = load_training_data(recipe.data)
    found = advice_of(recipe, data, run=RunFolder(workshop.run), accelerator=accelerator)
    assert isinstance(found, Advice)
    one = said_of(dataclasses.replace(found, num_teachers=1))
    assert "there is one teacher, so no ensemble" in one
    assert "to be won" not in one
    loss = dataclasses.replace(found.gain_acc, value=-0.03, low=-0.04, high=-0.02)
    gain = dataclasses.replace(loss, value=0.03, low=0.02, high=0.04)
    lost = said_of(dataclasses.replace(found, gain_acc=loss, gain_calibrated_nll=gain))
    assert "on these images the ensemble is worse than its teachers' mean in accuracy\n" in lost
    assert "cannot be told from none" not in lost
    # The same networks as the user's own: what they are not sure of, they may never have seen.
    assert found.train_acc is not None
    assert found.train_acc < FITTED_FROM
    files = [str(path) for path in sorted(workshop.run.parent.glob("teachers/*/weights.safetensors"))]
    own = {"checkpoints": [{"file": file} for file in files]}
    of_files = Recipe.model_validate(recipe.model_dump(exclude={"teachers"}) | {"teachers": own})
    read = advice_of(of_files, data, run=RunFolder(workshop.run), accelerator=accelerator)
    assert isinstance(read, Advice)
    assert (found.case, read.case) == ("not_fitted", "unknown")
    assert read.train_acc == pytest.approx(found.train_acc)
    assert "edc did not train them" in said_of(read)
    assert "kept the most" not in said_of(read)


@pytest.mark.parametrize("start", ["random", "teacher"])
def test_students_that_start_from_weights_are_told_of_such_students(workshop, recipe, accelerator, start):
    """They were told what pays from random weights, whatever they start from."""
    data = load_training_data(recipe.data)
    document = recipe.model_dump(mode="json", exclude_unset=True)
    one, *others = document["students"]
    document["network"] = recipe.network.model_dump(exclude_defaults=True) | {"start": "teacher"}
    document["students"][one] = {"method": "kd", "start": start}
    for name in others:
        document["students"][name].pop("start", None)
    found = advice_of(Recipe.model_validate(document), data, run=RunFolder(workshop.run), accelerator=accelerator)
    assert isinstance(found, Advice)
    assert found.from_weights == (start == "teacher")
    said = said_of(dataclasses.replace(found, case="fitted"))
    assert ("(method: kd, answers: split) was ahead of plain" in said) == (start == "teacher")
    assert ("latent_be" in said) == (start == "random")
