"""What the commands share: their common options, how they read lists, and where they print."""

import json
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edc.errors import FailedError, RequestError

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe; `edc recipes` lists those that come with edc.")
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe; may be repeated.")
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where the data is; overrides data.root.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="The folder that holds runs and trained teachers.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="auto: a GPU if there is one; cuda: a GPU, or an error.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: every core.")]
Trackers = Annotated[
    list[str],
    typer.Option(
        "--track",
        metavar="NAME",
        help="Send the figures of metrics.jsonl to mlflow, wandb or another tracker of accelerate too; repeatable.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout and nothing else; text for people goes to stderr."),
]

RUNS, EXPORT = Path("runs"), Path("export")


def is_alone() -> bool:
    """Returns whether this is the only process of the command.

    What one of several misses, perhaps on a machine of its own, has to end them all, and they tell one another later.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1"


def listed(text: str, known: Sequence[str], option: str) -> list[Any]:
    """Returns the names in a comma-separated list, all of which must be known."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise RequestError(f"{option}: found {unknown[0] if unknown else text!r}, expected some of {', '.join(known)}")
    return names


def numbers(text: str, option: str, expected: str) -> list[int]:
    """Returns the positive whole numbers in a comma-separated list."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise RequestError(f"{option}: found {text!r}, expected {expected}")
    return found


def seeds_in(text: str, overrides: Sequence[str]) -> list[int]:
    """Returns the seeds in a comma-separated list; the overrides of the recipe must not set another."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise RequestError(f"--seeds: found {text!r}, expected whole numbers from 0 like 0,1,2")
    if twice := [seed for seed in found if found.count(seed) > 1]:
        raise RequestError(f"--seeds: found {twice[0]} twice; name each seed once")
    if again := [override for override in overrides if override.partition("=")[0].strip() == "seed"]:
        raise RequestError(f"--set {again[0]}: has no effect with --seeds, which sets the seed; leave one of them out")
    return found


def accelerator_on(device: str, threads: int | None, *, trackers: Sequence[str] = (), place: Path = RUNS) -> Any:
    """Returns Accelerate's view of device and processes; precision is the recipe's, applied by the loop itself.

    Processes wait for one another for up to an hour: one may be downloading, or compiling, for all. (NCCL's own limit
    is ten minutes.)

    Args:
        device: auto (a GPU if there is one), cpu or cuda.
        trackers: by accelerate's names, refused if one is unknown or not installed.
        place: the folder of those that write files.

    Raises:
        FailedError: cuda is asked for, or a GPU is there, and torch cannot use it.
    """
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    if device != "cpu":
        _require_gpu(device)
    from accelerate import Accelerator, InitProcessGroupKwargs

    if threads:
        torch.set_num_threads(threads)
    waiting = InitProcessGroupKwargs(timeout=timedelta(hours=1))
    tracked: dict[str, Any] = {}
    if trackers:
        from edc.train.tracking.trackers import require_trackers

        require_trackers(trackers)
        tracked = {"log_with": list(dict.fromkeys(trackers)), "project_dir": place}
    return Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[waiting], **tracked)


def _require_gpu(device: str) -> None:
    """Raises `FailedError` if torch can use no GPU and one was asked for, or is there: on the CPU it takes days."""
    from edc.system.gpu import without_gpu

    found = without_gpu()
    if found and (found.is_fault or device == "cuda"):
        raise FailedError(
            f"--device {device}: {found.reason}; `edc doctor` says what this machine can do, "
            "and --device cpu does without a GPU"
        )


def table_console(as_json: bool) -> Any:
    """Returns where tables for people go: stdout, or stderr when stdout is for a program."""
    from edc.console import console_on

    return console_on(stderr=as_json)


def say(line: str) -> None:
    """Prints a line for people, on stderr."""
    print(line, file=sys.stderr)


def print_json(document: Any) -> None:
    """Prints the one JSON document of a command, on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))
