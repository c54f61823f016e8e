"""`edc predict`, and a folder in `export/classify.py`: the bench's probabilities, and every image accounted for."""

import csv
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command_line import Called, edc
from conftest import TESTS, Workshop
from PIL import Image
from torchvision.transforms import v2

from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.measure.quality import float_batches
from edc.data import MemoryImages, load_data
from edc.data.folder import IMAGE_SUFFIXES
from edc.deploy.artifact.manifest import Preprocessing, load_manifest, write_manifest
from edc.errors import DataError
from edc.predict.images import as_network_takes
from edc.recipe.loading import load_recipe

CLASSIFY = TESTS.parent / "export/classify.py"
NUM_IMAGES = 12
BAD = ("cut.png", "empty.jpg", "range.tif")


@pytest.fixture(scope="module")
def classify() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify", CLASSIFY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def images(workshop: Workshop) -> MemoryImages:
    """The first test images of the run."""
    test = load_data(load_recipe(workshop.recipe).data).test
    return MemoryImages(test.images[:NUM_IMAGES], test.labels[:NUM_IMAGES])


@pytest.fixture(scope="module")
def photos(images: MemoryImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those images as files, as they come out of a zip that macOS made, with three that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    (folder / "__MACOSX/more").mkdir(parents=True)
    for number, pixels in enumerate(images.images.permute(0, 2, 3, 1).numpy()):
        name = f"{'more/' if number % 2 else ''}{number:02}.png"
        Image.fromarray(pixels).save(folder / name)
        (folder / "__MACOSX" / Path(name).with_name("._" + Path(name).name)).write_bytes(b"\0\5\x16\7")
    (folder / "cut.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (folder / "empty.jpg").touch()
    Image.new("F", (8, 8)).save(folder / "range.tif")
    (folder / ".DS_Store").touch()
    (folder / "notes.txt").write_text("of the camera")
    return folder


@pytest.fixture(scope="module")
def probabilities(workshop: Workshop, images: MemoryImages) -> dict[str, np.ndarray]:
    """What the bench's backend makes of the same images, by the name of their file; in float64."""
    network = open_backend("onnxruntime", threads=1).load(OnnxSource((workshop.artifact / "student.onnx",)))
    (batch,) = float_batches(images)
    logits = torch.from_numpy(network.infer(batch)).double()
    names = (f"{'more/' if number % 2 else ''}{number:02}.png" for number in range(NUM_IMAGES))
    return dict(zip(names, logits.softmax(1).numpy(), strict=True))


def predict(workshop: Workshop, place: Path, out: Path, *options: str) -> Called:
    return edc("predict", workshop.artifact, place, "--out", out, "--threads", "2", *options, cwd=out.parent)


def rows_in(path: Path) -> dict[str, dict[str, str]]:
    """Returns the rows of a CSV file by their image."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def test_probabilities_are_those_of_the_bench_in_every_format(workshop, photos, probabilities, tmp_path):
    called = predict(workshop, photos, tmp_path / "p.csv", "--top", "4", "--json")
    assert called.exit_code == 1  # three of the images are damaged
    rows = rows_in(tmp_path / "p.csv")
    assert list(rows) == sorted([*probabilities, *BAD])
    for name, expected in probabilities.items():
        row = rows[name]
        got = {row[f"class_{place}"]: float(row[f"probability_{place}"]) for place in (1, 2, 3, 4)}
        assert got == pytest.approx({f"class{k}": value for k, value in enumerate(expected)}, rel=1e-5)
        assert (row["class"], row["class_1"]) == (f"class{expected.argmax()}",) * 2
        assert (row["abstained"], row["error"]) == ("false", "")
    predict(workshop, photos, tmp_path / "p.jsonl", "--top", "2")
    lines = {line["image"]: line for line in map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())}
    predict(workshop, photos, tmp_path / "p.parquet")
    from pyarrow import parquet

    table = {row["image"]: row for row in parquet.read_table(tmp_path / "p.parquet").to_pylist()}
    for name, row in rows.items():
        readable = name in probabilities
        assert lines[name]["class"] == table[name]["class"] == (row["class"] or None)
        assert len(lines[name]["top"]) == (2 if readable else 0)
        if readable:
            assert lines[name]["probability"] == pytest.approx(float(row["probability"]), rel=1e-6)
            assert table[name]["probability"] == pytest.approx(float(row["probability"]), rel=1e-6)
        assert lines[name]["error"] == table[name]["error"] == (row["error"] or None)


def test_unreadable_images_and_what_is_no_image_are_named_and_counted(workshop, photos, tmp_path):
    called = predict(workshop, photos, tmp_path / "p.csv", "--json")
    found = called.document
    assert (called.exit_code, found["num_images"]) == (1, NUM_IMAGES + 3)
    assert sum(found["num_by_class"].values()) == NUM_IMAGES
    assert set(found["unreadable"]) == set(BAD)
    assert "it is empty" in found["unreadable"]["empty.jpg"]
    assert "which of them are black and white" in found["unreadable"]["range.tif"]
    assert found["left_out"] == {"hidden": 2, ".txt": 1}  # .DS_Store, and __MACOSX with all that is in it
    assert f"3 of {NUM_IMAGES + 3} images could not be read" in called.stderr
    assert all(name in called.stderr for name in (*BAD, "notes.txt"))
    errors = {name: row["error"] for name, row in rows_in(tmp_path / "p.csv").items()}
    assert {name: why for name, why in errors.items() if why} == found["unreadable"]


def test_a_pipe_among_the_images_has_a_row_that_says_so(workshop, photos, tmp_path):
    """It ended the whole command, without a row for the other images."""
    (tmp_path / "place").mkdir()
    shutil.copy(next(path for path in sorted(photos.rglob("*.png")) if path.name not in BAD), tmp_path / "place/a.png")
    os.mkfifo(tmp_path / "place/b.png")
    called = predict(workshop, tmp_path / "place", tmp_path / "p.csv", "--json")
    assert (called.exit_code, called.document["num_images"]) == (1, 2)
    rows = rows_in(tmp_path / "p.csv")
    assert rows["a.png"]["error"] == ""
    assert "is a pipe, expected a regular file" in rows["b.png"]["error"]


def test_network_abstains_where_its_highest_probability_is_lower(workshop, photos, probabilities, tmp_path):
    highest = sorted(expected.max() for expected in probabilities.values())
    bound = (highest[5] + highest[6]) / 2
    called = predict(workshop, photos, tmp_path / "p.csv", "--min-confidence", f"{bound:.9f}", "--json")
    rows = rows_in(tmp_path / "p.csv")
    for name, expected in probabilities.items():
        assert rows[name]["abstained"] == ("true" if expected.max() < bound else "false")
        assert rows[name]["class"] == ("" if expected.max() < bound else f"class{expected.argmax()}")
        assert float(rows[name]["probability"]) == pytest.approx(expected.max(), rel=1e-5)
    assert called.document["num_abstained"] == 6
    assert sum(called.document["num_by_class"].values()) == NUM_IMAGES - 6


def test_temperature_that_is_not_in_the_file_divides_the_students_logits_alone(workshop, photos, tmp_path, images):
    artifact = tmp_path / "unfolded"
    shutil.copytree(workshop.artifact, artifact)
    manifest = load_manifest(workshop.artifact)
    write_manifest(artifact, manifest.model_copy(update={"temperature_folded": False, "calibration_temperature": 1.75}))
    (batch,) = float_batches(images)
    for file, temperature in (("student.onnx", 1.75), ("baseline/teacher_0.onnx", 1.0)):
        network = open_backend("onnxruntime", threads=1).load(OnnxSource((artifact / file,)))
        expected = (torch.from_numpy(network.infer(batch)[:1]).double() / temperature).softmax(1).max()
        out = tmp_path / f"{temperature}.csv"
        called = edc("predict", artifact, photos / "00.png", "--out", out, "--file", file, cwd=tmp_path)
        assert called.exit_code == 0, called.stderr
        assert float(rows_in(out)["00.png"]["probability"]) == pytest.approx(float(expected), rel=1e-5)


def test_network_that_predicts_one_class_of_the_test_images_is_named_for_each_of_its_files(workshop, photos, tmp_path):
    artifact = tmp_path / "a"
    shutil.copytree(workshop.artifact, artifact)
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["notes"] = {"teacher 1": "predicts `x` for all", "latent_be": "never predicts `y`", "baseline": "left out"}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    for number, (file, words) in enumerate(
        {"student.onnx": "never predicts `y`", "baseline/teacher_1.onnx": "predicts `x` for all",
         "baseline/teacher_0.onnx": "", "baseline/ensemble.onnx": ""}.items()
    ):  # fmt: skip
        out = tmp_path / f"{number}.csv"
        called = edc("predict", artifact, photos, "--out", out, "--file", file, "--json", cwd=tmp_path)
        assert json.loads(called.stdout)["few_classes"] == words
        warning = f"warning: on the run's test images this network {words}"
        assert (warning in called.stderr) == bool(words), called.stderr


def test_openvino_agrees(workshop, photos, probabilities, tmp_path):
    pytest.importorskip("openvino")
    predict(workshop, photos, tmp_path / "p.csv", "--backend", "openvino")
    rows = rows_in(tmp_path / "p.csv")
    got = [float(rows[name]["probability"]) for name in probabilities]
    assert got == pytest.approx([expected.max() for expected in probabilities.values()], abs=1e-4)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["shorter_side_then_center_crop", "exact"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_images_become_what_torchvision_and_classify_py_make_of_them(color, resize, classify):
    pixels = np.random.default_rng(0).integers(0, 256, (47, 31, 3), dtype=np.uint8)
    photo, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6  # lies on its side
    size, shorter = ((12, 12), 15) if resize != "exact" else ((12, 20), None)
    how = Preprocessing(
        color=color, image_size=size, resize=resize, resize_shorter_side=shorter, orientation="exif", dtype="uint8",
        layout="NHWC",
    )  # fmt: skip
    view = v2.Resize(size) if shorter is None else v2.Compose([v2.Resize(shorter), v2.CenterCrop(size)])
    deep = Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + 77)
    cases = {
        encoded(photo, "PNG"): photo,
        encoded(photo.convert("P"), "GIF"): photo.convert("P"),
        encoded(photo, "PNG", exif=exif): photo.transpose(Image.Transpose.ROTATE_270),
        encoded(deep, "PNG"): Image.fromarray(pixels[..., 0]),
    }
    for content, upright in cases.items():
        got = as_network_takes(content, "an image", how)
        expected = np.asarray(view(upright.convert(color))).reshape(*size, -1)
        np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(got, classify.preprocess(io.BytesIO(content), how.model_dump())[0])


def test_image_of_another_size_is_refused_where_nothing_resizes():
    how = Preprocessing(color="RGB", image_size=(8, 8), resize="none")
    with pytest.raises(DataError, match=r"an image: 9 x 8 pixels, this network takes 8 x 8 only"):
        as_network_takes(encoded(Image.new("RGB", (9, 8)), "PNG"), "an image", how)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("p.txt", (), "expected a file that ends in .csv, .parquet, .jsonl"),
        ("there.csv", (), "already exists and is not overwritten without --force"),
        ("folder.csv", ("--force",), "is a folder"),
        ("p.csv", ("--file", "student.plan"), "student.plan is no ONNX file of"),
    ],
)
def test_wrong_request_is_one_message_and_leaves_all_as_it_was(out, options, message, workshop, photos, tmp_path):
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    called = predict(workshop, photos, tmp_path / out, *options)
    assert (called.exit_code, called.stdout) == (2, "")
    assert message in called.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.csv", "there.csv"]


def test_force_replaces_the_file_whole(workshop, photos, tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    assert predict(workshop, photos / "more", tmp_path / "p.csv", "--force").exit_code == 0
    assert (tmp_path / "p.csv").read_text().startswith("image,class,probability,abstained,error\n01.png,class")
    assert [path.name for path in tmp_path.iterdir()] == ["p.csv"]


def test_folder_without_images_and_no_folder_are_refused(workshop, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.txt").touch()
    for place, message in (("docs", "no images"), ("nowhere", "no such folder or image")):
        called = predict(workshop, tmp_path / place, tmp_path / "p.csv")
        assert (called.exit_code, message in called.stderr) == (2, True)
        assert not (tmp_path / "p.csv").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_name_that_is_no_text_is_written_with_its_bytes(workshop, photos, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "00.png").read_bytes())
    assert predict(workshop, tmp_path / "odd", tmp_path / "p.jsonl").exit_code == 0
    assert json.loads((tmp_path / "p.jsonl").read_text())["image"] == r"caf\xe9.png"


def test_classify_py_takes_a_folder_and_finds_the_same(workshop, photos, probabilities, classify):
    command = [sys.executable, "-I", str(CLASSIFY), str(workshop.artifact), str(photos), "--top", "4", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    got = {Path(each["image"]).relative_to(photos).as_posix(): each["top"] for each in found["images"]}
    assert set(got) == set(probabilities)
    for name, expected in probabilities.items():
        by_label = {row["label"]: row["probability"] for row in got[name]}
        assert by_label == pytest.approx({f"class{k}": value for k, value in enumerate(expected)}, rel=1e-5)
    assert {Path(each["image"]).name for each in found["unreadable"]} == set(BAD)
    assert "3 of 15 images could not be read" in done.stderr
    assert "left out 1 files" in done.stderr
    assert set(classify.SUFFIXES) == IMAGE_SUFFIXES


def test_file_that_openvino_must_not_run_is_refused_by_classify_py_too(workshop, classify, tmp_path):
    artifact = tmp_path / "artifact"
    shutil.copytree(workshop.artifact, artifact)
    document = json.loads((artifact / "manifest.json").read_text())
    entry = next(file for file in document["files"] if file["path"] == "student.onnx")
    entry["notes"] = {"not_for_openvino": "2.00 points fewer are right there"}
    (artifact / "manifest.json").write_text(json.dumps(document))
    classify.Classifier(artifact)
    with pytest.raises(classify.UserError, match=r"student\.onnx: not for OpenVINO: 2\.00 points fewer"):
        classify.Classifier(artifact, backend="openvino")


def test_answers_that_are_no_numbers_are_refused_and_nothing_is_written(workshop, photos, tmp_path, monkeypatch):
    """fp16 overflows in some networks; the first class, with a probability of NaN, would be a wrong row."""
    backend = open_backend("onnxruntime", threads=1)
    network = backend.load(OnnxSource((workshop.artifact / "student.onnx",)))
    infer = network.infer
    monkeypatch.setattr(network, "infer", lambda batch: infer(batch) * np.float32("nan"))
    monkeypatch.setattr(backend, "load", lambda source: network)
    monkeypatch.setattr("edc.predict.run.open_backend", lambda name, threads: backend)
    called = edc("predict", workshop.artifact, photos, "--out", tmp_path / "p.csv", cwd=tmp_path)
    assert called.exit_code == 2
    assert "the network answers with NaN or infinity; --file names another file" in called.stderr
    assert not (tmp_path / "p.csv").exists()
