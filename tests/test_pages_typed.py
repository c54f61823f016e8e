"""What the pages say to type, typed: each block of shell lines goes through bash as it stands, where its page says.

What is shortened says so: a bench gets `--quick` and one backend, and docs/own-checkpoints.md's recipe small images
and networks, three epochs and random weights, README's five epochs. A store that cannot be had becomes a folder.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from conftest import TESTS
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

pytestmark = pytest.mark.slow

ROOT = TESTS.parent
SHORTER = ("--quick", "--no-robustness", "--backends onnxruntime", "--threads 1")
Floats = Sequence[float]
SIZE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = {"crack": (200, 40, 40), "dust": (40, 180, 60), "ok": (40, 60, 200)}


def blocks(page: str, *, having: str) -> list[str]:
    """Returns the page's blocks of shell lines that have these words."""
    found = re.findall(r"^```(?:sh|bash)\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in found if having in block]


def typed(block: str, folder: Path, *, may_fail: str | None = None, instead: dict[str, str] | None = None) -> str:
    """Returns what the lines of `block` print in `folder`, benches shortened; ends the test if one of them fails.

    Args:
        may_fail: words of a line that judges what was measured here, so that it may exit with 1, too.
        instead: what stands on the page, and what is typed in its place.
    """
    for there, here in (instead or {}).items():
        assert there in block
        block = block.replace(there, here)
    lines = [_shortened(line) for line in block.splitlines()]
    lines = [f"{line} || [ $? = 1 ]" if may_fail and may_fail in line else line for line in lines]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # edc of this environment
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
        cwd=folder,
        env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback (most recent call last)" not in done.stdout + done.stderr, done.stderr[-4000:]
    return done.stdout + done.stderr


def _shortened(line: str) -> str:
    command = line.partition("#")[0].rstrip()
    missing = [option for option in SHORTER if option.split()[0] not in command]
    return " ".join([command, *missing]) if "edc bench" in command else command


# Digits: bench.md and deploying.md -----------------------------------------------------------------------------------


SHORT_DIGITS = (
    "recipes/digits.yaml --set training.epochs=2 --set training.warmup_epochs=1 "
    "--set students.latent_be_split.epochs=3 --device cpu --threads 1"
)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of recipes/digits.yaml, of two epochs."""
    folder = tmp_path_factory.mktemp("digits")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    typed(f"edc distill {SHORT_DIGITS}", folder)
    return folder


def test_tutorial_md(tmp_path: Path):
    """Its blocks in their order; what it installs is here, and it has photos to predict."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(load_digits().images[:6]):
        Image.fromarray(np.round(image * 255 / 16).astype(np.uint8)).save(tmp_path / f"photos/{number}.png")
    _demo, install, *others = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/tutorial.md").read_text(), re.M | re.S)
    looks = "\n".join(line for line in install.splitlines() if not line.startswith("pip "))
    typed(looks, tmp_path)
    distill, export, bench, predict = others
    typed(distill, tmp_path, instead={"recipes/digits.yaml": SHORT_DIGITS})
    typed(export, tmp_path, may_fail="int8")
    typed(bench, tmp_path)
    typed(predict, tmp_path)
    with (tmp_path / "preds.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6


def test_readme_md_results(digits: Path):
    (block,) = blocks("README.md", having="--batch 1,64")
    said = typed(block, digits, instead={"finetune_long": "digits"})
    assert "timing" in said
    assert "at batch 64" in said


def test_bench_md(digits: Path):
    export, bench = *blocks("docs/bench.md", having="edc export"), *blocks("docs/bench.md", having="--compare")
    said = typed(export, digits, may_fail="int8-cpu")
    assert "export/digits-kd" in said
    assert "(int8-cpu), 6 of 6" in said
    assert {path.name for path in (digits / "export/digits-kd").iterdir()} >= {"student.onnx", "manifest.json"}
    (digits / "main").mkdir()
    first, *others = bench.splitlines()
    typed(f"{first}\ncp export/digits/bench.json main/", digits)
    said = typed("\n".join(others), digits, may_fail="--compare")
    assert "digits-kd" in said
    assert "against the saved bench" in said


def test_deploying_md(digits: Path):
    triton, shared = *blocks("docs/deploying.md", having="--triton"), *blocks("docs/deploying.md", having="edc push")
    typed(triton, digits)
    assert list(digits.glob("export/digits/triton/*/config.pbtxt"))
    push, pull = shared.splitlines()
    store = {"s3://models": f"file://{digits}/models"}
    typed(push, digits, instead=store)
    (digits / "there").mkdir()
    typed(pull, digits / "there", instead=store)
    pulled = digits / "there/export/digits"
    assert (pulled / "student.onnx").read_bytes() == (digits / "export/digits/student.onnx").read_bytes()


@pytest.mark.skipif(not find_spec("tensorrt_rtx"), reason="needs tensorrt-rtx-cu13")
def test_deploying_md_engines(digits: Path):
    (engines,) = blocks("docs/deploying.md", having="--sm")
    typed(engines, digits)
    assert list(digits.glob("export/digits/*.rtx"))


# The owner's: own-checkpoints.md, choosing.md, README.md -------------------------------------------------------------


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what docs/own-checkpoints.md's recipe names: photos, and four networks that tell them apart."""
    folder, draws = tmp_path_factory.mktemp("owned"), np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 16), ("test", 16)):
        for name, colour in COLOURS.items():
            (folder / "photos" / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.clip(np.array(colour) + draws.normal(0, 60, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / split / name / f"{k}.png")
    shutil.copytree(folder / "photos/test", folder / "new_photos")
    recipe = yaml.safe_load(shortened_recipe())
    (folder / "models").mkdir()
    for number, checkpoint in enumerate(recipe["teachers"]["checkpoints"]):
        network = checkpoint["network"]
        network = network if isinstance(network, dict) else {"name": network}
        save_as_trainers_do(taught(folder, number, **network), folder / checkpoint["file"])
    for number in range(3):  # README.md's models
        save_as_trainers_do(taught(folder, number, name="torchvision/resnet18"), folder / f"models/fold{number}.ckpt")
    return folder


SMALLER = {
    "224": f"{SIZE}",
    "start: pretrained": "start: random",
    "epochs: 40": "epochs: 3",
    "timm/resnet50": "timm/test_resnet",
    "torchvision/resnet34": "torchvision/resnet18",
    "timm/efficientnet_b0": "timm/test_efficientnet",
}


def shortened_recipe() -> str:
    """Returns the recipe that docs/own-checkpoints.md shows first, smaller."""
    page = (ROOT / "docs/own-checkpoints.md").read_text()
    recipe: str = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    for there, here in SMALLER.items():
        assert there in recipe
        recipe = recipe.replace(there, here)
    return recipe


def taught(folder: Path, seed: int, *, name: str, mean: Floats = (), std: Floats = ()) -> nn.Module:
    """Returns the network of the library, taught until it knows all training photos, normalised so or as there."""
    torch.manual_seed(seed)
    library, model = name.split("/")
    create = timm.create_model if library == "timm" else torchvision.models.get_model
    network: nn.Module = create(model, num_classes=len(COLOURS))
    of_library = getattr(network, "default_cfg", {"mean": MEAN, "std": STD})
    mean, std = mean or of_library["mean"], std or of_library["std"]
    files = sorted((folder / "photos/train").glob("*/*.png"))
    images = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255 for file in files])
    labels = torch.tensor([sorted(COLOURS).index(file.parent.name) for file in files])
    images = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(200):
        if step % 10 == 0 and bool((network.eval()(images).argmax(1) == labels).all()):
            break
        optimiser.zero_grad()
        nn.functional.cross_entropy(network.train()(images), labels).backward()
        optimiser.step()
    return network.eval()


def save_as_trainers_do(network: nn.Module, path: Path) -> None:
    """Writes the weights as the suffix of the file has them: a state dict, Lightning's checkpoint, or safetensors."""
    weights = network.state_dict()
    match path.suffix:
        case ".ckpt":
            torch.save({"state_dict": {f"model.{key}": value for key, value in weights.items()}, "epoch": 3}, path)
        case ".safetensors":
            save_file(weights, path)
        case _:
            torch.save(weights, path)


def test_own_checkpoints_md(owned: Path):
    (owned / "panels.yaml").write_text(shortened_recipe())
    look, whole = blocks("docs/own-checkpoints.md", having="edc distill")
    assert "lightning.ckpt" in typed(look, owned)
    typed(blocks("docs/choosing.md", having="--dry-run")[0], owned, instead={"RECIPE": "panels.yaml"})
    typed(whole, owned)
    with (owned / "preds.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16 * len(COLOURS)


def test_readme_md(owned: Path):
    (owned / "preds.csv").unlink(missing_ok=True)  # the other page's
    shorter = {"edc distill photos.yaml": "edc distill photos.yaml --set training.epochs=5"}
    typed(blocks("README.md", having="edc init")[0], owned, instead=shorter)
    with (owned / "preds.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(Path(row["image"]).parent.name == row["class"] for row in rows)
    assert right > 0.8 * len(rows) == 0.8 * 16 * len(COLOURS)
