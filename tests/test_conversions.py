"""Networks people use, the whole way: members, two training steps, fold, ONNX file, parity."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import edc
from safetensors.torch import load_file
from torch import nn

from edc.data import load_data
from edc.recipe.loading import load_recipe
from edc.runs.folder import RunFolder
from edc.runs.student import build_plain, folding, load_student

RECIPE = """
name: r
data: {kind: synthetic, image_size: 32, num_images: 16, num_classes: 3, validation: 12, test: 12, crop_padding: 2}
network: cifar_resnet8
training: {epochs: 1, warmup_epochs: 0, batch_size: 8, learning_rate: 0.05}
teachers: {ensemble_size: 2, network: cifar_resnet8}
students: {be: {method: latent_be, perturbation: tdiv_sdiv}}
"""

SHARED = {
    "torchvision/resnet18": "",
    "torchvision/mobilenet_v3_small": "",
    "torchvision/efficientnet_b0": "",
    "timm/convnext_atto": "",
    "timm/vit_tiny_patch16_224": "network.cls_token, network.pos_embed",
}
"""What all members of each network share, as the log names it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversions")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "resnet" in name else pytest.mark.slow) for name in SHARED]
)
def test_network_becomes_members_trains_folds_and_exports(folder, name, one_thread):
    short = name.rpartition("/")[2]
    where = ["--run", f"runs/{short}", "--device", "cpu", "--threads", "1"]
    distilled = edc("distill", "recipe.yaml", "--set", f"network={name}", *where, cwd=folder)
    assert distilled.exit_code == 0, distilled.stderr
    said = [line for line in distilled.stderr.splitlines() if "shared by all members" in line]
    assert said == ([f"be: shared by all members, not converted: {SHARED[name]}"] if SHARED[name] else [])

    recipe = load_recipe(folder / "recipe.yaml", overrides=[f"network={name}"])
    data = load_data(recipe.data)
    state = load_file(folder / f"runs/{short}/students/be/weights.safetensors")
    plain = build_plain(recipe, data, fresh=False)
    layers = [layer for layer, module in plain.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {key.removesuffix(".rho") for key in state if key.endswith(".rho")} == set(layers)
    moved = [layer for layer in layers if not torch.equal(state[f"{layer}.sigma"][0], state[f"{layer}.sigma"][1])]
    assert len(moved) > 0.9 * len(layers), "the members did not learn apart"
    (epoch,) = (folder / f"runs/{short}/students/be/metrics.jsonl").read_text().splitlines()
    assert json.loads(epoch)["step"] == 2

    exported = edc("export", f"runs/{short}", "--max-batch", "4", "--json", cwd=folder)
    assert exported.exit_code == 0, exported.stderr
    folded = folding(recipe, "be", data)(load_student(recipe, "be", data, run=RunFolder(folder / f"runs/{short}")))
    images = data.test.images[:4].float() / 255
    with torch.no_grad():
        expected = folded(images).log_softmax(1).numpy()
    manifest = json.loads((folder / f"export/{short}/manifest.json").read_text())
    session = onnxruntime.InferenceSession(folder / f"export/{short}/student.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    found = torch.from_numpy(logits) * manifest["calibration_temperature"]
    # Two steps leave log-probabilities of -600, whose last float32 digit is 6e-5: hence the relative part.
    np.testing.assert_allclose(found.log_softmax(1).numpy(), expected, rtol=1e-6, atol=1e-4)


class NoLayers(nn.Module):
    """Logits from a bare matrix: nothing that could have members."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes, in_chans))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) @ self.weight.T


def test_network_with_nothing_to_convert_is_refused_before_its_teachers_are_trained(tmp_path):
    from timm.models import register_model

    def edc_test_no_layers(*, num_classes: int, in_chans: int, **_: object) -> nn.Module:
        return NoLayers(num_classes, in_chans)

    edc_test_no_layers.__module__ = __name__
    register_model(edc_test_no_layers)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    called = edc("distill", "recipe.yaml", "--set", "network=timm/edc_test_no_layers", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert "has no Conv2d or Linear layer that could become members" in called.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_teacher_with_other_classes_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml", overrides=["data.num_classes=5"])
    torch.save(build_plain(recipe, load_data(recipe.data)).state_dict(), tmp_path / "five.pt")
    teachers = "teachers={checkpoints: [five.pt, five.pt]}"
    called = edc("distill", "recipe.yaml", "--set", teachers, "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert "five.pt: a classifier of 5 classes" in called.stderr
    assert "the data has 3" in called.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["five.pt", "recipe.yaml"]
