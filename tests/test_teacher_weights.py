"""The weights of a teacher in the files that trainers write: held against what timm, torch and torchvision load."""

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import load_checkpoint
from torch import Tensor, nn
from torchvision import models

from edc.errors import CheckpointError, RecipeError
from edc.networks import Classifier
from edc.recipe import CheckpointSection, NetworkSection
from edc.teachers.from_file import load_file_teacher
from edc.teachers.reading import OwnTeacher
from edc.teachers.weights_file import weights_for
from edc.train.checkpoint import load_document

NAME, CLASSES = "test_resnet", 4
DATA = (0.2, 0.3, 0.4), (0.3, 0.2, 0.1)


class Net(nn.Module):
    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    network = Net()
    network.norm.running_mean.normal_()
    return network.eval()


def timm_net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(NAME, num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
    return network.eval()


def teacher(path: Path, name: str = f"timm/{NAME}", size: int = 32, **options: Any) -> OwnTeacher:
    return load_file_teacher(
        CheckpointSection(file=path, **options),
        field="teachers.checkpoints.0",
        default_network=NetworkSection(name=name),
        class_names=tuple(f"class{k}" for k in range(CLASSES)),
        image_shape=(3, size, size),
        of_data=DATA,
    )


def taken(document: Any, path: Path, **options: Any) -> Any:
    torch.save(document, path)
    return weights_for(Classifier(net(9), (0.0,), (1.0,)), path, source="teachers.checkpoints.0: w.pt", **options)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


# Normalisation, and the moving average, against timm ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("state_dict", None)]
)
def test_timm_teacher_answers_as_the_network_that_timms_loader_makes_of_its_file(tmp_path, first, average):
    document = {"epoch": 3, "arch": NAME, first: timm_net(1).state_dict(), "metric": np.float64(71.5)}
    document |= {average: timm_net(2).state_dict()} if average else {}
    torch.save(document, tmp_path / "last.pth.tar")
    reference = timm.create_model(NAME, num_classes=CLASSES).eval()
    load_checkpoint(reference, str(tmp_path / "last.pth.tar"), weights_only=False)
    images = torch.rand(3, 3, 32, 32)
    config = timm.data.resolve_data_config(model=reference)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    found = teacher(tmp_path / "last.pth.tar")
    with torch.no_grad():
        torch.testing.assert_close(found.network(images), reference((images - mean) / std), rtol=1e-5, atol=1e-6)
    assert found.reading.normalisation_of == "timm"
    assert found.reading.weights == (f"moving average ({average})" if average else "")


def test_recipe_wins_over_timm_and_over_the_moving_average(tmp_path):
    torch.save({"state_dict": timm_net(1).state_dict(), "state_dict_ema": timm_net(2).state_dict()}, tmp_path / "a.pt")
    own = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    found = teacher(tmp_path / "a.pt", weights="raw", mean=own[0], std=own[1])
    assert_same(found.network.network.state_dict(), timm_net(1).state_dict())
    assert found.reading.mean == pytest.approx(own[0])
    assert (found.reading.normalisation_of, found.reading.weights) == ("the recipe", "raw weights (state_dict)")


def test_recipe_wins_over_the_mean_and_std_in_the_file(tmp_path):
    """As edc saves them. The recipe's had no effect, without a word."""
    torch.save(Classifier(timm_net(1), *DATA).state_dict(), tmp_path / "w.pt")
    mean, std = (0.7, 0.6, 0.5), (1.0, 0.9, 0.8)
    images = torch.rand(2, 3, 32, 32)
    for options in (
        {"mean": mean, "std": std},
        {"network": NetworkSection(name=f"timm/{NAME}", mean=mean, std=std)},
    ):
        found = teacher(tmp_path / "w.pt", **options)
        with torch.no_grad():
            expected = Classifier(timm_net(1), mean, std)(images)
            torch.testing.assert_close(found.network(images), expected, rtol=0, atol=0)
        assert found.reading.normalisation_of == "the recipe"
        assert found.reading.notes == ("the recipe's mean and std replace others that its file has",)
    for options in ({}, {"mean": DATA[0], "std": DATA[1]}):
        found = teacher(tmp_path / "w.pt", **options)
        assert found.reading.in_file is None
        assert found.reading.mean == pytest.approx(DATA[0])


def test_network_of_no_library_keeps_the_datas_normalisation_and_a_grey_one_of_timm_too(tmp_path):
    torch.save(timm.create_model(NAME, num_classes=CLASSES, in_chans=1).state_dict(), tmp_path / "grey.pt")
    grey = load_file_teacher(
        CheckpointSection(file=tmp_path / "grey.pt"),
        field="t",
        default_network=NetworkSection(name=f"timm/{NAME}"),
        class_names=("a", "b", "c", "d"),
        image_shape=(1, 32, 32),
        of_data=((0.3,), (0.4,)),
    )
    assert (grey.reading.mean, grey.reading.normalisation_of) == (pytest.approx((0.3,)), "the data")


@pytest.mark.parametrize(
    ("document", "which", "message"),
    [
        ({"state_dict": net(1).state_dict()}, "ema", "found 'ema', but the file has no moving average; it has 'state_"),
        ({"ema": net(1).state_dict()}, "raw", "weights: found 'raw', but the file has no raw weights; it has 'ema'"),
    ],
)
def test_weights_that_the_file_has_not_are_refused(tmp_path, document, which, message):
    with pytest.raises(CheckpointError, match=message):
        taken(document, tmp_path / "w.pt", which=which)


# What trainers put around and beside weights --------------------------------------------------------------------------


def prefixed(prefix: str, seed: int = 1) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in net(seed).state_dict().items()}


@pytest.mark.parametrize("container", ["net", "model_state_dict", "network", "weights", "params", "backbone.best"])
def test_state_dict_is_found_in_any_container(tmp_path, container):
    document: Any = net(1).state_dict()
    for key in reversed(container.split(".")):
        document = {key: document, "epoch": 3, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}}
    assert_same(taken(document, tmp_path / "w.pt").state, net(1).state_dict())


@pytest.mark.parametrize("prefix", ["model.", "net.", "model._orig_mod.", "module.model.", "student.backbone.0."])
def test_prefix_that_makes_all_keys_fit_is_taken_off_and_said(tmp_path, prefix):
    lightning = {"state_dict": prefixed(prefix) | {"criterion.weight": torch.ones(4)}, "epoch": 1, "loops": {}}
    found = taken(lightning, tmp_path / "w.pt")
    assert_same(found.state, net(1).state_dict())
    assert f"{prefix!r} taken off its keys" in found.words
    assert "without 1 that the network does not have (criterion.weight)" in found.words


def test_torchs_averaged_model_is_a_moving_average(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(net(2))
    found = taken({"model": net(1).state_dict(), "model_ema": average.state_dict()}, tmp_path / "w.pt")
    assert_same(found.state, net(2).state_dict())
    assert found.is_ema
    assert_same(taken(average.state_dict(), tmp_path / "w.pt").state, net(2).state_dict())


def test_lightnings_weight_averaging_keeps_the_average_where_raw_weights_were(tmp_path):
    document = {"state_dict": prefixed("model.", 2), "current_model_state": prefixed("model.", 1)}
    assert_same(taken(document, tmp_path / "w.pt").state, net(2).state_dict())
    assert_same(taken(document, tmp_path / "w.pt", which="raw").state, net(1).state_dict())


def test_average_inside_the_module_is_told_by_its_prefix(tmp_path):
    document = {"state_dict": prefixed("model.", 1) | prefixed("ema_model.", 2)}
    found = taken(document, tmp_path / "w.pt")
    assert_same(found.state, net(2).state_dict())
    assert found.has_both


def test_average_that_is_no_state_dict_is_named_as_left_out(tmp_path):
    document = {"model": net(1).state_dict(), "ema": {"shadow_params": [torch.ones(2)], "decay": 0.9}}
    assert "left out ema: no state dict of this network" in taken(document, tmp_path / "w.pt").words


def test_several_networks_that_fit_are_refused_with_their_names(tmp_path):
    with pytest.raises(CheckpointError, match=r"several state dicts of this network \('student', 'teacher'\)"):
        taken({"student": net(1).state_dict(), "teacher": net(2).state_dict()}, tmp_path / "w.pt")


@pytest.mark.parametrize(("first", "other"), [("model", "best_model"), ("state_dict", "model"), ("net", "shadow")])
def test_other_weights_of_the_network_that_are_not_taken_are_said(tmp_path, first, other):
    found = taken({other: net(2).state_dict(), first: net(1).state_dict()}, tmp_path / "w.pt")
    assert_same(found.state, net(1).state_dict())
    assert found.words == f"raw weights ({first}); not those of {other}, which are others of the same network"
    assert taken({other: net(1).state_dict(), first: net(1).state_dict()}, tmp_path / "w.pt").words == ""


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_wrappers_of_inner_modules_put_into_keys_is_taken_off_and_said(tmp_path, wrapper, prefix):
    state = net(1).state_dict()
    wrapped = {prefix + (wrapper + key if key.startswith("fc.") else key): value for key, value in state.items()}
    found = taken(wrapped, tmp_path / "w.pt")
    assert_same(found.state, state)
    assert found.words == f"{wrapper + prefix!r} taken off its keys"


def test_state_dict_in_a_tuple_is_found(tmp_path):
    assert_same(taken((net(1).state_dict(), {"epoch": 3}), tmp_path / "w.pt").state, net(1).state_dict())


class Options:
    """A class of a user's script."""

    def __init__(self) -> None:
        self.rate = 0.1


class Runs:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


class Evaluates:
    def __reduce__(self) -> Any:
        return eval, ("__import__('os').mkdir('ran')",)


BESIDE: dict[str, Any] = {
    "argparse": argparse.Namespace(rate=0.1, out=Path("x")),
    "numpy": {"best": np.float64(0.7), "curve": np.arange(3.0), "type": np.dtype("f4")},
    "class of a script": Options(),
    "optimizer": torch.optim.SGD(net().parameters(), 0.1),
    "sets and dicts": {"names": {"a"}, Path("key"): [Options()]},
}


@pytest.mark.parametrize("beside", BESIDE)
def test_what_stands_beside_the_weights_is_no_reason_to_refuse_them(tmp_path, beside):
    found = taken({"model": net(1).state_dict(), "args": BESIDE[beside]}, tmp_path / "w.pt")
    assert_same(found.state, net(1).state_dict())


def test_files_of_old_torch_may_hold_options_and_numbers_too(tmp_path):
    document = {"state_dict": net(1).state_dict(), "args": argparse.Namespace(a=1), "best": np.float32(0.5)}
    torch.save(document, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    found = weights_for(Classifier(net(9), (0.0,), (1.0,)), tmp_path / "w.pt", source="w")
    assert_same(found.state, net(1).state_dict())


@pytest.mark.parametrize("harmful", [Runs(), Evaluates()])
def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, harmful):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": net(1).state_dict(), "args": harmful}, tmp_path / "w.pt")
    try:
        load_document(tmp_path / "w.pt")
    except CheckpointError as error:
        assert "could run any code" in str(error)  # noqa: PT017 - either outcome is right
    assert not (tmp_path / "ran").exists()


def test_whole_pickled_network_is_refused_wherever_it_lies(tmp_path):
    with pytest.raises(CheckpointError, match=r"w\.pt: holds dict \(model, epoch\), expected a state dict"):
        taken({"model": net(1), "epoch": 3}, tmp_path / "w.pt")


def test_batchnorm_without_num_batches_tracked_loads_as_torch_loads_it(tmp_path):
    state = {key: value for key, value in timm_net(1).state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    reference = timm.create_model(NAME, num_classes=CLASSES)
    reference.load_state_dict(state)  # torch takes it
    assert_same(teacher(tmp_path / "old.pth").network.network.state_dict(), reference.state_dict())


def test_auxiliary_heads_are_left_out_and_transform_input_is_a_normalisation_by_one_half(tmp_path):
    """The network that torchvision's own weights come in: with heads for training alone, and with transform_input."""
    torch.manual_seed(0)
    reference = models.googlenet(weights=None, num_classes=CLASSES, transform_input=True, init_weights=False).eval()
    torch.save(reference.state_dict(), tmp_path / "g.pth")
    half = (0.5, 0.5, 0.5)
    found = teacher(tmp_path / "g.pth", "torchvision/googlenet", 32, mean=half, std=half)
    images = torch.rand(2, 3, 32, 32)
    preset = models.ResNet18_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preset.mean, preset.std))
    with torch.no_grad():
        torch.testing.assert_close(found.network(images), reference((images - mean) / std), rtol=1e-3, atol=1e-4)
    assert "without 20 that the network does not have (aux1.conv.conv.weight, " in found.reading.weights


def test_message_of_other_weights_shows_keys_of_both_sides(tmp_path):
    torch.save({"encoder.a": torch.ones(2), "encoder.b": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as caught:
        teacher(tmp_path / "w.pt")
    assert "the file has 2 keys: encoder.a, encoder.b" in str(caught.value)
    assert f"the network has {len(timm_net(0).state_dict())} keys: conv1.0.weight, " in str(caught.value)


# Half precision -------------------------------------------------------------------------------------------------------


def scripted(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.rand(2, 3, 8, 8, dtype=dtype)).save(str(path))


class RoundedSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net(1)

    def forward(self, x: Tensor) -> Tensor:
        return (40 * self.net(x)).softmax(-1).half().float()


IDENTITY = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def test_torchscript_of_half_precision_answers_as_its_weights_do_in_single(tmp_path):
    scripted(net(1).half(), tmp_path / "h.ts", torch.float16)
    found = teacher(tmp_path / "h.ts", size=8, trust=True, **IDENTITY)
    images = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(found.network(images), net(1).half().float()(images), rtol=1e-3, atol=1e-4)
    assert "half precision" in found.reading.words


def test_probabilities_rounded_to_half_have_a_floor_and_it_is_said(tmp_path):
    network = RoundedSoftmax().eval()
    scripted(network, tmp_path / "p.ts", torch.float32)
    found = teacher(tmp_path / "p.ts", size=8, trust=True, output="probabilities", **IDENTITY)
    images = torch.rand(64, 3, 8, 8)
    with torch.no_grad():
        rounded, answers = network(images), found.network(images)
    assert (rounded == 0).any()
    assert float(answers.min()) == pytest.approx(np.log(2.0**-25))  # the most that half precision makes zero
    torch.testing.assert_close(answers[rounded > 0], rounded[rounded > 0].log())
    assert "rounds its probabilities to half precision" in found.reading.words


def test_whatever_is_no_probability_is_refused_as_such(tmp_path):
    """Logits, of which everything below zero would become one value, and the answers of a sigmoid."""
    torch.save(timm_net(1).state_dict(), tmp_path / "logits.pt")
    with pytest.raises(RecipeError, match=r"output: found 'probabilities', but it returns values from -.* sums from"):
        teacher(tmp_path / "logits.pt", output="probabilities")
    scripted(nn.Sequential(net(1), nn.Sigmoid()), tmp_path / "sigmoid.ts", torch.float32)
    with pytest.raises(RecipeError, match=r"sums from .*, expected 0 to 1 and sums of 1; leave output out if they are"):
        teacher(tmp_path / "sigmoid.ts", size=8, trust=True, output="probabilities", **IDENTITY)
