"""The table of an artifact."""

from pathlib import Path

from rich.console import Console

from edc.console import TextRow, fitting_table, left_out_words
from edc.deploy.artifact.manifest import Manifest

__all__ = ["print_artifact"]

COLUMNS = ("role", "precision", "MB", "largest difference", "of logit scale", "same class")
GIVES_WAY = ("role", "of logit scale", "MB", "precision", "largest difference")
"""In this order, where the terminal is too narrow for all."""


def print_artifact(manifest: Manifest, folder: Path, *, console: Console) -> None:
    """Prints one row per file: its name, its size, and its difference from the torch network."""
    rows = []
    for file in manifest.files:
        if file.format == "other":
            continue
        differences = ("built, not run", "", "built, not run")
        if file.parity is not None:
            differences = (
                f"{file.parity.max_abs_diff:.1e}",
                f"{file.parity.max_abs_diff / file.parity.logit_scale:.1e}",
                f"{file.parity.argmax_agreement:.2%}",
            )
        cells = (file.role, file.precision, f"{file.bytes / 1e6:.2f}", *differences)
        rows.append(TextRow(file.path, dict(zip(COLUMNS, cells, strict=True))))
    table, left_out = fitting_table(
        f"{folder}: every file checked against torch on validation images",
        rows,
        COLUMNS,
        gives_way=GIVES_WAY,
        console=console,
        names=("file",),
        words=("role", "precision"),
    )
    table.caption = left_out_words(left_out)
    console.print(table)
