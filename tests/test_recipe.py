"""What a recipe accepts, refuses and means."""

import hashlib
import json

import pytest
from pydantic import ValidationError

from edc.recipe import DataSection, NetworkSection, Recipe, StudentSection, TeachersSection, TrainingSection

BASE = {
    "name": "r",
    "data": {"kind": "synthetic"},
    "network": "wrn10x1",
    "students": {"kd": {"method": "kd"}, "be": {"method": "latent_be"}},
}


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(BASE | changes)


def refused(message: str, **changes) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


def test_defaults_are_the_papers():
    training, student = TrainingSection(), StudentSection()
    assert (training.epochs, training.batch_size, training.warmup_epochs) == (200, 128, 5)
    assert (training.optimizer, training.learning_rate, training.momentum) == ("sgd", 0.1, 0.9)
    assert training.weight_decay == 5e-4
    assert (student.temperature, student.alpha, student.perturbation_grey_levels) == (4.0, 1.0, 1.0)
    assert recipe().teachers.size == 4


def test_sections_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().training.epochs = 3


def test_network_is_a_name_or_a_mapping():
    assert recipe().network == recipe(network={"name": "wrn10x1"}).network == NetworkSection(name="wrn10x1")


@pytest.mark.parametrize(
    "name", ["wrn10x1", "wrn28x10", "cifar_resnet8", "cifar_resnet20x4", "torchvision/resnet18", "timm/vit_tiny.x"]
)
def test_network_names_that_exist(name):
    assert recipe(network=name).network.name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn12x1", "depth of a WRN is 6n"),
        ("wrn4x1", "depth of a WRN is 6n"),
        ("cifar_resnet18", "depth of a CIFAR ResNet is 6n"),
        ("cifar_resnet2", "depth of a CIFAR ResNet is 6n"),
        ("resnet18", "unknown network 'resnet18'; expected wrn"),
        ("wrn28x4 ", "unknown network"),
        ("timm/", "unknown network"),
    ],
)
def test_network_names_that_do_not(name, message):
    refused(message, network=name)


def test_mean_and_std_go_together():
    refused("mean and std must be given together", network={"name": "wrn10x1", "mean": [0.5]})


def test_teachers_have_the_students_network_unless_they_have_their_own():
    assert recipe().teacher_network.name == "wrn10x1"
    assert recipe(teachers={"network": "wrn16x1"}).teacher_network.name == "wrn16x1"


def test_epochs_of_a_section_win_over_the_shared_ones():
    one = recipe(
        training={"epochs": 20, "warmup_epochs": 1},
        teachers={"epochs": 7},
        students={"a": {"method": "kd"}, "b": {"method": "kd", "epochs": 30}},
    )
    assert one.training_of(one.teachers).epochs == 7
    assert one.training_of(one.students["a"]).epochs == 20
    assert one.training_of(one.students["b"]).epochs == 30
    assert one.training_of(one.students["b"]).learning_rate == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epochs": 5, "warmup_epochs": 5}}, r"warmup_epochs \(5\) must be smaller than epochs \(5\)"),
        ({"teachers": {"epochs": 5}}, "teachers.epochs: must be larger than training.warmup_epochs"),
        ({"students": {"a": {"epochs": 3}}}, "students.a.epochs: must be larger than training.warmup_epochs"),
    ],
)
def test_warmup_must_end_before_the_training_does(changes, message):
    refused(message, **changes)


def test_the_last_student_is_deployed_unless_another_is_named():
    assert recipe().deploy == "be"
    assert recipe(deploy="kd").deploy == "kd"
    refused(r"deploy: 'nobody' is not one of the students \(kd, be\)", deploy="nobody")


@pytest.mark.parametrize("perturbation", ["tdiv", "tdiv_sdiv"])
def test_one_teacher_has_no_pair(perturbation):
    student = {"method": "latent_be", "perturbation": perturbation}
    refused(
        f"students.x.perturbation: '{perturbation}' needs a pair of teachers, but the ensemble has 1",
        teachers={"ensemble_size": 1},
        students={"x": student},
    )
    recipe(teachers={"ensemble_size": 2}, students={"x": student})
    recipe(teachers={"ensemble_size": 1}, students={"x": {"method": "latent_be", "perturbation": "ods"}})


def test_one_checkpoint_has_no_pair_either():
    refused(
        "the ensemble has 1",
        teachers={"checkpoints": ["a.pt"]},
        students={"x": {"method": "latent_be", "perturbation": "tdiv_sdiv"}},
    )


def test_plain_student_has_no_members_that_disagree():
    refused("'tdiv_sdiv' needs members to disagree", students={"x": {"method": "kd", "perturbation": "tdiv_sdiv"}})


@pytest.mark.parametrize(("field", "value"), [("member_form", "sequential"), ("fold", "mean_factors")])
def test_what_is_about_members_is_refused_of_a_student_that_has_none(field, value):
    refused(
        rf"{field}: found '{value}', which has no effect with method 'kd'",
        students={"x": {"method": "kd", field: value}},
    )
    assert getattr(recipe(students={"x": {field: value}}).students["x"], field) == value
    default = StudentSection.model_fields[field].default
    recipe(students={"x": {"method": "kd", field: default}})  # as the resolved recipe of a run has it


def test_checkpoints_say_how_many_teachers_there_are():
    teachers = TeachersSection.model_validate({"checkpoints": ["a.pt", {"file": "b.pt", "network": "wrn16x2"}]})
    assert teachers.size == 2
    assert [str(checkpoint.file) for checkpoint in teachers.checkpoints] == ["a.pt", "b.pt"]
    assert teachers.checkpoints[1].network == NetworkSection(name="wrn16x2")
    refused(
        "ensemble_size is 4 but checkpoints lists 2 files", teachers={"ensemble_size": 4, "checkpoints": ["a", "b"]}
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "image_folder"}, "image_size is needed for 'image_folder'"),
        ({"kind": "parquet", "augmentation": "resized_crop_flip"}, "'resized_crop_flip' is for"),
        ({"kind": "digits", "augmentation": "resized_crop_flip", "image_size": 8}, "'resized_crop_flip' is for"),
        ({"kind": "digits", "augmentation": "resized_crop", "image_size": 8}, "'resized_crop' is for"),
        ({"kind": "imagenet"}, "Input should be 'digits'"),
        ({"kind": "digits", "crop_fraction": 0}, "greater than 0"),
    ],
)
def test_data_that_makes_no_sense(data, message):
    refused(message, data=data)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        (TrainingSection, "learning_rate", float("inf")),
        (TrainingSection, "learning_rate", float("nan")),
        (TrainingSection, "learning_rate", 0),
        (TrainingSection, "momentum", 1.1),
        (TrainingSection, "weight_decay", -1e-4),
        (TrainingSection, "epochs", 0),
        (TrainingSection, "batch_size", 1.5),
        (StudentSection, "temperature", 0),
        (StudentSection, "alpha", 1.01),
        (StudentSection, "perturbation_grey_levels", float("inf")),
        (DataSection, "train_limit", 0),
    ],
)
def test_values_out_of_range(section, field, value):
    with pytest.raises(ValidationError, match=field):
        section.model_validate({field: value} | ({"kind": "digits"} if section is DataSection else {}))


@pytest.mark.parametrize("name", ["", "a b", "../up", "-dash", "a/b"])
def test_names_that_are_no_folder_are_refused(name):
    refused("name", name=name)
    if name:
        refused("a student's name is made of letters", students={name: {"method": "kd"}})


def test_digest_ignores_where_the_data_is_and_how_it_is_fetched():
    base = recipe(data={"kind": "cifar10"})
    for where in ({"root": "/elsewhere"}, {"download": False}, {"num_workers": 0}):
        assert recipe(data={"kind": "cifar10", **where}).digest() == base.digest()


def test_digest_ignores_how_a_run_is_operated_and_is_the_one_it_was_before_it_did():
    base = recipe(data={"kind": "parquet", "image_size": 8})
    assert recipe(data={"kind": "parquet", "image_size": 8, "max_bad_fraction": 0.2}).digest() == base.digest()
    assert recipe(training={"checkpoint_every": 7}).digest() == recipe().digest()
    assert recipe(training={"deterministic": True}).digest() == recipe().digest()
    whole = base.model_dump(mode="json", exclude={"data": {"root", "download", "num_workers"}})
    assert whole["training"].pop("deterministic") is False
    for student in whole["students"].values():
        assert student.pop("answers") == "all"  # fields that came later
        assert student.pop("extra") is True
        assert student.pop("pair") == "step"
        assert student.pop("views") == []
    assert whole["data"].pop("extra") == []
    assert whole["data"].pop("extra_share") == 0.5
    assert base.digest() == hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"name": "s"},
        {"data": {"kind": "synthetic", "train_limit": 5}},
        {"data": {"kind": "synthetic", "split_seed": 5}},
        {"network": "wrn16x1"},
        {"training": {"learning_rate": 0.2}},
        {"teachers": {"seed": 4}},
        {"students": {"kd": {"method": "kd"}, "be": {"method": "latent_be", "temperature": 1}}},
        {"deploy": "kd"},
    ],
)
def test_digest_changes_with_what_is_asked_for(changes):
    assert recipe(**changes).digest() != recipe().digest()


def test_digest_survives_being_written_and_read():
    one = recipe(teachers={"checkpoints": ["a.pt", "b.pt"]}, training={"learning_rate": 0.1 + 1e-17, "epochs": 30})
    again = Recipe.model_validate(one.model_dump(mode="json", exclude_none=True))
    assert again == one
    assert again.digest() == one.digest()
