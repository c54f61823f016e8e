"""The table of an artifact."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from edc.deploy.artifact.manifest import Manifest

__all__ = ["print_artifact"]


def print_artifact(manifest: Manifest, folder: Path, *, console: Console) -> None:
    """Prints one row per file: its name, its size, and its difference from the torch network."""
    table = Table(
        title=f"{folder}: every file checked against torch on validation images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("file", no_wrap=True)
    for column in ("role", "precision"):
        table.add_column(column)
    for column in ("MB", "largest difference", "of logit scale", "same class"):
        table.add_column(column, justify="right")
    for file in manifest.files:
        if file.format == "other":
            continue
        first = (file.path, file.role, file.precision, f"{file.bytes / 1e6:.2f}")
        if file.parity is None:
            table.add_row(*first, "built, not run", "", "")
            continue
        table.add_row(
            *first,
            f"{file.parity.max_abs_diff:.1e}",
            f"{file.parity.max_abs_diff / file.parity.logit_scale:.1e}",
            f"{file.parity.argmax_agreement:.2%}",
        )
    console.print(table)
