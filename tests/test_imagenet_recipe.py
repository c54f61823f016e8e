"""The ImageNet recipes on a synthetic ImageNet: 1,000 classes of real JPEG files at 224 px, twenty steps, whole way.

The student, the method and the data are the recipe's; batches of 4, and two small teachers that nobody trained.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_line import edc
from data_files import WITH_WORKERS
from PIL import Image

from edc.networks import build_network
from edc.recipe import NetworkSection

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), WITH_WORKERS]

RECIPES = Path(__file__).parents[1] / "recipes"
NUM_CLASSES, BATCH_SIZE, NUM_STEPS = 1000, 4, 20
SMALL = "timm/mobilenetv3_small_050"
"""A network that 2 cores evaluate in no time, for teachers that nobody trained; the student is the recipe's."""


def photograph(number: int) -> bytes:
    """Returns a JPEG of 300 x 240 pixels."""
    colours = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colours).resize((300, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/<class>/ with an image of each class; val and test with an image of some, which makes the test quick."""
    root = tmp_path_factory.mktemp("imagenet")
    for first_seed, (split, step) in enumerate((("train", 1), ("val", 20), ("test", 20))):
        for k in range(0, NUM_CLASSES, step):
            folder = root / split / f"n{k:08}"
            folder.mkdir(parents=True)
            (folder / f"{split}{k:05}.JPEG").write_bytes(photograph(3 * k + first_seed))
    return root


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two untrained networks of 1,000 classes: a state dict at 112 px and an exported program at 96 px."""
    folder = tmp_path_factory.mktemp("teachers")
    section = NetworkSection(name=SMALL)
    half = (0.5, 0.5, 0.5)
    entries: list[dict[str, Any]] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = build_network(section, num_classes=NUM_CLASSES, image_shape=(3, 96, 96), mean=half, std=half)
        network = network.network.eval()
        if seed == 0:
            torch.save(network.state_dict(), folder / "a.pth")
            entries.append({"file": str(folder / "a.pth"), "network": SMALL, "input_size": 112, "allow_weak": True})
        else:
            dynamic = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(network, (torch.rand(2, 3, 96, 96),), dynamic_shapes=dynamic)
            torch.export.save(program, folder / "b.pt2")
            entries.append(
                {"file": str(folder / "b.pt2"), "input_size": 96, "mean": half, "std": half, "allow_weak": True}
            )
    return entries


def as_folder(imagenet: Path, _root: Path) -> Path:
    return imagenet


def as_shards(imagenet: Path, root: Path) -> Path:
    root.mkdir()
    for split, num_shards in (("train", 4), ("val", 2), ("test", 1)):
        files = sorted((imagenet / split).rglob("*.JPEG"))
        for number in range(num_shards):
            with tarfile.open(root / f"imagenet1k-{split}-{number:04}.tar", "w") as shard:
                for path in files[number::num_shards]:
                    label = str(int(path.parent.name[1:])).encode()
                    for name, content in ((f"{path.stem}.jpg", path.read_bytes()), (f"{path.stem}.cls", label)):
                        member = tarfile.TarInfo(name)
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
    return root


def as_unlabelled_folder(imagenet: Path, root: Path) -> Path:
    """train/ without class folders; the classes are those of val and test together."""
    (root / "train").mkdir(parents=True)
    for number, path in enumerate(sorted((imagenet / "train").rglob("*.JPEG"))):
        os.link(path, root / "train" / path.name)
        folder = root / ("val" if number % 2 else "test") / path.parent.name
        folder.mkdir(parents=True)
        os.link(path, folder / path.name)
    return root


SOURCES: dict[str, Callable[[Path, Path], Path]] = {
    "imagenet_r18": as_folder,
    "imagenet_r18_shards": as_shards,
    "imagenet_r18_unlabelled": as_unlabelled_folder,
}


@pytest.mark.parametrize("name", SOURCES)
def test_imagenet_r18_runs_twenty_steps_exports_and_benches(name, imagenet, teachers, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # for the index of the shards
    root = SOURCES[name](imagenet, tmp_path / "data")
    settings = (
        f"teachers={json.dumps({'checkpoints': teachers})}",
        "students={latent_be_tdiv_sdiv: {method: latent_be, perturbation: tdiv_sdiv}}",
        f"data.train_limit={BATCH_SIZE * NUM_STEPS}",
        f"training.batch_size={BATCH_SIZE}",
        "training.epochs=1",
        "training.warmup_epochs=0",
        "training.precision=fp32",
        "data.num_workers=1",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    recipe = RECIPES / f"{name}.yaml"
    distilled = edc("distill", recipe, "--data-root", root, "--device", "cpu", "--json", *options, cwd=tmp_path)
    assert distilled.exit_code == 0, distilled.stderr
    student = tmp_path / "runs" / name / "students/latent_be_tdiv_sdiv"
    assert json.loads((student / "metrics.jsonl").read_text().splitlines()[-1])["step"] == NUM_STEPS
    rows = {row["subject"]: row for row in distilled.document["rows"]}
    assert rows["teacher 0"]["raw"]["nll"] == pytest.approx(np.log(NUM_CLASSES), rel=0.2)  # nobody trained it

    exported = edc("export", f"runs/{name}", "--max-batch", "4", "--json", cwd=tmp_path)
    assert exported.exit_code == 0, exported.stderr
    model = onnx.load(tmp_path / "export" / name / "student.onnx", load_external_data=False)
    (images,), (logits,) = (
        [[d.dim_value for d in tensor.type.tensor_type.shape.dim[1:]] for tensor in tensors]
        for tensors in (model.graph.input, model.graph.output)
    )
    assert (images, logits) == ([3, 224, 224], [NUM_CLASSES])
    num_weights = sum(int(np.prod(weight.dims)) for weight in model.graph.initializer)
    assert num_weights == pytest.approx(11_689_512, rel=0.001)  # ResNet-18; BatchNorm is fused

    # Corruptions would be 21 times 334 images of 224 px for each network: a quarter of an hour.
    quickly = ("--quick", "--no-robustness", "--backends", "torch,onnxruntime")
    benched = edc("bench", f"export/{name}", *quickly, "--json", cwd=tmp_path)
    assert benched.exit_code == 0, benched.stderr
    ran = {(row["subject"], row["backend"]) for row in benched.document["rows"] if not row["reason_not_run"]}
    assert {("latent_be_tdiv_sdiv", "onnxruntime"), ("ensemble, in turn", "onnxruntime")} <= ran
