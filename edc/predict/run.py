"""A folder of images through one file of an artifact: classes with their probabilities, in a file that is whole."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edc import metrics
from edc.benchmark.backends import open_backend
from edc.benchmark.backends.contract import Loaded, OnnxSource
from edc.deploy.artifact.feed import as_fed
from edc.deploy.artifact.manifest import ArtifactFile, Manifest, load_manifest, verify_files
from edc.deploy.onnx.checked import read_arithmetic
from edc.errors import ArtifactError, DataError
from edc.predict.images import Asked, Pixels, images_at
from edc.predict.table import Row, require_writable, rows_to
from edc.train.progress import training_progress

__all__ = ["PredictBackend", "PredictOptions", "Predicted", "predict"]

PredictBackend = Literal["onnxruntime", "openvino", "onnxruntime-cuda"]
MOST_AT_ONCE, BATCHES_AHEAD = 64, 3
_TEACHER = re.compile(r"teacher \d+")


@dataclass(frozen=True)
class PredictOptions:
    """What is asked of the images, and what runs them."""

    file: str | None = None
    """Which file of the artifact; None: the student's fp32 ONNX."""
    backend: PredictBackend = "onnxruntime"
    threads: int = 1
    top: int = 1
    min_confidence: float = 0.0
    """The network abstains where its highest probability is lower."""
    force: bool = False
    """Whether a file that is there may be replaced."""


@dataclass
class Predicted:
    """What was found, for a summary; each image is in the file of predictions."""

    file: str
    calibration: str
    """Which temperature the probabilities have, in words."""
    num_images: int
    left_out: dict[str, int]
    """Files that are no images, by kind."""
    few_classes: str = ""
    """What the manifest says of a network that predicts one or few classes of the run's test images."""
    num_abstained: int = 0
    num_by_class: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Images that could not be read, and why."""

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.num_abstained += row.abstained
            if row.error:
                self.unreadable[row.image] = row.error
            elif not row.abstained:
                self.num_by_class[row.top[0][0]] += 1


def predict(artifact: Path, place: Path, out: Path, options: PredictOptions) -> Predicted:
    """Writes to `out` what a file of the artifact makes of each image at `place`, and returns what was found.

    Raises:
        RequestError: `out` may not be written.
        ArtifactError: the artifact or the file is missing, damaged, or no ONNX.
        DataError: no images.
    """
    require_writable(out, force=options.force)
    manifest = load_manifest(artifact)
    entry = _chosen(manifest, options.file, artifact)
    verify_files(artifact, manifest.model_copy(update={"files": (entry,)}))
    read_arithmetic(artifact / entry.path)
    asked = images_at(place)
    asked.left_out.report(str(place))
    backend = open_backend(options.backend, threads=options.threads)
    source = OnnxSource((artifact / entry.path,), not_for_openvino=entry.not_for_openvino)
    backend.prepare(source)
    network = backend.load(source)
    temperature, calibration = _temperature_left(manifest, entry)
    left_out = {kind: num for kind, (num, _) in asked.left_out.kinds.items()}
    found = Predicted(entry.path, calibration, len(asked), left_out, few_classes=_few_classes(manifest, entry))
    num_top = min(options.top, len(manifest.classes))
    at_once = min(MOST_AT_ONCE, entry.max_batch or 1)
    with (
        rows_to(out, num_top=num_top) as write,
        training_progress("predict", first_step=0, total_steps=len(asked), visible=True) as progress,
    ):
        for first, images in _batches(asked, manifest, at_once=at_once, num_threads=options.threads):
            probabilities = _probabilities(network, images, manifest, temperature)
            rows = _rows(asked, first, images, probabilities, manifest.classes, num_top, options.min_confidence)
            write(rows)
            found.add(rows)
            progress.step(first + len(images), num_images=len(images))
    return found


def _chosen(manifest: Manifest, wanted: str | None, artifact: Path) -> ArtifactFile:
    """Returns the file called `wanted`, or the student's fp32 one; only ONNX files run here."""
    models = [file for file in manifest.files if file.format == "onnx"]
    students = [file for file in models if file.role == "student" and file.precision == "fp32"]
    chosen = [file for file in models if file.path == wanted] if wanted else students
    if not chosen:
        names = ", ".join(file.path for file in models) or "none"
        engine = " (engines run in export/classify.py)" if any(file.path == wanted for file in manifest.files) else ""
        raise ArtifactError(
            f"--file: {wanted or 'the student in fp32'} is no ONNX file of {artifact}{engine}; it has {names}"
        )
    return chosen[0]


def _few_classes(manifest: Manifest, entry: ArtifactFile) -> str:
    """Returns the manifest's note on the classes that this file's network predicts; notes are by network."""
    named = {"teacher": f"teacher {entry.member}", "ensemble": "ensemble"}
    others = [name for name in manifest.notes if name not in ("baseline", "ensemble") and not _TEACHER.fullmatch(name)]
    label = named.get(entry.role) or next(iter(others), "")
    return manifest.notes.get(label, "")


def _temperature_left(manifest: Manifest, entry: ArtifactFile) -> tuple[float, str]:
    """Returns what the logits must still be divided by, and what that makes of them: the temperature is the student's.

    A merged ensemble has that of its members in its graph.
    """
    if entry.role != "student":
        return 1.0, "as the file has them: the manifest's temperature is the student's"
    calibrated = f"calibrated on validation images (temperature {manifest.calibration_temperature:.4g})"
    if manifest.calibration_temperature == 1:
        calibrated = "without a temperature: none was fitted on validation images, or it is 1"
    elif "int8" in entry.precision:
        calibrated = f"{calibrated[:-1]}, fitted for the network in fp32)"
    return (1.0 if manifest.temperature_folded else manifest.calibration_temperature), calibrated


def _batches(
    asked: Asked, manifest: Manifest, *, at_once: int, num_threads: int
) -> Iterator[tuple[int, list[Pixels | DataError]]]:
    """Yields (number of the first, images or why they cannot be read), read ahead by threads."""

    def read(index: int) -> Pixels | DataError:
        try:
            return asked.pixels(index, manifest.preprocessing)
        except DataError as error:
            return error

    waiting: deque[tuple[int, list[Future[Pixels | DataError]]]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for first in range(0, len(asked), at_once):
                rows = range(first, min(first + at_once, len(asked)))
                waiting.append((first, [pool.submit(read, row) for row in rows]))
                if len(waiting) >= BATCHES_AHEAD:
                    yield _read(waiting.popleft())
            while waiting:
                yield _read(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _read(batch: tuple[int, list[Future[Pixels | DataError]]]) -> tuple[int, list[Pixels | DataError]]:
    return batch[0], [future.result() for future in batch[1]]


def _probabilities(
    network: Loaded, images: Sequence[Pixels | DataError], manifest: Manifest, temperature: float
) -> NDArray[np.float64]:
    """Returns the probabilities (n, K) of the images that could be read."""
    pixels = [image for image in images if not isinstance(image, DataError)]
    if not pixels:
        return np.empty((0, len(manifest.classes)))
    in_unit = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    logits = network.infer(as_fed(in_unit, manifest.preprocessing))
    if not np.isfinite(logits).all():
        raise ArtifactError("the network answers with NaN or infinity; --file names another file, such as the fp32 one")
    return np.exp(metrics.log_probs_from_logits(logits.astype(np.float64) / temperature))


def _rows(
    asked: Asked,
    first: int,
    images: Sequence[Pixels | DataError],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
    num_top: int,
    min_confidence: float,
) -> list[Row]:
    found = iter(probabilities)
    rows = []
    for index, image in enumerate(images, start=first):
        name = asked.names[index].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if isinstance(image, DataError):
            rows.append(Row(name, error=str(image).encode("utf-8", "backslashreplace").decode()))
            continue
        of_image = next(found)
        best = np.argsort(-of_image, kind="stable")[:num_top]
        top = tuple((classes[k], float(of_image[k])) for k in best)
        rows.append(Row(name, top, abstained=top[0][1] < min_confidence))
    return rows
