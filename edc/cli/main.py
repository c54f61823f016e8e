"""The command line: parse, call one function, show. The only place that catches `EdcError`.

Heavy modules are imported inside the commands, so that `edc --help` and a mistake in a recipe need no torch.
"""

import multiprocessing
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from edc.cli import bench as cli_bench
from edc.cli import deploy as cli_deploy
from edc.cli import init as cli_init
from edc.cli import predict as cli_predict
from edc.cli import recipes as cli_recipes
from edc.cli import show as cli_show
from edc.cli import transfer as cli_transfer
from edc.cli.options import (
    RUNS,
    DataRoot,
    Device,
    Json,
    Overrides,
    RecipePath,
    RunsFolder,
    Threads,
    Trackers,
    accelerator_on,
    is_alone,
    print_json,
    say,
    seeds_in,
)
from edc.errors import INTERRUPTED, RUN_AGAIN, EdcError, FailedError, Interrupted, RequestError, edc_command, first_line
from edc.system.gpu import is_out_of_memory

__all__ = ["app", "main"]

NO_GPU_MEMORY = (
    "(what was saved is intact, and the same command goes on from there). End other programs on the GPU, or train "
    "anew with less at once: --run NEW --set training.micro_batch_size=N, or member_form: sequential in the recipe"
)

app = typer.Typer(
    name="edc",
    help="Turn a deep ensemble into one deployable network, with the evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: edc recipes digits, then edc distill digits.yaml, edc export and edc bench.",
)


def _version(asked: bool) -> None:
    if asked:
        import edc

        print(f"edc {edc.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: edc distill recipes/cifar10_small.yaml --data-root data --set seed=1 --run runs/seed1")
def distill(
    recipe: RecipePath,
    overrides: Overrides = [],  # noqa: B006 - typer's way to say "none given"
    run: Annotated[
        Path | None, typer.Option("--run", help="The run's folder; default: RUNS/<name of the recipe>.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Like 0,1,2: a run for each, in RUNS/<name>-seed<seed>; missing ones only."),
    ] = None,
    runs: RunsFolder = RUNS,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    track: Trackers = [],  # noqa: B006
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the resolved recipe, what it will cost, and what its teachers are like; change nothing.",
        ),
    ] = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Run a few steps of the deployed student, show where their time goes; train nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train what RECIPE describes: teachers, students, and the table of what was gained and lost.

    Stopping is safe: the same command continues where it stopped. Ctrl-C exits 130; SIGTERM and SIGUSR1, a scheduler's
    signals, exit 75 (run again). Trained teachers are kept, and runs share them.
    """
    if dry_run and profile:
        raise RequestError("--dry-run and --profile: give only one of them")
    if track and (dry_run or profile):
        raise RequestError("--track: has no effect with --dry-run and --profile, which train nothing")
    if seeds is not None and (run or profile):
        raise RequestError(
            f"--seeds and {'--run' if run else '--profile'}: each seed has a run and a folder of its own; leave one out"
        )
    from edc.recipe.loading import load_recipe

    of_seeds = [f"seed={seed}" for seed in seeds_in(seeds, overrides)] if seeds is not None else [None]
    loaded = [
        load_recipe(recipe, overrides=[*overrides, *filter(None, [of_seed])], data_root=data_root)
        for of_seed in of_seeds
    ]
    from edc.cli.plans import show_costs, show_profile
    from edc.recipe.files_named import require_named_files
    from edc.runs.folder import RunFolder
    from edc.system.signals import nothing_kept

    folders = [RunFolder(run or runs / each.name) for each in loaded]
    if seeds is not None:
        folders = [RunFolder(runs / f"{each.name}-seed{each.seed}") for each in loaded]
    for folder, each in zip(folders, loaded, strict=True) if is_alone() else ():
        folder.require_claimable(each)
        if not folder.summary_path.is_file():
            require_named_files(each)
    accelerator = accelerator_on(device, threads, trackers=track, place=runs)
    if dry_run or profile:
        with nothing_kept():
            show = show_costs if dry_run else show_profile
            show(loaded[0], folders[0], accelerator, as_json=as_json)
        if len(loaded) > 1 and accelerator.is_main_process:
            say(f"--seeds: {len(loaded)} runs; the students cost this much in each, the teachers once")
        return
    from edc.runs.distill import distill_all

    distill_all(dict(zip(folders, loaded, strict=True)), accelerator=accelerator)
    if accelerator.is_main_process:
        cli_show.show_runs(folders, as_json=as_json)
        say(f"run: {', '.join(str(each.path) for each in folders)}   next: {edc_command('export', folders[0].path)}")


@app.command(epilog="Example: on machine 2 of 4, edc teach recipes/cifar100_wrn28x4.yaml --member 2")
def teach(
    recipe: RecipePath,
    member: Annotated[
        int | None, typer.Option(min=0, help="Train only this teacher (0 to M - 1); default: all that are missing.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    runs: RunsFolder = RUNS,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    track: Trackers = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train the teachers of RECIPE, or one of them, so that a cluster can train them in parallel."""
    from edc.recipe.loading import load_recipe

    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root)
    if loaded.teachers.checkpoints:
        raise RequestError(f"{recipe}: teachers.checkpoints lists your own teachers; there is nothing to train")
    if member is not None and member >= loaded.teachers.size:
        raise RequestError(f"--member: found {member}, the ensemble has members 0 to {loaded.teachers.size - 1}")
    from edc.recipe.files_named import require_named_files

    if is_alone():
        require_named_files(loaded)
    from edc.data import load_data
    from edc.runs.distill import require_trainable
    from edc.runs.folder import TEACHERS
    from edc.teachers.ensemble import fetch_teacher_weights, obtain_teacher, teacher_key
    from edc.train.distributed import one_of_a_machine_first, raised_together
    from edc.train.placement import deterministic_if

    members = range(loaded.teachers.size) if member is None else [member]
    accelerator = accelerator_on(device, threads, trackers=track, place=runs)
    data = one_of_a_machine_first(lambda: load_data(loaded.data), accelerator)
    with raised_together(accelerator):
        require_trainable(loaded, data, accelerator=accelerator)
    teachers_path = runs / TEACHERS
    one_of_a_machine_first(lambda: fetch_teacher_weights(loaded, data, teachers_path=teachers_path), accelerator)
    with deterministic_if(loaded.training.deterministic):
        for m in members:
            obtain_teacher(loaded, data, m, teachers_path=teachers_path, accelerator=accelerator)
    folders = [str(teachers_path / teacher_key(loaded, data, m)[0]) for m in members]
    if accelerator.is_main_process:
        print_json({"teachers": folders}) if as_json else print("\n".join(folders))


def _is_main_process() -> bool:
    """Returns whether this is the one process that may print a document; asked before torch is there to tell."""
    return os.environ.get("RANK", "0") == "0"


cli_show.add_commands(app)
cli_deploy.add_commands(app)
cli_bench.add_commands(app)
cli_predict.add_commands(app)
cli_init.add_commands(app)
cli_transfer.add_commands(app)
cli_recipes.add_commands(app)


def main(received: Sequence[int] = ()) -> None:
    """Runs the command line; deliberate errors become one message and an exit code, bugs keep their traceback.

    Args:
        received: the signals that came before this was imported.
    """
    from edc.system.signals import stop_at_once

    with stop_at_once() as more, _no_child_left():
        try:
            _run()
        except Exception as error:
            # A library made an error of its own of the request to stop, or the signal ended a child.
            if not (asked := [*received, *more]):
                raise
            _end_as(Interrupted(asked[0], saved=False), because=first_line(error))
        except SystemExit as end:
            if end.code in (0, None) or not (asked := [*received, *more]):
                raise
            if end.code not in (INTERRUPTED, RUN_AGAIN):
                _end_as(Interrupted(asked[0], saved=False), because=f"exit code {end.code}")
            raise


@contextmanager
def _no_child_left() -> Iterator[None]:
    """Ends child processes that are still there after the block, which only an error leaves behind.

    Workers that read images ignore signals, because the main process saves first. While the traceback of an error keeps
    them alive, Python would wait for them at its end, for ever.
    """
    try:
        yield
    finally:
        if children := multiprocessing.active_children():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise in whoever waits for them
        for child in children:
            child.kill()


def _end_as(interrupted: Interrupted, *, because: str = "") -> NoReturn:
    state = "everything is saved" if interrupted.saved else "what was saved before is intact, later work is lost"
    command = shlex.join(["edc", *sys.argv[1:]]) if is_alone() else "the same command on as many processes"
    met = f" ({because})" if because else ""
    say(f"\nstopped by {interrupted}{met}; {state}. Continue with: {command}")
    sys.exit(interrupted.exit_code)


def _end_with(error: EdcError) -> NoReturn:
    if "--json" in sys.argv and _is_main_process():
        print_json({"error": {"kind": type(error).__name__, "message": str(error)}})
    say(f"error: {error}")
    sys.exit(error.exit_code)


def _run() -> None:
    try:
        app()
    except EdcError as error:
        _end_with(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        _end_with(FailedError(f"{first_line(error)} {NO_GPU_MEMORY}"))
    except Interrupted as interrupted:
        _end_as(interrupted)
    except SystemExit as end:  # Typer's own: a usage error, already explained on stderr, or Ctrl-C outside training
        if end.code == INTERRUPTED:
            say("\ninterrupted; what was written before is intact")
        elif end.code == 2 and "--json" in sys.argv and _is_main_process():
            print_json(
                {"error": {"kind": "UsageError", "message": f"see {shlex.join(['edc', *sys.argv[1:2]])} --help"}}
            )
        raise
