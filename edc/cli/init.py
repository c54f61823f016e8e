"""The command that writes a recipe for images and checkpoints of one's own: init."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edc.cli.options import Device, Json, Threads, accelerator_on, print_json, say, table_console
from edc.errors import RequestError, edc_command
from edc.system.files import require_free_name, write_atomically

if TYPE_CHECKING:
    from edc.proposal.budget import Budget

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    app.command(epilog="Example: edc init photos models/fold0.ckpt models/fold1.ckpt --student timm/resnet18")(init)


def init(
    images: Annotated[
        Path | None,
        typer.Argument(
            metavar="[IMAGES]",
            help="A folder: images by split and class, parquet or tar shards; on a terminal it is asked for.",
        ),
    ] = None,
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CHECKPOINT]...", help="Your teachers' files, or folders of them; none: trained here."),
    ] = None,
    network: Annotated[
        list[str],
        typer.Option("--network", metavar="NAME", help="The checkpoints' network, or FILE=NAME; may be repeated."),
    ] = [],  # noqa: B006 - typer's way to say "none given"
    student: Annotated[
        str | None, typer.Option("--student", metavar="NAME", help="The student's network; default: the teachers' own.")
    ] = None,
    budget_ms: Annotated[
        float | None,
        typer.Option("--budget-ms", min=0.001, metavar="MS", help="Time networks here; the slowest within it is it."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", help="Where --budget-ms times: onnxruntime (default), openvino, ...")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=8, max=8192, help="Side of the images; default: as they are like.")
    ] = None,
    extra: Annotated[
        Path | None,
        typer.Option("--extra", metavar="FOLDER", help="Images without labels, from which the students learn, too."),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Open checkpoints that are programs (TorchScript, .pt2): they can run code.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.yaml", help="The recipe; default: <name of IMAGES>.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the recipe if it is there.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Look at images and checkpoints, say what they are, and write a recipe for them with reasons.

    Nothing is trained. Every checkpoint is tried on validation images; one that is read better otherwise is written so.
    """
    if images is None and sys.stdin.isatty() and sys.stderr.isatty() and not as_json:
        images, checkpoints = _asked()
    if images is None:
        raise RequestError("IMAGES: missing; name a folder of images, for example: edc init photos models/*.pth")
    budget = _budget(budget_ms, backend, student=student, threads=threads)
    from edc.proposal.naming import name_of

    out = out or Path(f"{name_of(images)}.yaml")
    require_free_name(out, suffixes=(".yaml", ".yml"), force=force)  # before torch loads
    from edc.cli.tables.init import print_found, proposal_document
    from edc.proposal.propose import Asked, propose

    asked = Asked(
        images=images,
        checkpoints=tuple(checkpoints or ()),
        networks=tuple(network),
        student=student,
        image_size=image_size,
        extra=extra,
        trust=trust,
        budget=budget,
        out=out,
    )
    proposal = propose(asked, accelerator=accelerator_on(device, threads))
    with write_atomically(out) as temporary:
        temporary.write_text(proposal.text, encoding="utf-8")
    if as_json:
        print_json({"recipe": str(out), **proposal_document(proposal)})
    print_found(proposal, console=table_console(as_json))
    say(f"written: {out}   next: {edc_command('distill', out, '--dry-run')}")


def _budget(ms: float | None, backend: str | None, *, student: str | None, threads: int | None) -> "Budget | None":
    """Returns the time that the student may take, if one was given."""
    if ms is None:
        if backend is not None:
            raise RequestError("--backend: needs --budget-ms, which says how long an image may take there")
        return None
    if student is not None:
        raise RequestError("--budget-ms: chooses the student, and --student names it; leave one of them out")
    from edc.proposal.budget import Budget, require_backend
    from edc.system.machine import num_cpus

    return Budget(ms, require_backend(backend or "onnxruntime"), threads or num_cpus())


def _asked() -> tuple[Path, list[Path]]:
    """Returns what the user answers on the terminal."""
    images: Any = typer.prompt("Folder of images (train/<class>/*, val/<class>/*)", err=True)
    text: Any = typer.prompt("Checkpoints: files or folders, with blanks between (none: trained here)", "", err=True)
    import shlex

    return Path(images).expanduser(), [Path(part).expanduser() for part in shlex.split(text)]
