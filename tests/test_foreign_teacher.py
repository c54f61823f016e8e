"""Teachers from files of every kind: logits and image gradients are those of the network they were saved from."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.data import load_data
from edc.errors import CheckpointError, RecipeError
from edc.recipe import CheckpointSection, NetworkSection, Recipe
from edc.teachers.ensemble import TeacherEnsemble, load_own_teachers
from edc.teachers.file_teacher import FileTeacher
from edc.teachers.from_file import format_of, load_file_teacher

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE, NUM_CLASSES = 12, 5
DYNAMIC = ({0: torch.export.Dim.DYNAMIC},)


class Small(nn.Module):
    """What teachers are made of: convolution, BatchNorm with statistics of its own, pooling, dropout, a classifier."""

    def __init__(self, num_classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(F.gelu(self.norm(self.conv(x))), 2)
        return self.head(self.drop(torch.flatten(y, 1)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    network.norm.running_mean.normal_()
    network.norm.running_var.uniform_(0.5, 2)
    return network.eval()


def save_state_dict(network: nn.Module, path: Path, size: int = SIZE) -> None:
    torch.save(network.state_dict(), path)


def save_torchscript(network: nn.Module, path: Path, size: int = SIZE) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, torch.rand(2, 3, size, size)).save(str(path))


def save_exported(network: nn.Module, path: Path, size: int = SIZE, dynamic: Any = DYNAMIC) -> None:
    torch.export.save(torch.export.export(network, (torch.rand(2, 3, size, size),), dynamic_shapes=dynamic), path)


def save_onnx(network: nn.Module, path: Path, size: int = SIZE) -> None:
    example = (torch.rand(2, 3, size, size),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, example, path, dynamic_shapes=DYNAMIC, external_data=False, verbose=False)


WHOLE: dict[str, Callable[..., None]] = {"a.pt": save_torchscript, "a.pt2": save_exported, "a.onnx": save_onnx}


@pytest.fixture(scope="module", params=list(WHOLE))
def whole_file(request: pytest.FixtureRequest, network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as one file that needs no code of it, for images of SIZE pixels."""
    path = tmp_path_factory.mktemp("whole") / request.param
    if path.suffix == ".onnx":
        pytest.importorskip("onnx2pytorch")
    WHOLE[request.param](network, path)
    return path


def load(path: Path, *, shape: tuple[int, int, int] = (3, SIZE, SIZE), classes: int = NUM_CLASSES, **options) -> Any:
    kind = format_of(path) if options.get("format", "auto") == "auto" else options["format"]
    runs_code = kind in ("torchscript", "exported_program")
    options = {"mean": MEAN, "std": STD, "trust": runs_code} | options
    section = CheckpointSection(file=path, **{k: v for k, v in options.items() if v is not None})
    return load_file_teacher(
        section,
        field="teachers.checkpoints.0",
        default_network=NetworkSection(name="wrn10x1"),
        class_names=tuple(f"class{k}" for k in range(classes)),
        image_shape=shape,
        of_data=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ).network


def answers_and_gradient(function: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    x = images.clone().requires_grad_()
    logits = function(x)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


def expected_of(network: nn.Module, *, size: int = SIZE) -> Callable[[Tensor], Tensor]:
    """The teacher written out: resize, normalise, run."""

    def run(x: Tensor) -> Tensor:
        if x.shape[-1] != size:
            x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
        channels = [(x[:, c] - MEAN[c]) / STD[c] for c in range(3)]
        return network(torch.stack(channels, 1))

    return run


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-6)])
@pytest.mark.parametrize("size", [SIZE, 20, 7])
def test_whole_network_answers_and_differentiates_as_the_original(network, whole_file, dtype, tolerance, size):
    # In float64 the weights are still the float32 ones of the file, which the ONNX exporter has fused.
    images = torch.rand(4, 3, size, size, dtype=dtype)
    teacher = load(whole_file, shape=(3, size, size), input_size=SIZE).to(dtype)
    found = answers_and_gradient(teacher, images)
    expected = answers_and_gradient(expected_of(copy.deepcopy(network).to(dtype)), images)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def test_file_is_recognised_by_its_content_whatever_its_name(network, tmp_path):
    for save, kind in ((save_state_dict, "state_dict"), (save_torchscript, "torchscript")):
        for suffix in (".pt", ".pth", ".bin"):
            save(network, tmp_path / f"{kind}{suffix}")
            assert format_of(tmp_path / f"{kind}{suffix}") == kind
    save_exported(network, tmp_path / "e.pt2")
    assert format_of(tmp_path / "e.pt2") == "exported_program"
    (tmp_path / "e.pt2").rename(tmp_path / "e.pt")
    assert format_of(tmp_path / "e.pt") == "exported_program"


def test_loading_torchscript_warns_nobody(network, tmp_path, recwarn):
    save_torchscript(network, tmp_path / "a.ts")
    recwarn.clear()
    load(tmp_path / "a.ts")
    assert not recwarn.list


def test_teacher_is_frozen_and_stays_in_eval_mode(whole_file, network):
    teacher = load(whole_file)
    ensemble = TeacherEnsemble([teacher, load(whole_file)]).train()
    assert not any(module.training for module in ensemble.modules() if not isinstance(module, torch.jit.ScriptModule))
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    images = torch.rand(3, 3, SIZE, SIZE)
    torch.testing.assert_close(ensemble(images)[0], expected_of(network)(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(ensemble(images)[0], ensemble(images)[1])  # no dropout


def test_probabilities_become_logits_with_the_same_softmax(network, tmp_path):
    whole = nn.Sequential(copy.deepcopy(network), nn.Softmax(dim=-1)).eval()
    save_torchscript(whole, tmp_path / "p.ts")
    images = torch.rand(3, 3, SIZE, SIZE)
    found = load(tmp_path / "p.ts", output="probabilities")(images)
    for temperature in (1.0, 4.0):
        expected = F.softmax(expected_of(network)(images) / temperature, -1)
        torch.testing.assert_close(F.softmax(found / temperature, -1), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(RecipeError, match=r"returns probabilities .*set output: probabilities"):
        load(tmp_path / "p.ts")


@pytest.mark.parametrize("mean", [MEAN, None])
def test_state_dict_with_an_input_size_of_its_own_resizes_inside(tmp_path, mean):
    from edc.networks import build_network

    torch.manual_seed(1)
    plain = build_network(
        NetworkSection(name="wrn10x1"), num_classes=NUM_CLASSES, image_shape=(3, 8, 8), mean=MEAN, std=STD
    ).eval()
    torch.save(plain.network.state_dict(), tmp_path / "w.pt")
    network = {"name": "wrn10x1"} if mean else {"name": "wrn10x1", "mean": MEAN, "std": STD}
    std = STD if mean else None
    teacher = load(tmp_path / "w.pt", input_size=8, network=network, mean=mean, std=std).double()
    images = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)

    def expected(x: Tensor) -> Tensor:
        return plain.double()(F.interpolate(x, (8, 8), mode="bilinear", antialias=True))

    for a, b in zip(answers_and_gradient(teacher, images), answers_and_gradient(expected, images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_resizing_inside_is_differentiable_and_antialiased():
    teacher = FileTeacher(nn.Flatten(), input_size=2, mean=(0.0,), std=(1.0,)).double()
    checker = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64).repeat(4, 4)[None, None]
    assert (teacher(checker) - 0.5).abs().max() < 0.1  # without antialiasing single pixels would be picked
    assert torch.autograd.gradcheck(teacher, torch.rand(1, 1, 8, 8, dtype=torch.float64, requires_grad=True))


def test_ensemble_of_a_recipe_mixes_files_of_every_kind(network, tmp_path, monkeypatch):
    pytest.importorskip("onnx2pytorch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # for what was opened before
    three = Small(3).eval()
    entries: list[dict[str, Any]] = []
    for name, save in WHOLE.items():
        save(three, tmp_path / name)
        trust = name != "a.onnx"
        entries.append({"file": str(tmp_path / name), "input_size": SIZE, "mean": MEAN, "std": STD, "trust": trust})
    recipe = Recipe.model_validate(
        {
            "name": "mixed",
            "data": {"kind": "synthetic", "image_size": 8, "num_classes": 3, "num_images": 32},
            "network": "cifar_resnet8",
            "teachers": {"checkpoints": entries},
            "students": {"kd": {"method": "kd"}},
        }
    )
    data = load_data(recipe.data)
    ensemble = TeacherEnsemble([one.network for one in load_own_teachers(recipe, data)])
    images = torch.rand(4, *data.image_shape)
    with torch.no_grad():
        expected = expected_of(three)(images)
    for logits in ensemble(images):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None, "std": None}, r"teachers.checkpoints.0: .*mean and std are missing; a whole network"),
        ({"mean": (0.5,), "std": (0.5,)}, r"mean and std have 1 and 1 values, the images have 3 channels"),
        ({"network": "wrn10x1"}, r"network has no effect on a file that is a whole network"),
        ({"shape": (3, SIZE // 2, SIZE // 2)}, r"does not take 1 image of \(3, 6, 6\).*input_size"),
    ],
)
def test_whole_network_without_what_it_needs_is_refused(network, tmp_path, options, message):
    save_exported(network, tmp_path / "a.pt2")
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "a.pt2", **options)


def test_teacher_of_other_classes_is_refused_with_both_numbers(whole_file):
    with pytest.raises(CheckpointError, match=r"checkpoints.0: .*a classifier of 5 classes, the data has 7"):
        load(whole_file, classes=7)


def test_network_saved_for_one_batch_size_is_refused(network, tmp_path):
    save_exported(network, tmp_path / "a.pt2", dynamic=None)
    with pytest.raises(RecipeError, match=r"does not take 1 image of .* any batch size"):
        load(tmp_path / "a.pt2")


class NoGradient(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.round(x * 0).detach() + x.detach())


def test_network_that_no_gradient_passes_is_refused(tmp_path):
    save_torchscript(NoGradient().eval(), tmp_path / "a.ts")
    with pytest.raises(RecipeError, match="no gradient flows from its logits to the images"):
        load(tmp_path / "a.ts")


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2", "a.ts"])
def test_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"junk" * 30)
    kind = {"a.onnx": "onnx", "a.pt2": "exported_program", "a.ts": "torchscript"}[name]
    with pytest.raises(CheckpointError, match=rf"checkpoints.0: .*{name}: not readable as"):
        load(tmp_path / name, format=kind)


def test_onnx_that_converts_to_something_else_is_refused(network, tmp_path, monkeypatch):
    onnx2pytorch = pytest.importorskip("onnx2pytorch")
    save_onnx(network, tmp_path / "a.onnx")
    convert = onnx2pytorch.ConvertModel

    def slightly_wrong(model: Any) -> nn.Module:
        converted = convert(model)
        with torch.no_grad():
            next(p for p in converted.parameters() if p.ndim == 4).mul_(1.1)
        return converted

    monkeypatch.setattr(onnx2pytorch, "ConvertModel", slightly_wrong)
    with pytest.raises(RecipeError, match="its conversion to torch differs from ONNX Runtime by"):
        load(tmp_path / "a.onnx")
