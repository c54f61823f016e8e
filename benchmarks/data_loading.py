"""Is the loader or the network the limit? Images per second of reading, decoding and augmenting, and of training steps.

    python benchmarks/data_loading.py RECIPE [--data-root DIR] [--workers 0 1 2] [--images 256] [--rounds 5]
                                      [--set a.b=value]

The loader is `train_batches` itself, timed from when each worker has delivered a batch. A step is that of each network
of the recipe, on images that lie ready in memory. One process is measured; a machine with several GPUs runs one such
loader for each. With --data-root, the recipe's own images are read. Without, JPEG files of 500 x 375 pixels are made,
about as large as ImageNet's, and read from an image folder, WebDataset shards and parquet in turns. Also timed, on one
core: what an image costs in each decoder that was tried.

Prints markdown for results/.
"""

import argparse
import io
import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from edc.data import DataSet, FileImages, MemoryImages, evaluation_batches, load_data, train_batches
from edc.data import parquet as parquet_module
from edc.data.images import training_view
from edc.recipe import Recipe
from edc.recipe.loading import load_recipe
from edc.runs.cost import estimate_costs
from edc.system.machine import num_cpus

LOADER_BATCH = 32
"""Images a batch of the loader; a worker makes one batch at a time, so this changes no rate."""
ROW_GROUP = 100
"""Images a row group, as the Hugging Face hub writes them."""


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="edc-data-loading-") as folder:
        if options.data_root is None:
            os.environ["XDG_CACHE_HOME"] = folder  # the index of shards that will be gone
            sources = made_sources(options, Path(folder))
        else:
            recipe = load_recipe(options.recipe, overrides=options.set, data_root=options.data_root)
            sources = {recipe.data.kind: (recipe, load_data(recipe.data))}
        loader = loader_rows(sources, options)
        recipe, data = next(iter(sources.values()))
        network = network_rows(recipe, data)
        if isinstance(data.train, FileImages):
            decoder_rows(data.train, options.images)
    for name, rates in loader.items():
        verdict(name, rates, network)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=256, help="images to load in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="override a field of the recipe")
    return parser.parse_args()


Sources = dict[str, tuple[Recipe, DataSet]]


def made_sources(options: argparse.Namespace, folder: Path) -> Sources:
    """Returns the same photographs as a folder, shards and parquet, with the recipe changed to read them."""
    num_images = 2 * (options.images + LOADER_BATCH * max(*options.workers, 1))
    photographs = [photograph(i) for i in range(num_images)]
    kilobytes = sum(map(len, photographs)) / num_images / 1000
    print(f"{num_images} JPEG files of 500 x 375 pixels, {kilobytes:.0f} kB each on average\n")
    sources: Sources = {}
    for kind, write in (("image_folder", write_folder), ("webdataset", write_shards), ("parquet", write_parquet)):
        for split, first, step in (("train", 1, 1), ("val", 0, 16), ("test", 8, 16)):
            chosen = [i for i in range(num_images) if (i % 8 if split == "train" else i % step == first)]
            write(folder / kind, split, chosen, photographs)
        made = [f"data.kind={kind}", "data.num_classes=2", "data.unlabelled=false", "data.validation=null"]
        recipe = load_recipe(options.recipe, overrides=[*options.set, *made], data_root=folder / kind)
        sources[kind] = (recipe, load_data(recipe.data))
    recipe = sources["parquet"][0]
    parquet_module.IN_MEMORY_BYTES = 0  # as files of more than 1 GB are read
    sources["parquet, row groups from disk"] = (recipe, load_data(recipe.data))
    return sources


def photograph(number: int) -> bytes:
    """Returns a JPEG of smooth colours under the grain that gives it the size of one of ImageNet's, about 110 kB."""
    draws = np.random.default_rng(number)
    colours = Image.fromarray(draws.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    grain = draws.normal(0, 14, (375, 500, 1)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_folder(root: Path, split: str, chosen: list[int], photographs: list[bytes]) -> None:
    for k, i in enumerate(chosen):
        folder = root / split / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(photographs[i])


def write_shards(root: Path, split: str, chosen: list[int], photographs: list[bytes]) -> None:
    root.mkdir(exist_ok=True)
    with tarfile.open(root / f"{split}-000000.tar", "w") as shard:
        for k, i in enumerate(chosen):
            for name, content in ((f"{i}.cls", str(k % 2).encode()), (f"{i}.jpg", photographs[i])):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def write_parquet(root: Path, split: str, chosen: list[int], photographs: list[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(exist_ok=True)
    images = pa.array([{"bytes": photographs[i], "path": None} for i in chosen])
    table = pa.table({"image": images, "label": pa.array([k % 2 for k in range(len(chosen))], pa.int64())})
    name = {"val": "validation"}.get(split, split)
    pq.write_table(table, root / f"{name}-00000-of-00001.parquet", row_group_size=ROW_GROUP)


def loader_rows(sources: Sources, options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Prints images per second of the training loader, sources and numbers of workers in turns; returns the medians."""
    measured: dict[tuple[str, int], list[float]] = {turn: [] for turn in product(sources, options.workers)}
    evaluated: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(options.rounds):
        for name, workers in random.Random(number).sample(list(measured), len(measured)):
            measured[name, workers].append(training_rate(*sources[name], workers, options.images))
        for name, (_, data) in sources.items():
            batches = evaluation_batches(data.test, batch_size=min(LOADER_BATCH, max(len(data.test) // 2, 1)))
            evaluated[name].append(rate(batches, options.images, skipped=1))
    print(f"Images per second, {num_cpus()} CPUs; median of {options.rounds} rounds (smallest to largest)\n")
    print("| images from |" + "".join(f" {w} workers |" for w in options.workers) + " evaluation view, 0 workers |")
    print("|---|" + "---|" * (len(options.workers) + 1))
    for name in sources:
        cells = [spread(measured[name, workers]) for workers in options.workers]
        print(f"| {name} | {' | '.join([*cells, spread(evaluated[name])])} |")
    print()
    return {name: {w: statistics.median(measured[name, w]) for w in options.workers} for name in sources}


def spread(rates: list[float]) -> str:
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"


def training_rate(recipe: Recipe, data: DataSet, workers: int, num_images: int) -> float:
    section = recipe.data.model_copy(update={"num_workers": workers})
    batch_size = min(LOADER_BATCH, len(data.train))
    skipped = max(min(workers, num_cpus()), 1)

    def epochs() -> Iterator[Any]:
        for epoch in range(2 + num_images // len(data.train)):
            yield from train_batches(data.train, section, batch_size=batch_size, seed=0, epoch=epoch)

    return rate(epochs(), num_images, skipped=skipped)


def rate(batches: Iterator[Any], num_images: int, *, skipped: int) -> float:
    """Returns images per second after the first `skipped` batches, over `num_images` or what there is."""
    for _ in range(skipped):
        next(batches)
    count, started = 0, time.perf_counter()
    for pixels, _ in batches:
        count += len(pixels)
        if count >= num_images:
            break
    return count / (time.perf_counter() - started)


def network_rows(recipe: Recipe, data: DataSet) -> dict[str, float]:
    """Prints and returns images per second of each training step on images in memory."""
    num_images = 4 * recipe.training.batch_size
    pixels = torch.randint(0, 256, (num_images, *data.image_shape), dtype=torch.uint8)
    labels = torch.arange(num_images) % data.num_classes
    ready = replace(data, train=MemoryImages(pixels, labels))
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    costs = estimate_costs(recipe, ready, accelerator=accelerator)
    print(f"| network, batches of {recipe.training.batch_size}, {accelerator.device} | images / s |\n|---|---|")
    found = {cost.name: recipe.training.batch_size / cost.seconds_per_step for cost in costs}
    for name, images_per_second in found.items():
        print(f"| {name} | {images_per_second:.1f} |")
    print()
    return found


def decoder_rows(images: FileImages, num_images: int) -> None:
    """Prints milliseconds an image of ways to get from the file's bytes to pixels."""
    contents = [images.read(i) for i in range(min(num_images, len(images)))]
    decoders: dict[str, Callable[[bytes], object]] = {
        "Pillow, whole image": lambda content: np.asarray(Image.open(io.BytesIO(content)).convert("RGB")),
        "torchvision.io.decode_image, whole image": torchvision_decode,
        "training view (decoded smaller where it may be)": lambda content: training_view(
            content, "", 3, images.size, 1
        ),
    }
    print("| decoder, one core | ms an image |\n|---|---|")
    for name, decode in decoders.items():
        decode(contents[0])
        started = time.perf_counter()
        for content in contents:
            decode(content)
        print(f"| {name} | {1000 * (time.perf_counter() - started) / len(contents):.2f} |")
    print()


def torchvision_decode(content: bytes) -> torch.Tensor:
    from torchvision.io import ImageReadMode, decode_image

    return decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)


def verdict(source: str, loader: dict[int, float], network: dict[str, float]) -> None:
    workers, fastest = max(loader.items(), key=lambda row: row[1])
    name, hungriest = max(network.items(), key=lambda row: row[1])
    if fastest < hungriest:
        print(
            f"- {source}: the loader is the limit. {workers} workers deliver {fastest:.0f} images / s, "
            f"training {name} takes {hungriest:.0f}."
        )
    else:
        enough = min(number for number, found in loader.items() if found >= hungriest)
        print(
            f"- {source}: the network is the limit. Training {name} takes {hungriest:.1f} images / s, and "
            f"{enough} workers deliver {loader[enough]:.0f}."
        )


if __name__ == "__main__":
    main()
