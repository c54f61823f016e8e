"""The command line called in this process; what it writes is caught at the file descriptors, where libraries write."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import typer

from edc.cli.main import app, main

__all__ = ["Called", "commands", "edc"]


@dataclass(frozen=True)
class Called:
    """What a call of `edc` ended with."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document that stdout is."""
        return json.loads(self.stdout)


def edc(*arguments: str | Path, cwd: Path) -> Called:
    """Returns what `edc ARGUMENTS` ends with in the folder `cwd`; a bug escapes as the exception it is."""
    code: Any = None
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with (
            contextlib.chdir(cwd),
            patch.object(sys, "argv", ["edc", *map(str, arguments)]),
            _caught(1, stdout),
            _caught(2, stderr),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return Called(0 if code is None else code, *texts)


def commands() -> dict[str, Any]:
    """Returns typer's own description of every command, by name."""
    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _caught(descriptor: int, file: BinaryIO) -> Iterator[None]:
    """Sends a standard stream and its file descriptor to `file` for the block."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    kept = os.dup(descriptor)
    os.dup2(file.fileno(), descriptor)
    try:
        with open(descriptor, "w", closefd=False, encoding="utf-8") as stream, patch.object(sys, name, stream):
            yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
