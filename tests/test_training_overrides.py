"""A schedule of one student's own: what it is, who asks for it, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file
from training_cases import DATA, plain

from edc.data import load_data
from edc.errors import RecipeError
from edc.recipe import Recipe, TrainingOverrides, TrainingSection
from edc.recipe.loading import recipe_from_document
from edc.runs.cost import estimate_costs
from edc.runs.distill import distill, require_trainable
from edc.runs.trial import few_steps
from edc.teachers.ensemble import teacher_key
from edc.train.checkpoint import save_state

OTHERWISE: dict[str, Any] = {
    "epochs": 7,
    "batch_size": 32,
    "micro_batch_size": 8,
    "optimizer": "adamw",
    "learning_rate": 0.003,
    "layer_decay": 0.8,
    "factor_rate": 0.5,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "warmup_epochs": 2,
    "precision": "bf16",
    "channels_last": False,
    "compile": True,
    "sync_batchnorm": False,
    "validate_every": 3,
}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "name": "own",
        "data": DATA.model_dump(exclude_unset=True),
        "network": "cifar_resnet8",
        "training": {"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.02},
        "teachers": {"ensemble_size": 2},
        "students": {"kd": {"method": "kd"}, "be": {"method": "latent_be"}},
    } | changes


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(document(**changes))


def test_every_field_of_a_schedule_but_its_operation_can_be_otherwise() -> None:
    assert set(TrainingOverrides.model_fields) == set(TrainingSection.model_fields) - {
        "checkpoint_every",
        "deterministic",
    }
    assert OTHERWISE.keys() == TrainingOverrides.model_fields.keys()
    one = recipe(students={"a": {"training": OTHERWISE}, "b": {"method": "kd"}})
    assert one.training_of(one.students["b"]) == one.training == one.training_of(one.teachers)
    assert one.training_of(one.students["a"]) == TrainingSection.model_validate(OTHERWISE)
    again = recipe(teachers={"ensemble_size": 2, "training": OTHERWISE})
    assert again.training_of(again.teachers) == TrainingSection.model_validate(OTHERWISE)


def test_epochs_of_a_student_go_with_the_rest_of_its_training() -> None:
    one = recipe(students={"a": {"method": "kd", "epochs": 9, "training": {"warmup_epochs": 5}}})
    expected = one.training.model_copy(update={"epochs": 9, "warmup_epochs": 5})
    assert one.training_of(one.students["a"]) == expected


@pytest.mark.parametrize("field", [field for field in OTHERWISE if field not in ("epochs", "warmup_epochs")])
def test_values_are_held_to_the_bounds_of_the_shared_ones(field: str) -> None:
    bad = {
        "batch_size": 0,
        "micro_batch_size": 1,
        "layer_decay": 1.5,
        "factor_rate": 0.0,
        "momentum": 1.5,
        "weight_decay": -1.0,
    }
    value = bad.get(field, 0 if field in ("learning_rate", "validate_every") else "nonsense")
    with pytest.raises(ValidationError, match=rf"training\.{field}"):
        recipe(training={field: value})
    with pytest.raises(ValidationError, match=rf"students\.kd\.training\.{field}"):
        recipe(students={"kd": {"method": "kd", "training": {field: value}}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"students": {"kd": {"epochs": 3, "training": {"epochs": 4}}}},
            r"students.kd: epochs \(3\) and training.epochs \(4\) are both given; keep one of them",
        ),
        (
            {"teachers": {"epochs": 3, "training": {"epochs": 4}}},
            r"teachers: epochs \(3\) and training.epochs \(4\) are both given; keep one of them",
        ),
        (
            {"students": {"kd": {"training": {"warmup_epochs": 4}}}},
            r"students.kd.training: warmup_epochs \(4\) must be smaller than epochs \(4\)",
        ),
        (
            {"students": {"kd": {"method": "kd", "training": {"factor_rate": 0.5}}}},
            "students.kd: training.factor_rate: found 0.5, which has no effect with method 'kd'",
        ),
        (
            {"students": {"kd": {"training": {"learning_rat": 4}}}},
            "students.kd.training.learning_rat: unknown key; did you mean 'learning_rate'",
        ),
        ({"students": {"kd": {"training": {"checkpoint_every": 4}}}}, "students.kd.training.checkpoint_every: unknown"),
        (
            {"teachers": {"checkpoints": ["a.pt"], "training": {"learning_rate": 1}}},
            "teachers: training: has no effect, because checkpoints lists trained teachers",
        ),
    ],
)
def test_training_that_makes_no_sense_is_one_mistake(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"^r.yaml: 1 mistake\n  {message}"):
        recipe_from_document(document(**changes), source="r.yaml")


def test_digest_holds_what_is_given_and_nothing_else() -> None:
    one = recipe(students={"kd": {"method": "kd", "training": {"learning_rate": 0.1}}})
    assert one.identity()["students"]["kd"]["training"] == {"learning_rate": 0.1}
    plain_one = recipe(students={"kd": {"method": "kd"}})
    assert "training" not in plain_one.identity()["students"]["kd"]
    assert {"layer_decay", "factor_rate", "start"}.isdisjoint(
        plain_one.identity()["training"] | plain_one.identity()["network"]
    )
    assert one.digest() != plain_one.digest()
    again = Recipe.model_validate(one.model_dump(mode="json", exclude_none=True))
    assert (again, again.digest()) == (one, one.digest())


def test_teachers_are_kept_by_their_own_training_however_it_is_said() -> None:
    data = load_data(DATA)
    shared = recipe(training={"epochs": 4, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.3})
    own = recipe(teachers={"ensemble_size": 2, "training": {"learning_rate": 0.3}})
    of_student = recipe(students={"kd": {"method": "kd", "training": {"learning_rate": 0.3}}})
    keys = [teacher_key(one, data, 0)[0] for one in (shared, own, recipe(), of_student)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_costs_are_those_of_each_schedule(accelerator: Accelerator) -> None:
    one = recipe(
        teachers={"ensemble_size": 2, "training": {"batch_size": 8}},
        students={"kd": {"method": "kd", "training": {"batch_size": 32, "epochs": 5, "learning_rate": 1e30}}},
    )
    costs = estimate_costs(one, load_data(DATA), accelerator=accelerator)  # steps too small to diverge, even there
    assert [cost.num_steps for cost in costs] == [2 * 4 * 64 // 8, 5 * 64 // 32]
    short = few_steps(one)
    training = short.training_of(short.students["kd"])
    assert (training.epochs, training.warmup_epochs, training.learning_rate) == (1, 0, 1e-9)
    assert training.batch_size == 32


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            {"method": "kd", "training": {"batch_size": 3, "micro_batch_size": 2}},
            r"^students\.kd\.training\.batch_size: 3 in micro-batches of 2 \(the last one of 1\) leaves a .*"
            r"of student kd.* choose another students\.kd\.training\.micro_batch_size",
        ),
        (
            {"method": "kd", "answers": "split", "training": {"batch_size": 3}},
            r"through the networks at once \(students\.kd\.training\.batch_size 3 on 1 process",
        ),
        ({"method": "kd", "training": {"batch_size": 65}}, "64 training images"),
    ],
)
def test_batches_of_one_students_own_are_tried_before_anything_trains(
    accelerator: Accelerator, student: dict[str, Any], message: str
) -> None:
    one = recipe(students={"kd": student})
    with pytest.raises(Exception, match=message) as caught:
        require_trainable(one, load_data(DATA), accelerator=accelerator)
    assert caught.value.exit_code == 2  # type: ignore[attr-defined]
    require_trainable(recipe(), load_data(DATA), accelerator=accelerator)


def test_a_started_students_first_step_is_the_one_by_hand_in_float64(tmp_path: Path, accelerator: Accelerator) -> None:
    """From a file, at the student's own learning rate and weight decay: all 64 images, one step of SGD."""
    files = [str(tmp_path / f"{m}.safetensors") for m in range(3)]
    for m, file in enumerate(files):
        save_state(Path(file), plain(m).state_dict())
    otherwise = {"batch_size": 64, "epochs": 1, "warmup_epochs": 0, "learning_rate": 0.3, "weight_decay": 0.01}
    one = recipe(
        data=DATA.model_dump(exclude_unset=True) | {"augmentation": "none"},
        teachers={"checkpoints": [{"file": file, "allow_weak": True} for file in files[:2]]},
        students={"kd": {"method": "kd", "start": files[2], "temperature": 3, "training": otherwise}},
    )
    distill(one, run=tmp_path / "runs/run", accelerator=accelerator)
    found = load_file(tmp_path / "runs/run/students/kd/weights.safetensors")

    images = load_data(one.data).train.images.double() / 255
    teachers = [plain(m, torch.float64).eval() for m in range(2)]
    student = plain(2, torch.float64).train()
    with torch.no_grad():
        target = torch.stack([F.softmax(teacher(images) / 3, 1) for teacher in teachers]).mean(0)
    loss = -9 * (target * F.log_softmax(student(images) / 3, 1)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    for (name, before), gradient in zip(student.named_parameters(), gradients, strict=True):
        decayed = gradient + 0.01 * before
        expected = before - 0.3 * (decayed + 0.9 * decayed)  # Nesterov's first step
        torch.testing.assert_close(found[name].double(), expected.detach(), rtol=1e-4, atol=1e-6)
        assert float((expected - before).detach().abs().max()) > 1e-4, name
