"""The commands that carry an artifact to another machine and back: push and pull."""

from pathlib import Path
from typing import Annotated

import typer

from edc.cli.options import EXPORT, Json, print_json, say
from edc.errors import edc_command

__all__ = ["add_commands"]

Force = Annotated[bool, typer.Option("--force", help="Replace an artifact that is there.")]


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    app.command(epilog="Example: edc push export/digits s3://models/digits")(push)
    app.command(epilog="Example: edc pull s3://models/digits export/digits")(pull)


def push(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact that `edc export` wrote.")],
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="A folder for it alone, or what fsspec knows: s3://..., hf://...")
    ],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Copy an artifact to another disk, an object store or the Hugging Face hub; the manifest goes last."""
    from edc.deploy.transfer import push as copy_to
    from edc.deploy.transfer import without_secrets

    manifest = copy_to(artifact, address, force=force, said=_said)
    there = without_secrets(address)
    if as_json:
        print_json({"artifact": str(artifact), "address": there, "files": len(manifest.files)})
    say(f"pushed: {artifact} to {there}   there: {edc_command('pull', there)}")


def pull(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="Where `edc push` put it.")],
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="Its folder here; default: export/<last part of it>.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Copy an artifact here and check every file by its digest; the folder appears whole or not at all."""
    from edc.deploy.transfer import name_of, without_secrets
    from edc.deploy.transfer import pull as copy_from

    folder = artifact or EXPORT / name_of(address)
    manifest = copy_from(address, folder, force=force, said=_said)
    if as_json:
        print_json({"address": without_secrets(address), "artifact": str(folder), "files": len(manifest.files)})
    if any(file.format in ("tensorrt", "tensorrt_rtx") for file in manifest.files):
        say("it holds engines, which are machine code: run them only if you trust who built them")
    say(f"pulled: {folder}   next: {edc_command('verify', folder)}")


def _said(path: str, num_bytes: int) -> None:
    say(f"  {path} ({num_bytes:,} bytes)")
