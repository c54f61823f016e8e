"""Data sets of every kind, made here or real; batches that depend on a seed and a position and on nothing else."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.transforms import v2

from edc.data import DataSet, FileImages, MemoryImages, evaluation_batches, load_data, steps_per_epoch, train_batches
from edc.data.batches import crop_and_flip
from edc.data.images import resize_and_crop
from edc.data.names import Names
from edc.data.sources import FASHION_MNIST_PACKAGE
from edc.errors import DataError
from edc.recipe import DataSection
from edc.system.signals import stop_requests

ROOT = Path(__file__).parents[1]
WITH_WORKERS = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 2 worker processes",  # on one core
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",  # Python 3.12 and later
)
CIFAR10 = Path(os.environ.get("EDC_TEST_CIFAR10", ROOT.parent / "shared/data/cifar10"))


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def random_pixels(seed: int, height: int = 12, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folder(folder: Path, classes: tuple[str, ...], per_class: int, *, first_seed: int = 0) -> None:
    """Writes `per_class` images of every class, PNG and JPEG in turn, of different sizes."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = random_pixels(first_seed + 100 * k + i, 10 + i % 3, 12)
            suffix, kind = ((".png", "PNG"), (".JPG", "JPEG"))[i % 2]
            (folder / name / f"{i:02}{suffix}").write_bytes(encoded(pixels, kind))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder with all three splits: 12, 4 and 6 images of each of 2 classes."""
    root = tmp_path / "images"
    for split, per_class, first_seed in (("train", 12, 0), ("val", 4, 1000), ("test", 6, 2000)):
        write_folder(root / split, ("cat", "dog"), per_class, first_seed=first_seed)
    return root


def folder_section(root: Path, **options) -> DataSection:
    return DataSection(kind="image_folder", root=root, image_size=8, num_workers=0, **options)


def all_of(images: FileImages | MemoryImages) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*evaluation_batches(images, batch_size=7), strict=True)
    return torch.cat(pixels), torch.cat(labels)


def rows_of(pixels: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in pixels]


# In memory ------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_three_disjoint_stratified_splits():
    data = load_data(DataSection(kind="digits"))
    assert (len(data.train), len(data.validation), len(data.test)) == (997, 300, 500)
    raw = load_digits()
    expected = Counter(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(raw.images, raw.target, strict=True)
    )
    found: Counter[tuple[bytes, int]] = Counter()
    for split in (data.train, data.validation, data.test):
        found.update(zip(rows_of(split.images), split.labels.tolist(), strict=True))
        shares = torch.bincount(split.labels) / len(split)
        assert (shares - torch.from_numpy(np.bincount(raw.target)) / 1797).abs().max() < 0.005
    assert found == expected
    assert data.image_shape == (1, 8, 8)
    assert data.class_names == tuple("0123456789")


def test_statistics_are_those_of_the_training_images_alone():
    data = load_data(DataSection(kind="digits", train_limit=200))
    pixels = data.train.images.numpy() / 255
    assert len(pixels) == 200
    assert data.mean == pytest.approx([pixels.mean()], abs=1e-4)
    assert data.std == pytest.approx([pixels.std()], abs=1e-4)


def test_split_seed_and_nothing_else_decides_the_split():
    first, again, other = (load_data(DataSection(kind="digits", split_seed=seed)) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_test_images_are_not_in_the_fingerprint_and_training_images_are():
    data = load_data(DataSection(kind="synthetic"))
    changed = MemoryImages(data.test.images.flip(0), data.test.labels)
    same = DataSet(data.train, data.validation, changed, data.class_names, data.image_shape, data.mean, data.std)
    assert same.fingerprint() == data.fingerprint()
    swapped = MemoryImages(data.train.images.flip(0), data.train.labels)
    other = DataSet(swapped, data.validation, data.test, data.class_names, data.image_shape, data.mean, data.std)
    assert other.fingerprint() != data.fingerprint()


def test_synthetic_classes_can_be_told_apart():
    data = load_data(DataSection(kind="synthetic", num_classes=3, num_images=90, validation=30, test=60, image_size=8))
    assert (len(data.train), len(data.validation), len(data.test)) == (90, 30, 60)
    assert torch.bincount(data.train.labels).tolist() == [30, 30, 30]
    means = torch.stack([data.train.images[data.train.labels == k].float().mean(0) for k in range(3)])
    nearest = (data.test.images[:, None].float() - means).flatten(2).norm(dim=2).argmin(1)
    assert (nearest == data.test.labels).float().mean() > 0.95


def test_fashion_mnist_of_the_debian_package():
    if not FASHION_MNIST_PACKAGE.is_dir():
        pytest.skip(f"no {FASHION_MNIST_PACKAGE} (Debian: apt install dataset-fashion-mnist)")
    data = load_data(DataSection(kind="fashion_mnist"))
    assert (len(data.train), len(data.validation), len(data.test)) == (55_000, 5_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.class_names[9] == "Ankle boot"
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.mean == pytest.approx([0.2860], abs=2e-3)  # the figures that everyone normalises with
    assert data.std == pytest.approx([0.3530], abs=2e-3)


def real_cifar10() -> Path:
    pytest.importorskip("pyarrow")
    if not any(CIFAR10.glob("train-*.parquet")):
        pytest.skip(f"no CIFAR-10 parquet files in {CIFAR10} (set EDC_TEST_CIFAR10)")
    return CIFAR10


def test_cifar10_as_the_hub_has_it(tmp_path):
    """The first rows of the real files, which keep the fixed split's order."""
    import pyarrow.parquet as pq

    pixels, labels = [], []
    for split, num_rows in (("train", 700), ("test", 300)):
        file = next(real_cifar10().glob(f"{split}-*.parquet"))
        table = next(pq.ParquetFile(file).iter_batches(num_rows))
        pq.write_table(pq.read_schema(file).empty_table().from_batches([table]), tmp_path / f"{split}-0.parquet")
        for row in table.to_pylist():
            pixels.append(np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))).transpose(2, 0, 1))
            labels.append(row["label"])
    data = load_data(DataSection(kind="cifar10", root=tmp_path, validation=200, train_limit=400))
    assert data.class_names[:3] == ("airplane", "automobile", "bird")
    expected = torch.from_numpy(np.stack(pixels))
    for split, rows in ((data.train, slice(0, 400)), (data.validation, slice(500, 700)), (data.test, slice(700, 1000))):
        assert torch.equal(split.images, expected[rows])
        assert split.labels.tolist() == labels[rows]


@pytest.mark.slow
def test_whole_cifar10_has_the_papers_split_and_statistics():
    data = load_data(DataSection(kind="cifar10", root=real_cifar10()))
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5_000, 10_000)
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    pixels = torch.cat([data.train.images, data.validation.images]).transpose(0, 1).flatten(1).double() / 255
    assert data.mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-3)
    assert data.std == pytest.approx(pixels.std(1).tolist(), abs=1.5e-3)


def write_cifar(root: Path, num_train: int, num_test: int) -> tuple[Tensor, Tensor]:
    """Writes the pickles that torchvision reads as CIFAR-10; returns all training images and labels."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    images, labels, sums = [], [], {}
    for name, _ in (*TORCHVISION_CIFAR10.train_list, *TORCHVISION_CIFAR10.test_list):
        count = num_test if name == "test_batch" else num_train // 5
        entry = {
            "data": generator.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": generator.integers(0, 10, count).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(entry))
        if name != "test_batch":
            images.append(torch.from_numpy(entry["data"]).view(-1, 3, 32, 32))
            labels += entry["labels"]
    meta = pickle.dumps({"label_names": [f"c{k}" for k in range(10)]})
    (folder / "batches.meta").write_bytes(meta)
    for path in folder.iterdir():
        sums[path.name] = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    (root / "sums.json").write_text(json.dumps(sums))
    return torch.cat(images), torch.tensor(labels)


def test_torchvision_cifar_keeps_the_last_images_for_validation(tmp_path, monkeypatch):
    images, labels = write_cifar(tmp_path, 50, 10)
    sums = json.loads((tmp_path / "sums.json").read_text())
    from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10

    # Only the published checksums are replaced: torchvision reads and checks real files.
    for attribute in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(TORCHVISION_CIFAR10, attribute)]
        monkeypatch.setattr(TORCHVISION_CIFAR10, attribute, listed)
    meta = TORCHVISION_CIFAR10.meta | {"md5": sums["batches.meta"]}
    monkeypatch.setattr(TORCHVISION_CIFAR10, "meta", meta)
    data = load_data(DataSection(kind="cifar10", root=tmp_path, download=False, validation=12, train_limit=30))
    assert torch.equal(data.train.images, images[:30])
    assert torch.equal(data.train.labels, labels[:30])
    assert torch.equal(data.validation.images, images[38:])
    assert torch.equal(data.validation.labels, labels[38:])
    assert len(data.test) == 10
    assert data.mean == (0.4915, 0.4821, 0.4464)


# Files ----------------------------------------------------------------------------------------------------------------


def test_folder_splits_are_the_folders(folder):
    data = load_data(folder_section(folder))
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 8, 12)
    assert data.class_names == ("cat", "dog")
    assert data.image_shape == (3, 8, 8)
    pixels, labels = all_of(data.test)
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert data.test.names[0] == "cat/00.png"
    expected = resize_and_crop(Image.open(folder / "test/dog/03.JPG").convert("RGB"), 8, 1.0)
    assert torch.equal(pixels[9], torch.from_numpy(expected).permute(2, 0, 1))


def test_folder_without_splits_is_split_by_the_seed_with_classes_in_proportion(tmp_path):
    write_folder(tmp_path / "images", ("a", "b"), 20)
    data = load_data(folder_section(tmp_path / "images", validation=6, test=10))
    for split, num_images in ((data.train, 24), (data.validation, 6), (data.test, 10)):
        assert torch.bincount(split.labels).tolist() == [num_images // 2] * 2
    names = [*data.train.names, *data.validation.names, *data.test.names]
    assert len(set(names)) == 40
    again = load_data(folder_section(tmp_path / "images", validation=6, test=10))
    other = load_data(folder_section(tmp_path / "images", validation=6, test=10, split_seed=1))
    assert list(data.test.names) == list(again.test.names) != list(other.test.names)


def test_folder_with_val_alone_tests_on_it(folder):
    shutil.rmtree(folder / "test")
    data = load_data(folder_section(folder, validation=4))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 4, 8)
    assert set(data.train.names).isdisjoint(data.validation.names)


def test_train_limit_of_sorted_data_keeps_every_class(folder):
    data = load_data(folder_section(folder, train_limit=6))
    assert torch.bincount(data.train.labels).tolist() == [3, 3]


def test_fingerprint_of_files_follows_their_content_and_not_their_place(folder, tmp_path):
    before = load_data(folder_section(folder)).fingerprint()
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert load_data(folder_section(moved)).fingerprint() == before
    (moved / "train/cat/00.png").write_bytes(encoded(random_pixels(5, 20, 20)))
    assert load_data(folder_section(moved)).fingerprint() != before


@pytest.mark.parametrize("size", [(31, 47), (47, 31), (12, 12), (40, 20), (33, 33), (8, 9), (15, 101)])
@pytest.mark.parametrize("crop_fraction", [0.8, 1.0])
def test_evaluation_view_is_torchvisions_and_the_artifacts(tmp_path, monkeypatch, size, crop_fraction):
    monkeypatch.syspath_prepend(str(ROOT / "export"))
    import classify

    image = Image.fromarray(random_pixels(0, *size))
    shorter = round(12 / crop_fraction)
    expected = np.asarray(v2.CenterCrop(12)(v2.Resize(shorter)(image)))
    np.testing.assert_array_equal(resize_and_crop(image, 12, crop_fraction), expected)
    image.save(tmp_path / "image.png")
    how = {
        "color": "RGB",
        "image_size": [12, 12],
        "interpolation": "bilinear",
        "resize": "shorter_side_then_center_crop",
        "resize_shorter_side": shorter,
        "layout": "NCHW",
        "dtype": "uint8",
    }
    np.testing.assert_array_equal(classify.preprocess(tmp_path / "image.png", how)[0].transpose(1, 2, 0), expected)


def test_training_view_is_a_resized_random_area_or_its_mirror_image(tmp_path):
    """A picture of its own coordinates: every view must be a ramp, rising (falling, if mirrored) to the right."""
    height, width = 60, 80
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.arange(width)[None] * 3
    ramp[..., 1] = np.arange(height)[:, None] * 3
    images = FileImages(
        names=Names.of(["ramp"]),
        labels=torch.zeros(1, dtype=torch.int64),
        read=lambda _index: encoded(ramp),
        size=16,
        crop_fraction=1.0,
        root="",
        file_bytes=torch.zeros(1),
    )
    areas, mirrored = [], []
    for seed in range(300):
        view = images.load(0, augment_seed=seed)[0].float()
        horizontal, vertical = view[0].mean(0), view[1].mean(1)
        mirrored.append(bool(horizontal[0] > horizontal[-1]))
        spans = abs(horizontal[-1] - horizontal[0]) * 16 / 15 / 3, (vertical[-1] - vertical[0]) * 16 / 15 / 3
        assert spans[1] > 0, "upside down"
        areas.append(float(spans[0] * spans[1]) / (height * width))
    assert 0.4 < np.mean(mirrored) < 0.6
    assert 0.06 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1.02
    assert 0.4 < np.mean(areas) < 0.6, "areas are uniform between 8 and 100 %"


# Parquet --------------------------------------------------------------------------------------------------------------


def write_parquet(
    path: Path, images: list[bytes | None], labels: list, *, names: list[str] | None = None, **columns
) -> None:
    """Writes a file as the Hugging Face hub has it: a struct column of bytes and path, class names in the metadata."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image_column, label_column = columns.get("image", "image"), columns.get("label", "label")
    table = pa.table({image_column: [{"bytes": content, "path": None} for content in images], label_column: labels})
    if names:
        features = {label_column: {"names": names, "_type": "ClassLabel"}, image_column: {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two training files sorted by class and a test file; images of 6 x 5 pixels."""
    root = tmp_path / "parquet"
    for part, label in ((0, 0), (1, 1)):
        images = [encoded(random_pixels(100 * part + i, 6, 5)) for i in range(20)]
        write_parquet(root / f"train-0000{part}-of-00002.parquet", images, [label] * 20, names=["no", "yes"])
    images = [encoded(random_pixels(900 + i, 6, 5)) for i in range(6)]
    write_parquet(root / "test-00000-of-00001.parquet", images, [0, 1] * 3, names=["no", "yes"])
    return root


def test_parquet_images_are_decoded_into_memory(parquet):
    data = load_data(DataSection(kind="parquet", root=parquet, validation=8))
    assert data.class_names == ("no", "yes")
    assert data.image_shape == (3, 6, 5)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 6)
    assert torch.equal(data.test.images[3], torch.from_numpy(random_pixels(903, 6, 5)).permute(2, 0, 1))
    known = {
        random_pixels(100 * part + i, 6, 5).transpose(2, 0, 1).tobytes(): part for part in (0, 1) for i in range(20)
    }
    for split in (data.train, data.validation):
        assert [known[row] for row in rows_of(split.images)] == split.labels.tolist()
    assert len({*rows_of(data.train.images), *rows_of(data.validation.images)}) == 40


def test_parquet_sorted_by_class_validates_on_every_class(parquet):
    data = load_data(DataSection(kind="parquet", root=parquet, validation=8, train_limit=10))
    assert torch.bincount(data.validation.labels).tolist() == [4, 4]
    assert torch.bincount(data.train.labels).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        (("train", "validation", "test"), (40, 10, 12)),
        (("train", "valid", "test"), (40, 10, 12)),
        (("train", "valid"), (36, 4, 10)),  # the public validation set is the test set
        (("train",), (33, 3, 4)),
    ],
)
def test_parquet_split_files(tmp_path, splits, sizes):
    lengths = {"train": 40, "validation": 10, "valid": 10, "test": 12}
    for split in splits:
        images = [encoded(random_pixels(i, 4, 4)) for i in range(lengths[split])]
        write_parquet(tmp_path / "data" / f"{split}-0.parquet", images, [i % 2 for i in range(len(images))])
    data = load_data(DataSection(kind="parquet", root=tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == sizes


def test_parquet_with_an_image_size_is_decoded_when_asked_for(parquet):
    data = load_data(DataSection(kind="parquet", root=parquet, validation=8, image_size=4, num_workers=0))
    assert isinstance(data.train, FileImages)
    expected = resize_and_crop(Image.fromarray(random_pixels(903, 6, 5)), 4, 1.0)
    assert torch.equal(data.test[3][0], torch.from_numpy(expected).permute(2, 0, 1))
    moved = parquet.parent / "moved"
    shutil.copytree(parquet, moved)
    again = load_data(DataSection(kind="parquet", root=moved, validation=8, image_size=4))
    assert again.fingerprint() == data.fingerprint()


def test_parquet_grey_images_have_one_channel(tmp_path):
    images = [encoded(random_pixels(i, 4, 4)[..., 0]) for i in range(40)]
    write_parquet(tmp_path / "train-0.parquet", images, [i % 2 for i in range(40)])
    data = load_data(DataSection(kind="parquet", root=tmp_path))
    assert data.image_shape == (1, 4, 4)
    assert set(rows_of(data.test.images)) <= {random_pixels(i, 4, 4)[..., 0].tobytes() for i in range(40)}


def test_parquet_columns_can_be_named(tmp_path):
    images = [encoded(random_pixels(i, 4, 4)) for i in range(40)]
    columns = {"image": "photo", "label": "kind"}
    write_parquet(tmp_path / "train-0.parquet", images, [i % 2 for i in range(40)], **columns)
    with pytest.raises(DataError, match=r"data.image_column: found columns photo, kind, expected image or img"):
        load_data(DataSection(kind="parquet", root=tmp_path))
    data = load_data(DataSection(kind="parquet", root=tmp_path, image_column="photo", label_column="kind"))
    assert len(data.train) == 33


def test_parquet_test_split_without_labels_counts_as_absent(tmp_path):
    """ImageNet on the hub: train, validation, and a test split whose labels are all -1."""
    for split, labels in (("train", [0, 1] * 20), ("validation", [0, 1] * 5), ("test", [-1] * 6)):
        images = [encoded(random_pixels(i, 4, 4)) for i in range(len(labels))]
        write_parquet(tmp_path / f"{split}-0.parquet", images, labels, names=["no", "yes"])
    data = load_data(DataSection(kind="parquet", root=tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)


# Batches --------------------------------------------------------------------------------------------------------------


def crop_and_flip_by_loop(images: Tensor, padding: int, flip: bool, seed: int) -> Tensor:
    """One image at a time, from the same draws: pad with zeros, cut, mirror."""
    generator = torch.Generator().manual_seed(seed)
    num_images, _, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, num_images, 1), generator=generator)
    mirrored = torch.rand((num_images, 1), generator=generator) < 0.5
    result = torch.zeros_like(images)
    for n in range(num_images):
        for y in range(height):
            for x in range(width):
                column = width - 1 - x if flip and mirrored[n] else x
                source_y = y + int(offsets[0, n]) - padding
                source_x = column + int(offsets[1, n]) - padding
                if 0 <= source_y < height and 0 <= source_x < width:
                    result[n, :, y, x] = images[n, :, source_y, source_x]
    return result


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_crop_and_flip_equals_the_loop_over_images(padding, flip):
    images = torch.randint(0, 256, (12, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = crop_and_flip(images, padding=padding, flip=flip, generator=torch.Generator().manual_seed(3))
    assert found.dtype == torch.uint8
    assert torch.equal(found, crop_and_flip_by_loop(images, padding, flip, 3))


def test_crops_reach_every_offset_and_half_are_mirrored():
    images = torch.zeros(4000, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2], images[:, 0, 2, 3] = 255, 100  # the lighter neighbour tells left from right
    views = crop_and_flip(images, padding=2, flip=True, generator=torch.Generator().manual_seed(0))
    bright = views[:, 0] == 255
    assert bright.flatten(1).any(1).all(), "moved by more than the padding"
    places = torch.bincount(bright.flatten(1).float().argmax(1), minlength=25)
    assert ((places - 160).abs() < 70).all()  # uniform over 25: 160 each, sd 12.4
    rows, columns = bright.float().flatten(1).argmax(1) // 5, bright.float().flatten(1).argmax(1) % 5
    inner = (columns > 0) & (columns < 4)
    right = views[torch.arange(4000), 0, rows, (columns + 1).clamp_max(4)] == 100
    assert 0.45 < 1 - right[inner].float().mean() < 0.55


def memory_images(num_images: int = 50) -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(1, 256, (num_images, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return MemoryImages(pixels, torch.arange(num_images))


Sources = dict[str, Callable[[Path], tuple[FileImages | MemoryImages, DataSection]]]
SOURCES: Sources = {
    "memory, crop_flip": lambda _: (memory_images(), DataSection(kind="synthetic", crop_padding=2)),
    "memory, none": lambda _: (memory_images(), DataSection(kind="synthetic", augmentation="none")),
    "files, resized": lambda root: from_folder(root, "resized_crop_flip"),
    "files, resized, not mirrored": lambda root: from_folder(root, "resized_crop"),
    "files, crop_flip": lambda root: from_folder(root, "crop_flip"),
}


def from_folder(root: Path, augmentation: str) -> tuple[FileImages, DataSection]:
    section = folder_section(root, augmentation=augmentation)
    return load_data(section).train, section


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, folder: Path) -> tuple[FileImages | MemoryImages, DataSection]:
    return SOURCES[request.param](folder)


def epoch_of(source, **options) -> list[tuple[Tensor, Tensor]]:
    images, section = source
    settings = {"batch_size": 6, "seed": 1, "epoch": 0} | options
    return list(train_batches(images, section, **settings))


def assert_same(found: Iterator[tuple[Tensor, Tensor]], expected: list[tuple[Tensor, Tensor]]) -> None:
    found = list(found)
    assert len(found) == len(expected) > 0
    for (pixels, labels), (expected_pixels, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(pixels, expected_pixels)
        assert torch.equal(labels, expected_labels)


def test_an_epoch_is_a_permutation_of_whole_batches():
    pixels, labels = (torch.cat(parts) for parts in zip(*epoch_of(SOURCES["memory, none"](Path())), strict=True))
    assert len(labels) == 48  # 50 images: the last incomplete batch is left out
    assert len(set(labels.tolist())) == 48
    assert labels.tolist() != sorted(labels.tolist())
    assert torch.equal(pixels, memory_images().images[labels])


def test_another_epoch_or_seed_is_another_order(source):
    first = epoch_of(source)
    for other in (epoch_of(source, epoch=1), epoch_of(source, seed=2)):
        assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))


def test_augmentation_acts_in_training_and_not_in_evaluation(source):
    images, section = source
    originals = set(rows_of(all_of(images)[0]))
    seen = [row for pixels, _ in epoch_of(source) for row in rows_of(pixels)]
    kept = sum(row in originals for row in seen) / len(seen)
    assert kept == 1 if section.augmentation == "none" else kept < 0.3


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_each_batch(source, num_processes):
    shares = [epoch_of(source, rank=rank, num_processes=num_processes) for rank in range(num_processes)]
    joined = [tuple(torch.cat(parts) for parts in zip(*rows, strict=True)) for rows in zip(*shares, strict=True)]
    assert_same(joined, epoch_of(source))


@pytest.mark.parametrize("first_batch", [1, 3])
def test_resumed_epoch_goes_on_with_the_same_batches(source, first_batch):
    assert_same(epoch_of(source, first_batch=first_batch), epoch_of(source)[first_batch:])
    assert epoch_of(source, first_batch=len(epoch_of(source))) == []


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("augmentation", ["resized_crop_flip", "crop_flip"])
def test_number_of_workers_changes_nothing(folder, augmentation, num_workers):
    images, section = from_folder(folder, augmentation)
    alone = epoch_of((images, section))
    torch.manual_seed(99)  # whatever the global generator is at
    assert_same(epoch_of((images, section.model_copy(update={"num_workers": num_workers}))), alone)


@WITH_WORKERS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_that_gets_the_signal_too_goes_on_working(folder, number):
    """Terminals and schedulers signal every process; the loop finishes its step and saves: it needs its workers."""
    images, section = from_folder(folder, "resized_crop_flip")
    alone = epoch_of((images, section), batch_size=2)
    batches = train_batches(images, section.model_copy(update={"num_workers": 1}), batch_size=2, seed=1, epoch=0)
    with stop_requests():
        first = next(batches)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, number)
        assert_same([first, *batches], alone)


def test_random_view_depends_on_its_seed_and_leaves_the_global_generator_alone(folder):
    images, _ = from_folder(folder, "resized_crop_flip")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = images.load(0, augment_seed=3)[0]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(images.load(0, augment_seed=3)[0], first)
    assert not torch.equal(images.load(0, augment_seed=4)[0], first)


def test_view_that_is_not_mirrored_is_the_same_area_as_the_mirrored_one(folder):
    with_flips, without = (from_folder(folder, each)[0] for each in ("resized_crop_flip", "resized_crop"))
    views = [[images.load(0, augment_seed=seed)[0] for images in (with_flips, without)] for seed in range(40)]
    num_mirrored = sum(torch.equal(a.flip(-1), b) and not torch.equal(a, b) for a, b in views)
    num_same = sum(torch.equal(a, b) for a, b in views)
    assert num_mirrored + num_same == 40
    assert 10 <= num_mirrored <= 30


@pytest.mark.parametrize("num_processes", [1, 2, 3, 60])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_counts_every_image_once(num_processes, batch_size):
    images = memory_images(13)
    rows = [
        labels
        for rank in range(num_processes)
        for _, labels in evaluation_batches(images, batch_size=batch_size, rank=rank, num_processes=num_processes)
    ]
    assert sorted(torch.cat(rows).tolist()) == list(range(13))
    assert all(0 < len(row) <= batch_size for row in rows)


@pytest.mark.parametrize("num_processes", [1, 3, 15])
def test_evaluation_of_files_counts_every_image_once(folder, num_processes):
    images = load_data(folder_section(folder)).test
    found = [
        row
        for rank in range(num_processes)
        for pixels, _ in evaluation_batches(images, batch_size=2, rank=rank, num_processes=num_processes)
        for row in rows_of(pixels)
    ]
    assert sorted(found) == sorted(rows_of(torch.stack([images[i][0] for i in range(12)])))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_batches_lie_where_a_gpu_copies_without_waiting(source):
    images, _ = source
    batches = [*epoch_of(source), *evaluation_batches(images, batch_size=4)]
    assert all(rows.is_pinned() for batch in batches for rows in batch)


# Mistakes -------------------------------------------------------------------------------------------------------------


def refused(section: DataSection, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(section)


def test_missing_folder_is_named(tmp_path):
    refused(folder_section(tmp_path / "nowhere"), rf"data.root: no folder {tmp_path}/nowhere; point data.root")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "fashion_mnist"])
def test_missing_torchvision_data_is_named(tmp_path, kind):
    refused(DataSection(kind=kind, root=tmp_path, download=False), f"data.root: {kind} was not found in {tmp_path}")


def test_missing_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    refused(DataSection(kind="parquet", root=tmp_path), rf"no train-\*.parquet in {tmp_path}")


def test_damaged_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and then nothing")
    refused(DataSection(kind="parquet", root=tmp_path), f"{tmp_path}.*: not readable as parquet")


def damaged(kind: str) -> bytes:
    """Returns an image that Pillow opens, and of which decoding raises something else than OSError and its like."""
    pixels = random_pixels(5, 64, 64)
    if kind == "AVIF":  # a download with zeroed blocks
        content = encoded(pixels, "AVIF")
        start = content.index(b"mdat") + 4
        return content[:start] + bytes(len(content) - start)
    content = bytearray(encoded(pixels, "TIFF"))
    entry = content.index((273).to_bytes(2, "little"))  # StripOffsets, said to be a fraction
    content[entry + 2 : entry + 4] = (5).to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize("kind", ["AVIF", "TIFF"])
def test_damaged_image_of_any_format_is_named_and_can_be_borne(kind, folder):
    """They were a traceback, in training and in predict, whatever max_bad_fraction said."""
    if kind not in Image.SAVE:
        Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    path = next(iter(sorted((folder / "train").rglob("*.png"))))
    path.write_bytes(damaged(kind))
    refused_when_read = load_data(folder_section(folder))
    with pytest.raises(DataError, match=rf"{path.name}: not a readable image"):
        [refused_when_read.train.load(i, augment_seed=0) for i in range(len(refused_when_read.train))]
    borne = load_data(folder_section(folder, max_bad_fraction=0.5)).train
    for i in range(len(borne)):
        borne.load_or_replace(i, augment_seed=0)


def test_empty_folder_is_named(tmp_path):
    refused(folder_section(tmp_path), f"{tmp_path} has 0 class folders, expected one folder per class")


def test_empty_class_folder_is_named(folder):
    (folder / "val/fish").mkdir()
    refused(folder_section(folder), "val: classes fish are not among the training classes")
    (folder / "val/fish").rmdir()
    (folder / "train/eel").mkdir()
    refused(folder_section(folder), "train/eel: no images .* in this class folder")


def test_class_missing_from_a_split_is_named(folder):
    shutil.rmtree(folder / "test/dog")
    (folder / "test/cat2").mkdir()
    refused(folder_section(folder), "test: classes cat2 are not among the training classes")
    (folder / "test/cat2").rmdir()
    (folder / "test/dog").mkdir()
    refused(folder_section(folder), "test/dog: no images")


@WITH_WORKERS
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"GIF89a but not really", "truncated"])
def test_unreadable_image_is_named_by_its_path(folder, content, num_workers):
    path = folder / "train/dog/03.JPG"
    path.write_bytes(path.read_bytes()[:150] if content == "truncated" else content)
    images = load_data(folder_section(folder)).train
    with pytest.raises(DataError, match=rf"{path}: not a readable image"):
        list(evaluation_batches(images, batch_size=4, num_workers=num_workers))


def test_image_that_vanished_is_named_by_its_path(folder):
    images = load_data(folder_section(folder)).train
    path = folder / "train/cat/02.png"
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: cannot be read \(No such file"):
        list(evaluation_batches(images, batch_size=4))


@pytest.mark.parametrize("image_size", [None, 4])
@pytest.mark.parametrize(("content", "reason"), [(b"junk", "its 4 bytes are in no format"), (None, "it is empty")])
def test_unreadable_parquet_image_is_named_by_its_row(parquet, image_size, content, reason):
    images = [encoded(random_pixels(i, 6, 5)) for i in range(5)]
    write_parquet(parquet / "test-00000-of-00001.parquet", [*images, content], [0, 1] * 3, names=["no", "yes"])
    section = DataSection(kind="parquet", root=parquet, validation=8, image_size=image_size, num_workers=0)
    with pytest.raises(DataError, match=rf"image\[5\]: not a readable image \({reason}"):
        list(evaluation_batches(load_data(section).test, batch_size=4))


def test_parquet_images_of_different_sizes_ask_for_an_image_size(parquet):
    images = [encoded(random_pixels(i, 6, 5)) for i in range(5)]
    images.append(encoded(random_pixels(9, 7, 5)))
    write_parquet(parquet / "test-00000-of-00001.parquet", images, [0, 1] * 3, names=["no", "yes"])
    message = r"image\[5\]: 5 x 7 pixels, the first image has 5 x 6; set data.image_size"
    refused(DataSection(kind="parquet", root=parquet, validation=8), message)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"] * 3, "column label is string"),
        ([0, None] * 3, "with 3 nulls, expected an integer class in every row"),
        ([0, 7] * 3, "labels run from 0 to 7, expected 0 to 1"),
    ],
)
def test_labels_that_are_no_classes_are_refused(parquet, labels, message):
    images = [encoded(random_pixels(i, 6, 5)) for i in range(6)]
    write_parquet(parquet / "test-00000-of-00001.parquet", images, labels, names=["no", "yes"])
    refused(DataSection(kind="parquet", root=parquet, validation=8), message)


def test_test_labels_beyond_the_training_classes_are_refused(tmp_path):
    images = [encoded(random_pixels(i, 4, 4)) for i in range(40)]
    write_parquet(tmp_path / "train-0.parquet", images, [0, 1] * 20)
    write_parquet(tmp_path / "test-0.parquet", images[:6], [0, 1, 2] * 2)
    refused(DataSection(kind="parquet", root=tmp_path), "labels run from 0 to 2, expected 0 to 1")


def test_class_count_that_does_not_match_is_refused(folder, parquet):
    refused(DataSection(kind="digits", num_classes=11), "data.num_classes: the recipe says 11, the data has 10 classes")
    refused(folder_section(folder, num_classes=3), "the recipe says 3, the data has 2 classes")
    with pytest.raises(DataError, match=r"data.kind: cifar10, but .* 2 classes"):
        load_data(DataSection(kind="cifar10", root=parquet, validation=8))


@pytest.mark.parametrize("held_out", [5000, 1797, 3])
def test_split_that_cannot_be_made_is_refused(held_out):
    refused(DataSection(kind="digits", validation=held_out), f"data.validation.*{held_out} of 1297 images cannot")


def test_batch_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"training\.batch_size: found 51, but only 50 training images"):
        steps_per_epoch(memory_images(), 51)
    assert steps_per_epoch(memory_images(), 50) == 1
    assert steps_per_epoch(memory_images(), 7) == 7


if sys.platform == "win32":
    pytestmark = pytest.mark.skip(reason="paths in messages are matched as POSIX paths")


@pytest.mark.parametrize("channels", [1, 3])
def test_known_data_sets_are_resized_once_as_pillow_does(channels, tmp_path, monkeypatch):
    """Against a resize of the same pixels by Pillow alone; the statistics are those of what is trained on."""
    from edc.data import sources

    pixels = torch.randint(0, 256, (12, channels, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    whole = sources.in_memory(
        DataSection(kind="synthetic"),
        *(MemoryImages(pixels[part], labels[part]) for part in (slice(0, 6), slice(6, 9), slice(9, 12))),
        ("a", "b", "c"),
    )
    monkeypatch.setattr(sources, "_torchvision", lambda data: whole)
    data = load_data(DataSection(kind="cifar10", image_size=4))
    assert data.image_shape == (channels, 4, 4)
    found = torch.cat([data.train.images, data.validation.images, data.test.images])
    for image, small in zip(pixels, found, strict=True):
        array = image.permute(1, 2, 0).numpy() if channels == 3 else image[0].numpy()
        expected = np.asarray(Image.fromarray(array).resize((4, 4), Image.Resampling.BILINEAR))
        assert np.array_equal(small.permute(1, 2, 0).squeeze(-1).numpy(), expected)
    assert data.mean == pytest.approx((data.train.images.double() / 255).mean((0, 2, 3)).tolist(), abs=1e-4)
    assert torch.equal(data.test.labels, labels[9:])
