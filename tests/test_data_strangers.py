"""Image files as cameras, microscopes, Roboflow, Kaggle and the hub leave them: the right pixels, or one message."""

import importlib.util
import io
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from stranger_files import KINDS, SIZE, encoded, loaded, noise, pixels_of, said, section, write

from edc.benchmark.request import _load_data
from edc.data import load_data
from edc.data.files.decode import Reading
from edc.data.images import resize_and_crop, training_view
from edc.deploy.export import preprocessing_of, sample_images
from edc.errors import DataError, RunError
from edc.recipe import Recipe
from edc.runs.folder import RunFolder

CLASSIFY = Path(__file__).parents[1] / "export/classify.py"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def classify() -> ModuleType:
    spec = importlib.util.spec_from_file_location("classify", CLASSIFY)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Depth ----------------------------------------------------------------------------------------------------------------


def tiff_of_12_bits(pixels: np.ndarray) -> bytes:
    """Returns an uncompressed TIFF of one strip, 12 bits per pixel: two pixels in three bytes."""
    pairs = pixels.reshape(-1, 2).astype(np.int64)
    strip = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)
    height, width = pixels.shape
    tags = [
        (256, width),
        (257, height),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(strip)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)


DEEP: dict[str, tuple[str, Callable[[np.ndarray], bytes], Callable[[np.ndarray], np.ndarray]]] = {
    "PNG": ("png", encoded, lambda deep: deep >> 8),
    "TIFF": ("tif", lambda deep: encoded(deep, "TIFF"), lambda deep: deep >> 8),
    "TIFF, Motorola": (
        "tif",
        lambda deep: encoded(Image.frombytes("I;16B", deep.shape[::-1], deep.astype(">u2").tobytes()), "TIFF"),
        lambda deep: deep >> 8,
    ),
    "TIFF, white is 0": (
        "tif",
        lambda deep: encoded(deep, "TIFF", tiffinfo={262: 0}),
        lambda deep: (65535 - deep) >> 8,
    ),
    "TIFF, 12 bits": ("tiff", lambda deep: tiff_of_12_bits(deep >> 4), lambda deep: deep >> 8),
    "PGM": ("pgm", lambda deep: b"P5 6 6 65535\n" + deep.astype(">u2").tobytes(), lambda deep: deep >> 8),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DEEP)
def test_grey_images_of_16_bits_have_their_upper_8(name, kind, tmp_path, capsys, classify):
    suffix, encode, expected = DEEP[name]
    deep = [noise(i, SIZE, SIZE, dtype=np.uint16) for i in range(4)]
    data = loaded(tmp_path, kind, [encode(one) for one in deep], suffix=suffix)
    for split in ("validation", "test"):
        for found, one in zip(pixels_of(data, split), deep, strict=True):
            assert np.array_equal(found, expected(one).astype(np.uint8)[:, :, None].repeat(3, 2))
    assert "4 of 4 images looked at are grey with 16 bits per pixel, of which the upper 8 are used" in said(capsys)
    how = preprocessing_of(data).model_dump() | {"layout": "NHWC", "dtype": "uint8"}
    by_script = classify.preprocess(io.BytesIO(encode(deep[0])), how)[0]
    assert np.array_equal(by_script, expected(deep[0]).astype(np.uint8)[:, :, None].repeat(3, 2))


def test_grey_parquet_of_16_bits_without_an_image_size_has_one_channel(tmp_path):
    deep = [noise(i, SIZE, SIZE, dtype=np.uint16) for i in range(4)]
    data = loaded(tmp_path, "parquet", [encoded(one) for one in deep], image_size=None)
    assert data.image_shape == (1, SIZE, SIZE)
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(np.stack(deep) >> 8).to(torch.uint8))


def test_colour_of_16_bits_has_its_upper_8(tmp_path):
    deep = noise(0, SIZE, SIZE, 3, dtype=np.uint16)
    content = b"P6 6 6 65535\n" + deep.astype(">u2").tobytes()
    data = loaded(tmp_path, "image_folder", [content] * 2, suffix="ppm")
    assert np.abs(pixels_of(data)[0].astype(int) - (deep >> 8)).max() <= 1  # Pillow scales this format by 255 / 65535


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "what"), [(np.float32, "floating-point numbers"), (np.int32, "integers of 32 bits")])
def test_pixels_without_a_known_white_are_refused_by_name_before_training(kind, dtype, what, tmp_path, classify):
    strange = encoded(noise(0, SIZE, SIZE, dtype=np.uint8).astype(dtype), "TIFF")
    good = [encoded(noise(i)) for i in range(4)]
    for split in ("train", "val"):
        write(tmp_path, kind, split, good)
    write(tmp_path, kind, "test", [*good[:3], strange])
    with pytest.raises(
        DataError, match=rf"(003\.png|image\[3\]): its pixels are {what} \(mode .\), and the file does not"
    ):
        load_data(section(tmp_path, kind))
    how = {"color": "RGB", "image_size": (SIZE, SIZE), "interpolation": "bilinear", "resize": "none"}
    with pytest.raises(classify.UserError, match="does not say which of its values"):
        classify.preprocess(io.BytesIO(strange), how)


# Orientation ----------------------------------------------------------------------------------------------------------


def turned_by_exif(orientation: int, kind: str = "PNG", *, width: int = 8, height: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(orientation, height, width, 3), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


def seen_by_people(content: bytes) -> np.ndarray:
    """Returns the image as `datasets` gives it: turned by Pillow's own function."""
    with Image.open(io.BytesIO(content)) as image:
        return resize_and_crop(ImageOps.exif_transpose(image).convert("RGB"), SIZE, 1.0)


def as_stored(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return resize_and_crop(image.convert("RGB"), SIZE, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_turned_upright_by_exif_in_every_kind_and_by_the_artifact(kind, tmp_path, capsys, classify):
    contents = [turned_by_exif(k, encoding) for k in range(1, 9) for encoding in ("PNG", "JPEG")]
    data = loaded(tmp_path / "a", kind, contents)
    expected = [seen_by_people(content) for content in contents]
    for split in ("validation", "test"):
        assert all(np.array_equal(a, b) for a, b in zip(pixels_of(data, split), expected, strict=True))
    calibration = sample_images(data.train, len(data.train), seed=0)[0]
    known = {one.tobytes() for one in expected}
    assert {(one * 255).round().astype(np.uint8).transpose(1, 2, 0).tobytes() for one in calibration} <= known
    assert "14 of 16 images looked at are turned upright as their EXIF data says" in said(capsys)
    how = preprocessing_of(data).model_dump()
    assert how["orientation"] == "exif"
    for content, right in zip(contents, expected, strict=True):
        script = classify.preprocess(io.BytesIO(content), how | {"layout": "NHWC", "dtype": "uint8"})[0]
        assert np.array_equal(script, right)


@pytest.mark.parametrize("kind", KINDS)
def test_orientation_stored_leaves_images_as_an_older_edc_did(kind, tmp_path, capsys, classify):
    contents = [turned_by_exif(k, "JPEG") for k in range(1, 9)]
    data = loaded(tmp_path, kind, contents, orientation="stored")
    expected = [as_stored(content) for content in contents]
    assert all(np.array_equal(a, b) for a, b in zip(pixels_of(data), expected, strict=True))
    assert "EXIF" not in said(capsys)
    old = preprocessing_of(data).model_dump(exclude={"orientation"}) | {"layout": "NHWC", "dtype": "uint8"}
    assert np.array_equal(classify.preprocess(io.BytesIO(contents[5]), old)[0], expected[5])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 8])
def test_training_view_of_a_turned_image_is_that_of_the_upright_one(orientation, scale):
    """The area is drawn from the upright image, also where libjpeg decodes at a fraction of the size."""
    smooth = Image.fromarray(noise(1, 4, 5, 3)).resize((60 * scale, 40 * scale), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = encoded(smooth, "JPEG", quality=100, subsampling=0, exif=exif)
    upright = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(turned))), "JPEG", quality=100, subsampling=0)
    for seed in range(3):
        found = training_view(turned, "a", Reading(), 12, seed).astype(int)
        assert np.abs(found - training_view(upright, "b", Reading(), 12, seed)).max() <= 4


def test_exif_data_that_cannot_be_read_says_nothing(tmp_path):
    content = encoded(noise(0), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    data = loaded(tmp_path, "image_folder", [content] * 2)
    assert np.array_equal(pixels_of(data)[0], noise(0))


@pytest.mark.parametrize("place", [0.3, 0.9, 1.0])
def test_png_that_is_damaged_is_refused_though_its_exif_data_is_asked_for(place, tmp_path, classify):
    """EXIF data may come last in a PNG, so Pillow decodes it first, and forgets an error if it is asked again."""
    content = bytearray(encoded(noise(0, 40, 40, 3)))
    at = int(place * (len(content) - 30))
    content[at : at + 8] = bytes(8)
    write(tmp_path, "image_folder", "train", [encoded(noise(i)) for i in range(20)])
    write(tmp_path, "image_folder", "test", [bytes(content)] * 2)
    data = load_data(section(tmp_path))
    with pytest.raises(DataError, match=r"000\.png: not a readable image"):
        pixels_of(data)
    how = preprocessing_of(data).model_dump()
    with pytest.raises(classify.UserError):
        classify.preprocess(io.BytesIO(content), how)


def test_parquet_in_memory_is_turned_too(tmp_path):
    contents = [turned_by_exif(6, width=SIZE, height=SIZE) for _ in range(4)]
    data = loaded(tmp_path, "parquet", contents, image_size=None)
    assert np.array_equal(pixels_of(data)[0], seen_by_people(contents[0]))
    assert not np.array_equal(pixels_of(data)[0], as_stored(contents[0]))


# Runs that were begun by an older edc ---------------------------------------------------------------------------------


def ppm(seed: int) -> bytes:
    return b"P6 6 6 255\n" + noise(seed).tobytes()


DIGEST_OF_PPM = "746122a434db84b6fa11d0f543ab14acca224d4c8b900c2c736338e51e1a54c7"
"""What edc 0.1.0 gave this folder before images were turned."""


def test_data_sets_that_are_read_as_before_have_the_digest_they_had(tmp_path):
    data = loaded(tmp_path, "image_folder", [ppm(i) for i in range(6)], suffix="ppm")
    assert data.fingerprint() == DIGEST_OF_PPM


@pytest.mark.parametrize("kind", KINDS)
def test_data_sets_that_are_read_otherwise_have_another_digest(kind, tmp_path):
    contents = [turned_by_exif(k) for k in range(1, 9)]
    now = loaded(tmp_path / "exif", kind, contents).fingerprint()
    stored = load_data(section(tmp_path / "exif", kind, orientation="stored")).fingerprint()
    grey = load_data(section(tmp_path / "exif", kind, orientation="stored", channels=1)).fingerprint()
    assert len({now, stored, grey}) == 3
    upright = loaded(tmp_path / "none", kind, [encoded(noise(k, 6, 8, 3)) for k in range(1, 9)])
    both = [load_data(section(tmp_path / "none", kind, orientation=o)).fingerprint() for o in (None, "stored")]
    assert both == [upright.fingerprint()] * 2


def recipe_of(tmp_path: Path) -> Recipe:
    document = {"name": "r", "data": {"kind": "image_folder", "image_size": 6}, "network": "wrn10x1"}
    return Recipe.model_validate(document | {"students": {"kd": {"method": "kd"}}})


def test_run_that_learned_from_images_as_an_older_edc_read_them_says_so(tmp_path, capsys):
    run, recipe = RunFolder(tmp_path / "run"), recipe_of(tmp_path)
    run.claim(recipe, {"the images": "as then"})
    run.warn_of_other_images("as then")
    assert said(capsys) == ""
    run.warn_of_other_images("as now")
    assert "an older edc read them otherwise: it turned none by EXIF (data.orientation: stored" in said(capsys)
    (run.student_path("kd")).mkdir(parents=True)
    (run.student_path("kd") / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(
        RunError, match=r"other content of the images than there is now.*an older edc read them otherwise"
    ):
        run.claim(recipe, {"the images": "as now"})


def test_new_fields_leave_the_digests_of_recipes_as_they_were(tmp_path):
    recipe = recipe_of(tmp_path)
    assert not {"channels", "orientation"} & set(recipe.data.identity())
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"orientation": "stored"})})
    assert changed.digest() != recipe.digest()


def test_bench_reads_images_as_the_manifest_says(tmp_path):
    contents = [turned_by_exif(6, "JPEG") for _ in range(2)]
    data = loaded(tmp_path, "image_folder", contents)
    recipe = SimpleNamespace(data=section(tmp_path))
    for orientation, expected in (("exif", seen_by_people), ("stored", as_stored)):
        manifest: Any = SimpleNamespace(
            preprocessing=SimpleNamespace(orientation=orientation), classes=data.class_names
        )
        found = _load_data(tmp_path, manifest, recipe, None)
        assert np.array_equal(pixels_of(found)[0], expected(contents[0]))
