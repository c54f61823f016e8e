"""Is the loader or the network the limit? Images a second of reading, decoding and augmenting, and of training steps.

    python benchmarks/data_loading.py RECIPE [--data-root DIR] [--workers 0 1 2] [--images 512] [--set a.b=value]

The loader is `train_batches` itself, with each number of worker processes, timed from the second batch on (the first
waits for the workers to start). A step is that of each network of the recipe on images that lie ready in memory. One
process is measured; a machine with several GPUs runs one such loader for each. Without --data-root, 256 JPEG files of
500 x 375 pixels are made. Also timed, on one core: what an image costs in each decoder that was tried.

Prints markdown for results/.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from edc.cost import estimate_costs
from edc.data import DataSet, FileImages, MemoryImages, evaluation_batches, load_data, train_batches
from edc.data.images import training_view
from edc.load_recipe import load_recipe
from edc.machine import num_cpus
from edc.recipe import Recipe


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        root, settings = options.data_root, list(options.set)
        if root is None:
            root = make_photographs(Path(folder))
            settings += ["data.kind=image_folder", "data.num_classes=2", "data.unlabelled=false", "data.validation=8"]
        recipe = load_recipe(options.recipe, overrides=settings, data_root=root)
        data = load_data(recipe.data)
        loader = loader_rows(recipe, data, options.workers, options.images)
        network = network_rows(recipe, data)
        if isinstance(data.train, FileImages):
            decoder_rows(data.train, options.images)
    verdict(loader, network)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=512, help="images to load in each row")
    parser.add_argument("--set", action="append", default=[], help="override a field of the recipe")
    return parser.parse_args()


def loader_rows(recipe: Recipe, data: DataSet, workers: list[int], num_images: int) -> dict[int, float]:
    """Prints and returns images a second of the training loader by number of workers."""
    batch_size = min(recipe.training.batch_size, max(num_images // 8, 1), len(data.train))
    print(f"| loader, batches of {batch_size}, {num_cpus()} CPUs | images / s |\n|---|---|")
    found = {}
    for number in workers:
        section = recipe.data.model_copy(update={"num_workers": number})

        def epochs(section=section):  # type: ignore[no-untyped-def]
            for epoch in range(1 + num_images // len(data.train)):
                yield from train_batches(data.train, section, batch_size=batch_size, seed=0, epoch=epoch)

        found[number] = rate(epochs(), num_images)
        note = "" if number <= num_cpus() else f" (no more than {num_cpus()} are started)"
        print(f"| training view, {number} workers{note} | {found[number]:.0f} |")
    batches = evaluation_batches(data.test, batch_size=min(batch_size, max(len(data.test) // 4, 1)))
    print(f"| evaluation view, 0 workers | {rate(batches, num_images):.0f} |\n")
    return found


def rate(batches, num_images: int) -> float:  # type: ignore[no-untyped-def]
    """Returns images a second from the second batch on, over `num_images` or what there is."""
    next(batches)
    count, started = 0, time.perf_counter()
    for pixels, _ in batches:
        count += len(pixels)
        if count >= num_images:
            break
    return count / (time.perf_counter() - started)


def network_rows(recipe: Recipe, data: DataSet) -> dict[str, float]:
    """Prints and returns images a second of each training step on images in memory."""
    num_images = 4 * recipe.training.batch_size
    pixels = torch.randint(0, 256, (num_images, *data.image_shape), dtype=torch.uint8)
    labels = torch.arange(num_images) % data.num_classes
    accelerator = Accelerator()
    costs = estimate_costs(recipe, replace(data, train=MemoryImages(pixels, labels)), accelerator=accelerator)
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


def verdict(loader: dict[int, float], network: dict[str, float]) -> None:
    workers, fastest = max(loader.items(), key=lambda row: row[1])
    name, hungriest = max(network.items(), key=lambda row: row[1])
    if fastest < hungriest:
        print(
            f"The loader is the limit: {fastest:.0f} images / s with {workers} workers, {name} takes {hungriest:.0f}."
        )
    else:
        enough = min(number for number, found in loader.items() if found >= hungriest)
        print(
            f"The network is the limit: {name} takes {hungriest:.1f} images / s, and {enough} workers deliver as many."
        )


def make_photographs(root: Path, num_images: int = 256) -> Path:
    random = np.random.default_rng(0)
    for i in range(num_images):
        folder = root / ("test" if i % 8 == 0 else "train") / f"class{i // 8 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        colours = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        colours.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return root


if __name__ == "__main__":
    main()
