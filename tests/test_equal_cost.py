"""`epochs: {as_long_as: NAME}` and `deploy: best`: the numbers they become, and what is refused."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from edc.recipe import Recipe
from edc.runs.cost import units_per_step
from edc.runs.rows import deployed_student

BASE: dict[str, Any] = {
    "name": "r",
    "data": {"kind": "synthetic"},
    "network": "wrn10x1",
    "training": {"epochs": 133, "warmup_epochs": 1},
    "students": {
        "paper": {"method": "latent_be", "perturbation": "tdiv_sdiv"},
        "kd": {"method": "kd"},
        "split": {"method": "latent_be", "answers": "split"},
    },
}


def with_epochs(**epochs: Any) -> dict[str, Any]:
    students = {name: {**section, "epochs": epochs.get(name)} for name, section in BASE["students"].items()}
    return BASE | {"students": students}


def epochs_of(document: dict[str, Any]) -> dict[str, int | None]:
    return {name: student.epochs for name, student in Recipe.model_validate(document).students.items()}


@pytest.mark.parametrize("ensemble_size", [2, 4, 8])
def test_students_cost_as_many_forward_passes_as_the_named_one_to_half_an_epoch(ensemble_size):
    document = with_epochs(kd={"as_long_as": "paper"}, split={"as_long_as": "paper"})
    recipe = Recipe.model_validate(document | {"teachers": {"ensemble_size": ensemble_size}})
    units = {name: units_per_step(student, ensemble_size) for name, student in recipe.students.items()}
    assert units["paper"] == 4 * ensemble_size + 6
    for name in ("kd", "split"):
        cost = units[name] * (recipe.students[name].epochs or 0)
        assert abs(cost - 133 * units["paper"]) <= units[name] / 2


def test_numbers_are_the_nearest_halves_up():
    found = epochs_of(with_epochs(kd={"as_long_as": "paper"}, split={"as_long_as": "kd", "times": 2}))
    assert found == {"paper": None, "kd": 418, "split": 1463}  # 133 * 22 / 7 = 418; 2 * 418 * 7 / 4 = 1463
    assert epochs_of(with_epochs(paper=6, kd={"as_long_as": "paper"}))["kd"] == 19  # 18.86
    assert epochs_of(with_epochs(kd=10, split={"as_long_as": "kd"}))["split"] == 18  # 17.5


def test_a_student_with_batches_and_epochs_of_its_own_is_counted_by_images():
    document = with_epochs(kd={"as_long_as": "paper"}, split={"as_long_as": "kd"})
    document["students"]["paper"]["training"] = {"epochs": 50, "batch_size": 32}
    document["students"]["kd"]["training"] = {"batch_size": 256}
    found = Recipe.model_validate(document)
    assert found.students["kd"].epochs == 157  # 50 * 22 / 7 = 157.1, whatever the batches
    assert found.training_of(found.students["kd"]).epochs == 157
    assert found.students["split"].epochs == 275  # 157 * 7 / 4 = 274.75


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_an_epoch_with_extra_images_costs_more(share):
    """Steps of an epoch of 4,800 labelled images: 4,800 / (128 - extra rows)."""
    document = with_epochs(kd={"as_long_as": "paper"}, split={"as_long_as": "paper"})
    document["students"]["kd"]["extra"] = False
    data = {"kind": "synthetic", "extra": "synthetic", "extra_share": share}
    recipe = Recipe.model_validate(document | {"data": data})
    steps = {name: 4800 // (128 if name == "kd" else round(128 * (1 - share))) for name in recipe.students}
    units = {name: units_per_step(student, 4) * steps[name] for name, student in recipe.students.items()}
    for name in ("kd", "split"):
        cost = units[name] * (recipe.students[name].epochs or 0)
        assert abs(cost - 133 * units["paper"]) <= 0.5 * units[name] + 0.03 * cost  # an incomplete batch is left out
    assert recipe.students["split"].epochs == 732  # as without


def test_a_recipe_that_says_the_number_is_the_same_run():
    said, counted = (Recipe.model_validate(with_epochs(kd=kd)) for kd in ({"as_long_as": "paper"}, 418))
    assert said == counted
    assert said.digest() == counted.digest()
    assert Recipe.model_validate(json.loads(said.model_dump_json(exclude_none=True))) == said
    assert "epochs: 418" in said.as_yaml()


@pytest.mark.parametrize(
    ("epochs", "message"),
    [
        ({"kd": {"as_long_as": "kd"}}, "students.kd.epochs.as_long_as: found 'kd', the student itself"),
        ({"kd": {"as_long_as": "papre"}}, "students.kd.epochs.as_long_as: found 'papre', .* did you mean 'paper'"),
        ({"kd": {"as_long_as": "zz"}}, "found 'zz', which is not a student; expected one of paper, split"),
        ({"kd": {"as_long_as": 3}}, "found 3, which is not a student"),
        ({"kd": {"as_long": "paper"}}, "students.kd.epochs.as_long: unknown key; known: as_long_as, times"),
        ({"kd": {}}, "students.kd.epochs: found {}; expected a number, or {as_long_as: the name of a student}"),
        ({"kd": {"as_long_as": "paper", "times": 0}}, "students.kd.epochs.times: found 0, expected a number over 0"),
        ({"kd": {"as_long_as": "paper", "times": "2"}}, "students.kd.epochs.times: found '2'"),
        ({"kd": {"as_long_as": "paper", "times": 0.001}}, r"students.kd.epochs: must be larger .* \(1\), found 1"),
    ],
)
def test_a_length_that_cannot_be_known_is_refused(epochs, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(with_epochs(**epochs))


def test_a_circle_is_one_message():
    circle = with_epochs(paper={"as_long_as": "split"}, kd={"as_long_as": "paper"}, split={"as_long_as": "kd"})
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(circle)
    (error,) = caught.value.errors()
    assert error["msg"] == (
        "Value error, students.paper.epochs.as_long_as: paper -> split -> kd -> paper is a circle; "
        "give one of them a number of epochs"
    )


def test_another_mistake_is_told_where_it_is():
    document = with_epochs(kd={"as_long_as": "paper"})
    document["students"]["paper"]["perturbation"] = "tdif"
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(document)
    (error,) = caught.value.errors()
    assert error["loc"] == ("students", "paper", "perturbation")


def test_times_without_end_is_too_many_epochs_and_no_traceback():
    with pytest.raises(ValidationError, match=r"students.kd.epochs\n.*less than or equal to 1000000000"):
        Recipe.model_validate(with_epochs(kd={"as_long_as": "paper", "times": 1e308}))


# deploy: best


def row(name: str, nll: float, acc: float) -> dict[str, Any]:
    """Returns a row whose test figures say the opposite of its validation figures."""
    opposite = {"acc": 1 - acc, "nll": 9 - nll}
    validation = {"acc": acc, "nll": 5.0, "calibrated_nll": nll}
    return {"kind": "student", "name": name, "raw": opposite, "calibrated": opposite, "validation": validation}


ROWS = [row("paper", 1.2, 0.61), row("kd", 1.1, 0.60), row("split", 1.1, 0.61)]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ({"deploy": "best"}, "kd"),
        ({"deploy": "best", "deploy_by": "calibrated_nll"}, "kd"),
        ({"deploy": "best", "deploy_by": "accuracy"}, "paper"),
        ({"deploy": "split"}, "split"),
        ({}, "split"),
    ],
)
def test_the_best_on_validation_images_is_deployed_the_first_of_equals(asked, name):
    assert deployed_student(Recipe.model_validate(BASE | asked), ROWS) == name


def test_a_student_that_is_right_on_all_validation_images_is_deployed():
    rows = [row("kd", 0.02, 0.98), row("split", 0.05, 1.0)]
    assert deployed_student(Recipe.model_validate(BASE | {"deploy": "best"}), rows) == "split"


def test_best_without_a_measure_goes_by_calibrated_nll_and_says_so():
    recipe = Recipe.model_validate(BASE | {"deploy": "best"})
    assert recipe.deploy_by == "calibrated_nll"
    named = recipe.deploying({"deploy": "kd"})
    assert (named.deploy, named.deploys_best, "deploy_by" in named.as_yaml()) == ("kd", False, False)
    assert Recipe.model_validate(BASE).deploying({"deploy": "kd"}).deploy == "split"


def test_a_student_that_is_called_best_is_meant_by_its_name():
    recipe = Recipe.model_validate(BASE | {"students": {"best": {}, "kd": {"method": "kd"}}, "deploy": "best"})
    assert not recipe.deploys_best
    assert recipe.deploy_by is None


def test_a_measure_is_of_epochs_and_candidates_too():
    """So it has an effect where the recipe deploys a student by its name."""
    assert Recipe.model_validate(BASE).best_by == "calibrated_nll"
    assert Recipe.model_validate(BASE | {"deploy_by": "accuracy"}).best_by == "accuracy"


def test_recipes_without_them_have_the_digest_that_they_had():
    """Of the recipe below, as the edc before these fields gave it."""
    recipe = Recipe.model_validate(BASE)
    assert "deploy_by" not in recipe.identity()
    assert recipe.digest() == "d4ee86bc13fdc653be614a7db2ecba995592773578692f11aa3c81152268fa5b"
