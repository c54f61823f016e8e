"""The command that shows finished runs, alone or together: show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edc.cli.options import RUNS, Json, RunsFolder, print_json, say, table_console
from edc.errors import RequestError

__all__ = ["add_commands", "show_runs"]


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    example = "edc show runs/digits-seed0 runs/digits-seed1 runs/digits-seed2 --against kd --plot digits.svg"
    app.command(epilog=f"Example: {example}")(show)


def show(
    runs_shown: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders; default: the newest.")
    ] = None,
    runs: RunsFolder = RUNS,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="ROW",
            help="Compare every row with this one, in pairs: a student, ensemble or teacher.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw quality against the cost of training.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--page", metavar="FILE.html", help="Write a page of one run: what students and ensemble have in common."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the table of a finished run, or what several seeds of one recipe show together.

    With --json the summary, or a list of them; with --against also everything that was found, as
    {"summaries": [...], "evidence": {...}}.
    """
    from edc.runs.folder import RunFolder, newest_run

    folders = [RunFolder(path) for path in runs_shown or []] or [newest_run(runs)]
    if page:
        if len(folders) > 1:
            raise RequestError(f"--page: found {len(folders)} runs; a page shows one, so name one")
        from edc.cli.page.write import write_run_page

        write_run_page(page, folders[0])
    show_runs(folders, against=against, plot=plot, as_json=as_json)
    if page:
        say(f"page: {page}")


def show_runs(
    folders: Sequence[Any], *, against: str | None = None, plot: Path | None = None, as_json: bool = False
) -> None:
    """Shows finished runs: the table of their quality, then what they show together.

    The same run twice is shown and is no evidence.
    """
    from edc.cli.picture import write_picture
    from edc.cli.tables.evidence import evidence_document, print_evidence
    from edc.cli.tables.run import print_summaries
    from edc.evidence.over_seeds import evidence_of
    from edc.evidence.parts import join_parts

    summaries = [folder.summary() for folder in folders]
    is_repeated = len({folder.path.resolve() for folder in folders}) < len(folders)
    evidence = None if is_repeated and not (against or plot) else evidence_of(folders, against=against)
    if plot and evidence:
        write_picture(plot, evidence, name=summaries[0]["name"])
    if as_json and against and evidence:
        print_json({"summaries": summaries, "evidence": evidence_document(evidence)})
    elif as_json:
        print_json(summaries[0] if len(summaries) == 1 else summaries)
    console = table_console(as_json)
    print_summaries(summaries if is_repeated else [run.summary for run in join_parts(folders)], console=console)
    if evidence:
        print_evidence(evidence, console=console)
    else:
        say("a run is named twice, so that nothing is said of spread")
    if plot:
        say(f"picture: {plot}")
