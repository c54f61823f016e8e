"""The sources of images: one function per kind, each returning a `DataSet`."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from edc.data import data_set
from edc.data.bad_images import BadImages
from edc.data.data_set import DataSet
from edc.data.extra import ExtraImages
from edc.data.files.classes import require_names
from edc.data.images import Images, MemoryImages, crop_fraction_of, resize_and_crop
from edc.errors import DataError, first_line
from edc.method.losses import NO_LABEL
from edc.recipe import DataSection, ExtraSection
from edc.recipe.data_section import FILE_KINDS
from edc.seeding import generator_for

__all__ = ["load_data", "load_training_data"]

# Per-channel statistics of the training sets, as the papers' code has them.
CIFAR10_STATISTICS = (0.4915, 0.4821, 0.4464), (0.2472, 0.2437, 0.2617)
CIFAR100_STATISTICS = (0.5072, 0.4866, 0.4410), (0.2673, 0.2564, 0.2760)
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist": 10}
FASHION_MNIST_PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist


def load_data(data: DataSection) -> DataSet:
    """Returns the data set that `data` describes.

    Raises:
        DataError: it is missing, empty, unreadable, or its classes are not what the recipe says.
    """
    match data.kind:
        case "digits":
            loaded = _digits(data)
        case "fashion_mnist" | "cifar10" | "cifar100":
            loaded = _torchvision(data.model_copy(update={"image_size": None}))
            if data.image_size is not None:
                loaded = _resized(data, loaded)
        case "image_folder":
            from edc.data.folder import load_image_folder

            loaded = load_image_folder(data)
        case "webdataset":
            from edc.data.webdataset import load_webdataset

            loaded = load_webdataset(data)
        case "parquet":
            from edc.data.parquet import load_parquet

            loaded = load_parquet(data)
        case "synthetic":
            loaded = _synthetic(data)
    require_names(loaded.class_names)
    if data.num_classes is not None and data.num_classes != loaded.num_classes:
        raise DataError(
            f"data.num_classes: the recipe says {data.num_classes}, the data has {loaded.num_classes} classes"
        )
    return loaded


def load_training_data(data: DataSection) -> DataSet:
    """Returns the data set, and beside it the images without labels of `data.extra`, which only training asks for.

    Raises:
        DataError: as `load_data` does, for either kind; or extra images of another shape than the labelled ones.
    """
    labelled = load_data(data)
    if not data.extra:
        return labelled
    parts = []
    for number, section in enumerate(data.extra):
        field = f"data.extra.{number}" if len(data.extra) > 1 else "data.extra"
        try:
            images = _extra_images(data, section, num_channels=labelled.image_shape[0])
        except DataError as error:
            raise DataError(_about_extra(str(error), field)) from None
        images = data_set.stratified_limit(_without_labels(images, section, field), section.limit, data.split_seed)
        if images.image_shape != labelled.image_shape:
            found, expected = _shape_in_words(images.image_shape), _shape_in_words(labelled.image_shape)
            raise DataError(
                f"{field}: images of {found}, expected {expected} as those with labels have. data.image_size resizes "
                "both; grey images and images in colour cannot be mixed"
            )
        parts.append(images)
    return replace(labelled, extra=ExtraImages(tuple(parts), data.extra_share))


def _extra_images(data: DataSection, section: ExtraSection, *, num_channels: int) -> Images:
    """Returns the images of one section of `data.extra`, as a labelled set of that kind would have them."""
    if section.kind == "remainder":
        whole = load_data(data.model_copy(update={"train_limit": None}))
        return data_set.left_out(whole.train, data)
    own = ("kind", "root", "download", "max_bad_fraction", "image_column", "num_images")
    shared = ("image_size", "crop_fraction", "orientation", "split_seed", "num_workers")
    update = {field: getattr(section, field) for field in own} | {field: getattr(data, field) for field in shared}
    update["channels"] = data.channels or (3 if num_channels == 3 else None)  # grey images are no others in colour
    update["num_classes"] = data.num_classes if section.kind == "synthetic" else None
    read = DataSection.model_construct(**update, unlabelled=section.kind in FILE_KINDS)
    match section.kind:
        case "image_folder":
            from edc.data.folder import load_unlabelled_folder

            return load_unlabelled_folder(read)
        case "webdataset":
            from edc.data.webdataset import load_unlabelled_shards

            return load_unlabelled_shards(read)
        case "parquet":
            from edc.data.parquet import load_unlabelled_parquet

            return load_unlabelled_parquet(read)
    return load_data(read).train


def _without_labels(images: Images, section: ExtraSection, field: str) -> Images:
    labels = torch.full((len(images),), NO_LABEL)
    if isinstance(images, MemoryImages):
        return MemoryImages(images.images, labels)
    bad = BadImages(section.max_bad_fraction, num_lost=images.bad.num_lost, section=field)
    return replace(images, labels=labels, bad=bad)


def _about_extra(message: str, field: str) -> str:
    """Returns a reader's message about `data` as one about `field`, where `--data-root` says nothing."""
    message = re.sub(
        r"(?<![\w/.])data\.(?=(root|max_bad_fraction|image_column|kind|image_size)\b)", f"{field}.", message
    )
    return message.replace(f"{field}.root or --data-root", f"{field}.root")


def _shape_in_words(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]} x {shape[1]} pixels in {shape[0]} channel{'s' * (shape[0] > 1)}"


def _digits(data: DataSection) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels in 17 grey levels; test 500, validation 300."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    pixels = torch.from_numpy(np.round(raw.images * 255 / 16).astype(np.uint8))[:, None]
    everything = MemoryImages(pixels, torch.from_numpy(raw.target.astype(np.int64)))
    rest, test = data_set.stratified_split(everything, data.test or 500, data.split_seed)
    train, validation = data_set.stratified_split(rest, data.validation or 300, data.split_seed)
    return in_memory(data, train, validation, test, tuple("0123456789"))


def _torchvision(data: DataSection) -> DataSet:
    from torchvision import datasets

    dataset_class = {
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }[data.kind]
    if data.kind == "fashion_mnist" and data.root is None and FASHION_MNIST_PACKAGE.is_dir():
        return _fashion_mnist_files(data, FASHION_MNIST_PACKAGE)
    root = data.root or Path("data")
    if any(root.glob("train-*.parquet")):  # the same images as the Hugging Face hub has them
        from edc.data.parquet import load_parquet

        loaded = load_parquet(data)
        if loaded.num_classes != NUM_CLASSES[data.kind]:
            raise DataError(f"data.kind: {data.kind}, but {root} has images of {loaded.num_classes} classes")
        return loaded
    try:
        train_set = dataset_class(root, train=True, download=data.download)
        test_set = dataset_class(root, train=False, download=data.download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"data.root: {data.kind} was not found in {root.absolute()} and could not be downloaded "
            f"({first_line(error)}). Put torchvision's copy there, or point --data-root at it."
        ) from None
    everything, test = _from_torchvision(train_set), _from_torchvision(test_set)
    train, validation = data_set.split_at(everything, data.validation or 5000)
    return in_memory(data, train, validation, test, tuple(train_set.classes))


def _resized(data: DataSection, loaded: DataSet) -> DataSet:
    """Returns a data set in memory with every image resized once, as a consumer of the artifact resizes a file."""
    assert data.image_size is not None

    def resized(images: Images) -> MemoryImages:
        assert isinstance(images, MemoryImages)
        pixels = np.stack(
            [
                resize_and_crop(Image.fromarray(image), data.image_size or 0, crop_fraction_of(data))
                for image in images.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
            ]
        )
        return MemoryImages(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), images.labels)

    train, validation, test = (resized(split) for split in (loaded.train, loaded.validation, loaded.test))
    shape = (loaded.image_shape[0], data.image_size, data.image_size)
    return DataSet(train, validation, test, loaded.class_names, shape, *data_set.channel_statistics(train))


def _from_torchvision(source: Any) -> MemoryImages:
    pixels = torch.as_tensor(source.data)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return MemoryImages(pixels, torch.as_tensor(source.targets, dtype=torch.int64))


def _fashion_mnist_files(data: DataSection, folder: Path) -> DataSet:
    """The IDX files as Debian's package dataset-fashion-mnist installs them."""
    import gzip

    def read(name: str, header_bytes: int) -> np.ndarray:
        path = folder / f"{name}.gz"
        try:
            return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)
        except (OSError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); reinstall dataset-fashion-mnist") from None

    def split(prefix: str) -> MemoryImages:
        pixels = read(f"{prefix}-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)
        labels = read(f"{prefix}-labels-idx1-ubyte", 8).astype(np.int64)
        return MemoryImages(torch.from_numpy(pixels.copy()), torch.from_numpy(labels))

    from torchvision.datasets import FashionMNIST

    train, validation = data_set.split_at(split("train"), data.validation or 5000)
    return in_memory(data, train, validation, split("t10k"), tuple(FashionMNIST.classes))


def _synthetic(data: DataSection) -> DataSet:
    """Coloured gradients with noise, one orientation and colour a class: learnable in seconds, for smoke tests."""
    size, num_classes = data.image_size or 16, data.num_classes or 4
    generator = generator_for(data.split_seed, "synthetic")
    prototypes = torch.rand((num_classes, 3, 4, 4), generator=generator)
    prototypes = torch.nn.functional.interpolate(prototypes, size=(size, size), mode="bilinear")

    def split(num_images: int) -> MemoryImages:
        labels = torch.arange(num_images) % num_classes
        noise = torch.randn((num_images, 3, size, size), generator=generator) * 0.15
        return MemoryImages(((prototypes[labels] + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels)

    names = tuple(f"class{k}" for k in range(num_classes))
    held_out = data.validation or max(num_classes, data.num_images // 4)
    return in_memory(data, split(data.num_images), split(held_out), split(data.test or held_out), names)


def in_memory(
    data: DataSection, train: Images, validation: Images, test: Images, class_names: tuple[str, ...]
) -> DataSet:
    """Returns the data set of three splits in memory, with the statistics of its (limited) training images."""
    train = data_set.limit(train, data.train_limit)
    assert isinstance(train, MemoryImages)
    known = {"cifar10": CIFAR10_STATISTICS, "cifar100": CIFAR100_STATISTICS}
    mean, std = known[data.kind] if data.kind in known else data_set.channel_statistics(train)
    return DataSet(train, validation, test, class_names, train.image_shape, mean, std)
