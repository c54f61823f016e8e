"""A network that starts from weights is normalised as these were, and the roll call says who said so."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from edc.data import load_data
from edc.method.batch_ensemble import fold, to_batch_ensemble
from edc.networks import Classifier, build_network, normalisation_of
from edc.recipe import DataSection, NetworkSection, Recipe
from edc.teachers.ensemble import TeacherEnsemble
from edc.teachers.roll_call.call import call_roll
from edc.teachers.start import start_from_file

OF_DATA = (0.25, 0.5, 0.75), (0.1, 0.2, 0.3)
TIMMS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of tf_efficientnet_lite0 and test_resnet
IMAGENETS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE = {"name": "timm/tf_efficientnet_lite0"}


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (LITE, (OF_DATA, "the data")),
        (LITE | {"start": "a.pt"}, (TIMMS, "timm")),
        (LITE | {"pretrained": True}, (TIMMS, "timm")),
        (LITE | {"start": "teacher"}, (OF_DATA, "the data")),  # the teacher's own come with its weights
        (LITE | {"start": "a.pt", "mean": IMAGENETS[0], "std": IMAGENETS[1]}, (IMAGENETS, "the recipe")),
        ({"name": "timm/resnet18", "pretrained": True}, (IMAGENETS, "timm")),
        ({"name": "torchvision/resnet18", "pretrained": True}, (IMAGENETS, "torchvision")),
        ({"name": "torchvision/efficientnet_v2_l", "pretrained": True}, (TIMMS, "torchvision")),  # not ImageNet's
        ({"name": "torchvision/resnet18", "start": "a.pt"}, (OF_DATA, "the data")),
        ({"name": "wrn10x1", "start": "a.pt"}, (OF_DATA, "the data")),
    ],
)
def test_what_starts_from_weights_is_fed_as_they_were(section, expected):
    assert normalisation_of(NetworkSection.model_validate(section), OF_DATA) == expected


def test_grey_images_keep_the_datas_normalisation():
    grey = (0.5,), (0.2,)
    for name in ("timm/tf_efficientnet_lite0", "torchvision/resnet18"):
        assert normalisation_of(NetworkSection(name=name, pretrained=True), grey) == (grey, "the data")


def test_student_that_starts_from_a_bare_file_of_timm_answers_as_its_network_does_and_so_does_its_fold(tmp_path):
    import timm

    torch.manual_seed(0)
    donor = timm.create_model("test_efficientnet", num_classes=3).eval()
    save_file(donor.state_dict(), tmp_path / "start.safetensors")
    section = NetworkSection(name="timm/test_efficientnet", start=str(tmp_path / "start.safetensors"))
    shape: dict[str, Any] = {"num_classes": 3, "image_shape": (3, 32, 32), "mean": OF_DATA[0], "std": OF_DATA[1]}
    network = build_network(section, **shape)
    start_from_file(network, section, field="network.start")
    images = torch.rand(4, 3, 32, 32)
    config = donor.pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        expected = donor((images - mean) / std)
        assert torch.equal(network.eval()(images), expected)
        members = to_batch_ensemble(network, 2, example=images[:2])
        folded = fold(members, build_network(section.bare(), **shape)).eval()
        torch.testing.assert_close(folded(images), expected)


@pytest.mark.parametrize(("mean", "says"), [(None, "the data"), ([0.5, 0.5, 0.5], "the recipe")])
def test_roll_call_says_what_normalises_the_images_of_teachers_that_are_trained_here(mean, says):
    data_section = DataSection.model_validate({"kind": "synthetic", "num_images": 48, "image_size": 8})
    data = load_data(data_section)
    network = {"name": "wrn10x1"} | ({"mean": mean, "std": [0.25] * 3} if mean else {})
    document = {"name": "t", "data": data_section.model_dump(exclude_unset=True), "network": network}
    recipe = Recipe.model_validate(document | {"students": {"kd": {"method": "kd"}}, "training": {"batch_size": 8}})
    teachers: list[Classifier] = [
        build_network(
            recipe.teacher_network,
            num_classes=data.num_classes,
            image_shape=data.image_shape,
            mean=data.mean,
            std=data.std,
        )
        for _ in range(2)
    ]
    roll = call_roll(recipe, data, TeacherEnsemble(teachers), (), accelerator=Accelerator(cpu=True))
    for one in roll.answered:
        assert one.reading.mean == (tuple(mean) if mean else data.mean)
        assert one.reading.normalisation_of == says
