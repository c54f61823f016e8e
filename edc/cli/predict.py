"""The command that uses an artifact: predict."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edc.cli.options import Json, Threads, print_json, say
from edc.errors import FailedError

__all__ = ["add_commands"]

MOST_NAMED = 20


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    app.command(epilog="Example: edc predict export/digits photos --out preds.csv --top 3 --min-confidence 0.8")(
        predict
    )


def predict(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact, wherever it came from.")],
    images: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder of images, anywhere below it; or one image.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where predictions go: .csv, .parquet or .jsonl.")],
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image to write.")] = 1,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="Abstain (no class) where the highest probability is lower.")
    ] = 0.0,
    file: Annotated[
        str | None, typer.Option("--file", help="Which ONNX file of the artifact; default: the student's fp32.")
    ] = None,
    backend: Annotated[
        Literal["onnxruntime", "openvino", "onnxruntime-cuda"], typer.Option(help="What runs it.")
    ] = "onnxruntime",
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """Classify images with an artifact: one row per image, with calibrated probabilities.

    Images are read as the run's were. One that cannot be read has a row that says why; the others are classified, and
    the command exits 1.
    """
    from edc.predict.table import require_writable

    require_writable(out, force=force)  # before torch loads
    from edc.predict.run import PredictOptions
    from edc.predict.run import predict as write_predictions
    from edc.system.machine import num_cpus

    options = PredictOptions(
        file=file,
        backend=backend,
        threads=threads or num_cpus(),
        top=top,
        min_confidence=min_confidence,
        force=force,
    )
    start = time.monotonic()
    found = write_predictions(artifact, images, out, options)
    seconds = time.monotonic() - start
    if as_json:
        counts = {"num_by_class": dict(found.num_by_class), "seconds": round(seconds, 3)}
        print_json({"artifact": str(artifact), "backend": backend, "out": str(out), **asdict(found), **counts})
    _say_found(found, seconds, min_confidence)
    say(f"written: {out}")
    if found.unreadable:
        say(f"error: {len(found.unreadable):,} of {found.num_images:,} images could not be read; the rest is predicted")
        sys.exit(FailedError.exit_code)


def _say_found(found: Any, seconds: float, min_confidence: float) -> None:
    predicted = found.num_images - len(found.unreadable)
    say(f"predicted: {predicted:,} image{'s' * (predicted != 1)} in {seconds:.1f} s with {found.file}")
    say(f"probabilities: {found.calibration}")
    counts = found.num_by_class.most_common()
    listed = ", ".join(f"{name} {num:,}" for name, num in counts[:MOST_NAMED])
    more = f" and {len(counts) - MOST_NAMED} more classes" if len(counts) > MOST_NAMED else ""
    if counts:
        say(f"classes: {listed}{more}")
    if found.few_classes:
        say(f"warning: on the run's test images this network {found.few_classes}")
    if len(counts) == 1 and counts[0][1] > 1 and not found.num_abstained:
        say(f"warning: every image is predicted as {counts[0][0]}")
    if found.num_abstained:
        say(f"abstained: {found.num_abstained:,} below {min_confidence:g}")
    for reason in [*found.unreadable.values()][:MOST_NAMED]:
        say(f"unreadable: {reason}")
    if len(found.unreadable) > MOST_NAMED:
        say(f"... and {len(found.unreadable) - MOST_NAMED:,} more; the column error names all")
