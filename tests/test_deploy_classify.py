"""`export/classify.py`, run as a user runs it, against torchvision's preprocessing and torch's softmax."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from edc.deploy.artifact.manifest import ArtifactFile, Manifest, Preprocessing, write_manifest
from edc.deploy.onnx.from_network import onnx_from_network
from edc.system.files import sha256_of

SCRIPT = Path(__file__).parents[1] / "export" / "classify.py"
CLASSES = ("cat", "dog", "Ente")


def network(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 12 * 12, 3)).eval()


def write_artifact(folder: Path, *, channels: int = 3, temperature: float = 2.0, folded: bool = False) -> None:
    path = folder / "student.onnx"
    onnx_from_network(network(channels), path, input_shape=(channels, 12, 12), class_names=CLASSES, metadata={})
    file = ArtifactFile(
        path=path.name,
        role="student",
        format="onnx",
        precision="fp32",
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
    )
    how = Preprocessing(
        color="RGB" if channels == 3 else "L",
        image_size=(12, 12),
        resize="shorter_side_then_center_crop",
        resize_shorter_side=15,
    )
    manifest = Manifest(
        run="demo",
        recipe_sha256="0" * 64,
        created=datetime.now(UTC),
        versions={},
        classes=CLASSES,
        preprocessing=how,
        calibration_temperature=temperature,
        temperature_folded=folded,
        files=(file,),
    )
    write_manifest(folder, manifest)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    write_artifact(folder)
    return folder


def picture(path: Path, width: int = 31, height: int = 47) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def expected(path: Path, *, channels: int, temperature: float) -> torch.Tensor:
    """Preprocess with torchvision and apply softmax in float64."""
    resized = v2.CenterCrop(12)(v2.Resize(15)(Image.open(path).convert("RGB" if channels == 3 else "L")))
    pixels = v2.functional.pil_to_tensor(resized)[None].double() / 255
    with torch.no_grad():
        return (network(channels).double()(pixels)[0] / temperature).softmax(0)


@pytest.mark.parametrize(
    ("channels", "folded", "size"), [(3, False, (31, 47)), (3, True, (50, 20)), (1, False, (12, 12))]
)
def test_probabilities_match_torchvision_and_torch(tmp_path, channels, folded, size):
    write_artifact(tmp_path, channels=channels, folded=folded)
    image = picture(tmp_path / "image.png", *size)
    done = run(tmp_path, image, "--json")
    assert done.returncode == 0, done.stderr
    probabilities = expected(image, channels=channels, temperature=1.0 if folded else 2.0)
    got = {row["label"]: row["probability"] for row in json.loads(done.stdout)["top"]}
    assert list(got) == [CLASSES[i] for i in probabilities.argsort(descending=True)]
    for label, probability in zip(CLASSES, probabilities.tolist(), strict=True):
        assert got[label] == pytest.approx(probability, rel=1e-5)


def test_people_see_labels_and_percentages(artifact, tmp_path):
    done = run(artifact, picture(tmp_path / "image.png"), "--top", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in CLASSES
    assert done.stdout.rstrip().endswith("%")
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no image", "No such file"),
        ("not an image", "not an image that Pillow can read"),
        ("no artifact", "No such file"),
        ("edited by one byte", "SHA-256 differs"),
        ("path outside", "leaves the artifact's folder"),
        ("top 0", "--top: 0"),
    ],
)
def test_mistake_is_one_line_and_exit_2(tmp_path, artifact, case, message):
    folder, image, top = tmp_path / "artifact", picture(tmp_path / "image.png"), "5"
    folder.mkdir()
    for path in artifact.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    match case:
        case "no image":
            image = tmp_path / "nothing.png"
        case "not an image":
            image.write_bytes(b"text")
        case "no artifact":
            folder = tmp_path / "nowhere"
        case "edited by one byte":
            content = bytearray((folder / "student.onnx").read_bytes())
            content[len(content) // 2] ^= 1
            (folder / "student.onnx").write_bytes(content)
        case "path outside":
            text = (folder / "manifest.json").read_text()
            (folder / "manifest.json").write_text(text.replace('"student.onnx"', '"../student.onnx"'))
        case "top 0":
            top = "0"
    done = run(folder, image, "--top", top)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_script_needs_neither_torch_nor_edc():
    text = SCRIPT.read_text()
    imports = [line.split()[1] for line in text.splitlines() if line.strip().startswith(("import ", "from "))]
    assert {name.split(".")[0] for name in imports} == {
        "PIL", "argparse", "hashlib", "importlib", "json", "numpy", "os", "pathlib", "sys",
    }  # fmt: skip
    assert set(re.findall(r'imported\(\n?\s*"([^"]+)"', text)) == {"onnxruntime", "openvino", "cuda.bindings.runtime"}


def test_image_too_long_to_scale_is_refused_in_one_line_and_a_shorter_one_is_not(artifact, tmp_path):
    long = tmp_path / "long.png"
    Image.new("L", (1, 1_000_000)).save(long)
    done = run(artifact, long)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{long}: 1x1000000 pixels are too long to scale; crop it" in done.stderr
    Image.new("L", (1, 100_000)).save(long)  # 15 x 1,500,000 pixels on the way
    assert run(artifact, long).returncode == 0
