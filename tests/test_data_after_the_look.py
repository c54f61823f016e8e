"""What a look at 1,000 images of a split does not see, is read by the same rules when it is met, or refused by name."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from stranger_files import SIZE, encoded, in_parquet, in_tar, noise, said, section

from edc.data import DataSet, load_data
from edc.data.images import resize_and_crop, training_view
from edc.errors import DataError, RunError
from edc.recipe import Recipe
from edc.runs.distill import HOW_IMAGES_ARE_READ, _as_begun
from edc.runs.folder import TEST_IMAGES, RunFolder

NUM_IMAGES, LAST = 1010, 1009
"""The look at 1,000 of so many images, at equal distances, leaves the last one out."""


def sideways(depth: type) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    shape = (6, 8) if depth is np.uint16 else (6, 8, 3)
    return encoded(noise(1, *shape, dtype=depth), exif=exif)


ODD: dict[str, tuple[bytes, Callable[[np.ndarray], np.ndarray]]] = {
    "turned": (sideways(np.uint8), lambda stored: stored),
    "16 bits": (encoded(noise(2, 6, 8, dtype=np.uint16)), lambda stored: (stored >> 8).astype(np.uint8)),
    "grey": (encoded(noise(3, 6, 8)), lambda stored: stored),
}


def folder(root: Path, kind: str, odd: bytes) -> DataSet:
    """The odd image is the last one of training and test images, of two classes."""
    plain = encoded(noise(0, 6, 8, 3))
    contents = [*[plain] * (NUM_IMAGES - 1), odd]
    for split, images in (("train", contents), ("val", [plain] * 2), ("test", contents)):
        labels = [int(i >= len(images) // 2) for i in range(len(images))]
        if kind == "parquet":
            in_parquet(root / f"{split}-0.parquet", list(images), labels)
        elif kind == "webdataset":
            pairs = zip(images, labels, strict=True)
            rows = [(f"{i:04}.{e}", c) for i, (x, y) in enumerate(pairs) for e, c in (("png", x), ("cls", b"%d" % y))]
            in_tar(root / f"{split}-0.tar", rows)
        else:
            for i, (content, label) in enumerate(zip(images, labels, strict=True)):
                path = root / split / f"c{label}" / f"{i:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    return load_data(section(root, kind))


@pytest.mark.parametrize(("kind", "what"), [("webdataset", "turned"), ("parquet", "16 bits"), ("parquet", "grey")])
def test_image_that_was_not_looked_at_has_the_same_pixels_as_one_that_was(kind, what, tmp_path, capsys):
    odd, expected = ODD[what]
    data = folder(tmp_path, kind, odd)
    assert "looked at" not in said(capsys)
    with Image.open(io.BytesIO(odd)) as image:
        upright = expected(np.asarray(ImageOps.exif_transpose(image)))
    upright = upright if upright.ndim == 3 else upright[:, :, None].repeat(3, 2)
    view = resize_and_crop(Image.fromarray(upright), SIZE, 1.0)
    assert np.array_equal(data.test[LAST][0].permute(1, 2, 0).numpy(), view)
    shape = (upright.shape[1], upright.shape[0])
    seen = data.train.load(LAST, augment_seed=5)[0].permute(1, 2, 0).numpy()
    plain = encoded(Image.fromarray(upright))
    assert Image.open(io.BytesIO(plain)).size == shape
    assert np.array_equal(seen, training_view(plain, "plain", data.train.reading, SIZE, 5))


def test_pixels_without_a_known_white_that_were_not_looked_at_are_refused_by_name(tmp_path):
    data = folder(tmp_path, "webdataset", encoded(noise(0).astype(np.float32)[:, :, 0], "TIFF"))
    for load in (lambda: data.test[LAST], lambda: data.train.load_or_replace(LAST, augment_seed=1)):
        with pytest.raises(DataError, match=r"1009.*floating-point numbers \(mode F\)"):
            load()


@pytest.mark.parametrize(
    ("what", "words"), [("turned", "is turned by EXIF"), ("16 bits", "is grey with 16 bits per pixel")]
)
def test_run_of_an_older_edc_does_not_go_on_over_an_image_that_it_read_otherwise(what, words, tmp_path):
    data = folder(tmp_path / "images", "parquet", ODD[what][0])
    document = {"name": "r", "data": {"kind": "parquet", "image_size": 6}, "network": "wrn10x1"}
    recipe = Recipe.model_validate(document | {"students": {"kd": {"method": "kd"}}})
    run = RunFolder(tmp_path / "run")
    run.claim(recipe, {"the images": data.fingerprint()})
    assert _as_begun(data, run) is data  # nothing has learned from them yet
    (run.student_path("kd")).mkdir(parents=True)
    (run.student_path("kd") / "checkpoint.pt").write_bytes(b"")
    then = _as_begun(data, run)
    assert then.fingerprint() == data.fingerprint()
    then.train.load(0, augment_seed=1)
    for load in (lambda: then.test[LAST], lambda: then.train.load_or_replace(LAST, augment_seed=1)):
        with pytest.raises(RunError, match=rf"1009\]: {words}, which the look .* not found. This run was begun by an"):
            load()
    run.inputs_path.write_text(json.dumps({"the images": data.fingerprint(), HOW_IMAGES_ARE_READ: "as now"}))
    assert _as_begun(data, run) is data


def test_other_test_images_than_when_a_run_began_are_said_and_recorded(tmp_path, capsys):
    recipe = Recipe.model_validate(
        {"name": "r", "data": {"kind": "digits"}, "network": "wrn10x1", "students": {"kd": {"method": "kd"}}}
    )
    run = RunFolder(tmp_path / "run")
    run.claim(recipe, {"the images": "same", TEST_IMAGES: "then"})
    (run.student_path("kd")).mkdir(parents=True)
    (run.student_path("kd") / "checkpoint.pt").write_bytes(b"")
    run.claim(recipe, {"the images": "same", TEST_IMAGES: "then"})
    assert said(capsys) == ""
    run.claim(recipe, {"the images": "same", TEST_IMAGES: "now"})
    assert "its test images are others than when it was trained." in said(capsys)
    assert (run.inputs() or {})[TEST_IMAGES] == "now"
    run.warn_of_other_images("same", test="other again")
    assert "its test images are others" in said(capsys)
