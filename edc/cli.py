"""The command line: parse, call one function, show. The only place that catches `EdcError`.

Heavy modules are imported inside the commands: `edc --help` and a mistake in a recipe are answered before torch loads.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edc.errors import EdcError, Interrupted, NotInstalledError, RequestError

__all__ = ["app", "main"]

app = typer.Typer(
    name="edc",
    help="Turn a deep ensemble into one deployable network, with the evidence.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: edc distill recipes/digits.yaml, then edc export, then edc bench.",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/digits.yaml.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe; may be repeated.")
]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Where the data is; overrides data.root.")]
RunsFolder = Annotated[Path, typer.Option("--runs", help="The folder that holds runs and trained teachers.")]
Device = Annotated[Literal["auto", "cpu"], typer.Option(help="auto: a GPU where there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: every core.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout and nothing else; people's output goes to stderr."),
]

RUNS, EXPORT = Path("runs"), Path("export")


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
    runs: RunsFolder = RUNS,
    data_root: DataRoot = None,
    device: Device = "auto",
    threads: Threads = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved recipe and what it will cost; change nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train what RECIPE describes: teachers, students, and the table of what was gained and lost.

    Stopping is safe (Ctrl-C): the same command goes on where it stopped. Trained teachers are kept and shared by runs.
    """
    from edc.load_recipe import load_recipe

    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root)
    accelerator = _accelerator(device, threads)
    if dry_run:
        _show_costs(loaded, accelerator, as_json=as_json)
        return
    from edc.distill import distill as run_recipe
    from edc.run import RunFolder

    folder = RunFolder(run or runs / loaded.name)
    summary = run_recipe(loaded, run=folder, accelerator=accelerator)
    if accelerator.is_main_process:
        _show_summaries([summary], as_json=as_json)
        _say(f"run: {folder.path}   next: edc export {folder.path}")


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
    as_json: Json = False,
) -> None:
    """Train the teachers of RECIPE, or one of them, so that a cluster can train them side by side."""
    from edc.load_recipe import load_recipe

    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root)
    if loaded.teachers.checkpoints:
        raise RequestError(f"{recipe}: teachers.checkpoints lists your own teachers; there is nothing to train")
    if member is not None and member >= loaded.teachers.size:
        raise RequestError(f"--member: found {member}, the ensemble has members 0 to {loaded.teachers.size - 1}")
    from edc.data import load_data
    from edc.run import TEACHERS
    from edc.teacher import obtain_teacher, teacher_key

    accelerator = _accelerator(device, threads)
    data = load_data(loaded.data)
    members = range(loaded.teachers.size) if member is None else [member]
    folders = []
    for m in members:
        obtain_teacher(loaded, data, m, teachers_path=runs / TEACHERS, accelerator=accelerator)
        folders.append(str(runs / TEACHERS / teacher_key(loaded, data, m)[0]))
    if accelerator.is_main_process:
        _print_json({"teachers": folders}) if as_json else print("\n".join(folders))


@app.command(epilog="Example: edc show runs/cifar10_small-seed0 runs/cifar10_small-seed1 runs/cifar10_small-seed2")
def show(
    runs_shown: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders; default: the newest.")
    ] = None,
    runs: RunsFolder = RUNS,
    as_json: Json = False,
) -> None:
    """Show the table of a finished run, or mean and standard deviation over several seeds of one recipe."""
    from edc.run import RunFolder, newest_run

    folders = [RunFolder(path) for path in runs_shown or []] or [newest_run(runs)]
    _show_summaries([folder.summary() for folder in folders], as_json=as_json)


@app.command(epilog="Example: edc export runs/digits --precision fp32,fp16,int8 --trt --triton")
def export(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A finished run; default: the newest.")] = None,
    runs: RunsFolder = RUNS,
    output: Annotated[
        Path | None, typer.Option("--output", help="The artifact's folder; default: export/<run>.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Some of fp32,fp16,int8 (fp32 is always written).")] = "fp32",
    max_batch: Annotated[int, typer.Option(min=1, help="Largest batch the files are checked for.")] = 64,
    max_drop: Annotated[
        float, typer.Option(min=0, max=100, help="Points of validation accuracy that an int8 file may lose.")
    ] = 0.5,
    input_type: Annotated[
        Literal["float", "uint8"], typer.Option("--input", help="float NCHW in [0, 1], or uint8 NHWC pixels.")
    ] = "float",
    fold_temperature: Annotated[
        bool, typer.Option(help="Fold the calibration temperature into the student's classifier.")
    ] = True,
    trt: Annotated[bool, typer.Option("--trt", help="Build TensorRT engines too (RTX ones without a GPU).")] = False,
    sm: Annotated[str, typer.Option(help="GPU generations for TensorRT-RTX engines, for example 86,89,120.")] = "",
    tf32: Annotated[bool, typer.Option("--tf32", help="Let fp32 engines compute in TF32.")] = False,
    triton: Annotated[bool, typer.Option("--triton", help="Write a Triton model repository too.")] = False,
    as_json: Json = False,
) -> None:
    """Export the student of RUN, and its ensemble as the baseline, in files held to parity on real images."""
    from edc.run import RunFolder, newest_run

    kinds = _listed(precision, ("fp32", "fp16", "int8"), "--precision")
    generations = _numbers(sm, "--sm", "GPU generations like 86,89,120") if sm else []
    folder = RunFolder(run) if run else newest_run(runs)
    if not run:
        _say(f"run: {folder.path} (the newest)")
    from edc.deploy.engines import EngineChoice, choose_library
    from edc.deploy.export import ExportOptions
    from edc.deploy.export import export as write_artifact
    from edc.report.artifact import print_artifact

    engines = None
    if trt:
        try:
            library = choose_library()
            engines = EngineChoice(library, tuple(generations), strict_fp32=not tf32)
        except NotInstalledError as error:
            _say(f"{error}. Writing the ONNX files, which any of them reads.")
    options = ExportOptions(
        precisions=tuple(name for kind in kinds for name in (("int8-cpu", "int8-trt") if kind == "int8" else (kind,))),
        max_batch=max_batch,
        max_drop=max_drop / 100,
        fold_temperature=fold_temperature,
        input_type=input_type,
        engines=engines,
        triton=triton,
    )
    target = output or EXPORT / folder.path.name
    manifest = write_artifact(folder, target, options)
    if as_json:
        _print_json({"artifact": str(target), "manifest": manifest.model_dump(mode="json")})
    print_artifact(manifest, target, console=_console(as_json))
    _say(f"artifact: {target}   next: edc bench {target}")


@app.command(epilog="Example: edc verify export/digits --run runs/digits")
def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact, wherever it came from.")],
    run: Annotated[Path | None, typer.Option("--run", help="Its run: hold every file to parity again.")] = None,
    as_json: Json = False,
) -> None:
    """Check an artifact that arrived from elsewhere: digests, schema, ONNX checker, nothing outside its folder."""
    from edc.deploy.verify import verify as check

    checks = check(artifact, run=run)
    if as_json:
        _print_json({"artifact": str(artifact), "ok": True, "checks": checks})
    for line in checks:
        _say(line) if as_json else print(line)


@app.command(epilog="Example: edc doctor --json")
def doctor(as_json: Json = False) -> None:
    """Say what this machine can train, build and run, and how to get what is missing."""
    import dataclasses

    from edc.doctor import diagnose
    from edc.report.checks import print_checks

    checks = diagnose()
    if as_json:
        _print_json([dataclasses.asdict(check) for check in checks])
    print_checks(checks, console=_console(as_json))
    if any(check.status == "broken" for check in checks):
        sys.exit(1)


@app.command(epilog="Example: edc bench export/digits --batch 1,8,64 --threads 2")
def bench(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="An artifact; default: the newest.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run it came from, for torch rows; default: RUNS/<its name>.")
    ] = None,
    runs: RunsFolder = RUNS,
    data_root: DataRoot = None,
    backends: Annotated[str, typer.Option(help="auto, or some of torch,onnxruntime,openvino.")] = "auto",
    batch: Annotated[
        str | None, typer.Option(help="Batch sizes, comma-separated; default: 1 and the largest that was exported for.")
    ] = None,
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter timing, and quality on 2,000 images.")] = False,
    as_json: Json = False,
) -> None:
    """Measure what was gained and lost: the student against its whole ensemble, on the same backend, taking turns."""
    from edc.bench.backends import BACKENDS
    from edc.deploy.folder import newest_artifact

    folder = artifact or newest_artifact(EXPORT)
    if not artifact:
        _say(f"artifact: {folder} (the newest)")
    chosen = None if backends == "auto" else _listed(backends, BACKENDS, "--backends")
    sizes = _numbers(batch, "--batch", "sizes like 1,8,64") if batch else None
    from edc.bench.bench import bench as measure
    from edc.deploy.manifest import load_manifest
    from edc.machine import num_cpus
    from edc.report.bench_table import print_bench

    result = measure(
        folder,
        run=run or runs / load_manifest(folder).run,
        data_root=data_root,
        backends=chosen,
        batches=sizes,
        threads=threads or num_cpus(),
        quick=quick,
    )
    if as_json:
        _print_json(result.to_json())
    print_bench(result, console=_console(as_json))
    _say(f"written: {folder / 'bench.json'}")


def _listed(text: str, known: Sequence[str], option: str) -> list[Any]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise RequestError(f"{option}: found {unknown[0] if unknown else text!r}, expected some of {', '.join(known)}")
    return names


def _numbers(text: str, option: str, expected: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise RequestError(f"{option}: found {text!r}, expected {expected}")
    return numbers


def _accelerator(device: str, threads: int | None) -> Any:
    """Returns Accelerate's view of device and processes; precision is the recipe's, applied by the loop itself."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch
    from accelerate import Accelerator

    if threads:
        torch.set_num_threads(threads)
    return Accelerator(cpu=device == "cpu", mixed_precision="no")


def _show_costs(recipe: Any, accelerator: Any, *, as_json: bool) -> None:
    import dataclasses

    import yaml

    from edc.cost import estimate_costs
    from edc.data import load_data
    from edc.report.tables import print_costs

    data = load_data(recipe.data.model_copy(update={"download": False}))
    costs = estimate_costs(recipe, data, accelerator=accelerator)
    document = recipe.model_dump(mode="json", exclude_none=True)
    if as_json:
        rows = [{**dataclasses.asdict(cost), "seconds": cost.seconds} for cost in costs]
        _print_json({"recipe": document, "digest": recipe.digest(), "costs": rows})
        return
    print(yaml.safe_dump(document, sort_keys=False))
    print_costs(costs, console=_console(as_json))


def _show_summaries(summaries: list[dict[str, Any]], *, as_json: bool) -> None:
    from edc.report.tables import print_summaries

    if as_json:
        _print_json(summaries[0] if len(summaries) == 1 else summaries)
    print_summaries(summaries, console=_console(as_json))


def _console(as_json: bool) -> Any:
    """Returns where tables for people go: stdout, or stderr when stdout is for a program."""
    from edc.report.progress import console_on

    return console_on(stderr=as_json)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def main() -> None:
    """Runs the command line; deliberate errors become one message and an exit code, bugs keep their traceback."""
    try:
        app()
    except EdcError as error:
        if "--json" in sys.argv:
            _print_json({"error": {"kind": type(error).__name__, "message": str(error)}})
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except Interrupted as interrupted:
        _say(f"\nstopped by {interrupted}; everything is saved. Go on with: {shlex.join(['edc', *sys.argv[1:]])}")
        sys.exit(interrupted.exit_code)
    except SystemExit as end:  # Typer's own: a usage error, already explained on stderr, or Ctrl-C outside training
        if end.code == 130:
            _say("\ninterrupted; what was written before is intact")
        elif end.code == 2 and "--json" in sys.argv:
            _print_json(
                {"error": {"kind": "UsageError", "message": f"see {shlex.join(['edc', *sys.argv[1:2]])} --help"}}
            )
        raise
