"""The commands after training: export, verify, doctor."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edc.cli.options import (
    EXPORT,
    RUNS,
    DataRoot,
    Json,
    RunsFolder,
    listed,
    numbers,
    print_json,
    say,
    table_console,
)
from edc.errors import FailedError, NotInstalledError, RequestError, edc_command

__all__ = ["add_commands"]

FLAVOURS: dict[str, tuple[Any, ...]] = {"int8": ("int8-cpu", "int8-trt")}
"""CPUs and TensorRT need different files."""


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of this file to the command line."""
    for function, example in (
        (export, "edc export runs/digits --precision fp32,fp16,int8 --trt --triton"),
        (verify, "edc verify export/digits --run runs/digits"),
        (doctor, "edc doctor --json"),
    ):
        app.command(epilog=f"Example: {example}")(function)


def export(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A finished run; default: the newest.")] = None,
    runs: RunsFolder = RUNS,
    output: Annotated[
        Path | None, typer.Option("--output", help="The artifact's folder; default: export/<run>.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            "--student", metavar="NAME", help="Another student than the recipe deploys; default: export/<run>-NAME."
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(help="Some of fp32,fp16,int8 (fp32 is always written); int8 is int8-cpu and int8-trt."),
    ] = "fp32",
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
    engine_library: Annotated[
        Literal["tensorrt", "tensorrt_rtx"] | None,
        typer.Option(
            "--engine-library",
            help="Default: TensorRT for the GPU here; TensorRT-RTX without one, and for the GPUs of --sm.",
        ),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let fp32 engines compute in TF32.")] = False,
    triton: Annotated[bool, typer.Option("--triton", help="Write a Triton model repository too.")] = False,
    baseline: Annotated[bool, typer.Option(help="Write the teachers and their ensemble beside the student.")] = True,
    all_or_nothing: Annotated[
        bool,
        typer.Option("--all-or-nothing", help="Write nothing if one file fails; else the files that pass are written."),
    ] = False,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Export the student of RUN, and its ensemble as the baseline; check each file on real images.

    A file that fails its check is not written: the others are, and the command exits 1.
    """
    from edc.runs.folder import RunFolder, newest_run

    kinds = listed(precision, ("fp32", "fp16", "int8", "int8-cpu", "int8-trt"), "--precision")
    generations = numbers(sm, "--sm", "GPU generations like 86,89,120") if sm else []
    without_effect = {"--sm": bool(sm), "--engine-library": engine_library is not None, "--tf32": tf32}
    if not trt and any(without_effect.values()):
        raise RequestError(f"{next(name for name, given in without_effect.items() if given)}: needs --trt")
    folder = RunFolder(run) if run else newest_run(runs)
    if not run:
        say(f"run: {folder.path} (the newest)")
    from edc.recipe.files_named import require_named_files

    require_named_files(folder.recipe(data_root=data_root), trains=False, with_teachers=baseline)
    from edc.cli.tables.artifact import print_artifact
    from edc.deploy.export import ExportOptions
    from edc.deploy.export import export as write_artifact

    engines = _engines(engine_library, tuple(generations), tf32=tf32) if trt else None
    options = ExportOptions(
        student=student,
        precisions=tuple(dict.fromkeys(name for kind in kinds for name in FLAVOURS.get(kind, (kind,)))),
        max_batch=max_batch,
        max_drop=max_drop / 100,
        fold_temperature=fold_temperature,
        input_type=input_type,
        engines=engines,
        triton=triton,
        baseline=baseline,
        all_or_nothing=all_or_nothing,
        data_root=data_root,
    )
    is_other = student is not None and student != folder.summary()["deploy"]
    target = output or EXPORT / (f"{folder.path.name}-{student}" if is_other else folder.path.name)
    manifest = write_artifact(folder, target, options)
    if as_json:
        print_json({"artifact": str(target), "manifest": manifest.model_dump(mode="json")})
    print_artifact(manifest, target, console=table_console(as_json))
    for file in manifest.missing:
        say(f"not written: {file.path}: {file.reason}")
    name = student or folder.summary()["deploy"]
    say(f"artifact: {target}, of the student {name}   next: {edc_command('bench', target)}")
    if manifest.missing:
        role = "" if any(file.role == "student" for file in manifest.missing) else "; --no-baseline leaves them out"
        say(f"error: {len(manifest.missing)} of the files asked for failed, the others are written{role}")
        sys.exit(FailedError.exit_code)


def _engines(library: Any, generations: tuple[int, ...], *, tf32: bool) -> Any:
    """Returns the `EngineChoice` of the options; None if no library is named and none is installed, and says so."""
    from edc.deploy.engine_files import EngineChoice, choose_library, targets_of
    from edc.system.files import user_cache

    try:
        chosen = choose_library(library, compute_capabilities=generations)
    except NotInstalledError as error:
        if library:
            raise
        say(f"{error}. Writing the ONNX files alone, which every engine library reads.")
        return None
    # Timings hold for a GPU and a version of the library, which TensorRT checks itself.
    cache = user_cache("tensorrt.timing") if chosen == "tensorrt" else None
    return EngineChoice(chosen, targets_of(chosen, generations), strict_fp32=not tf32, timing_cache=cache)


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact, wherever it came from.")],
    run: Annotated[
        Path | None, typer.Option("--run", help="Its run: compare its fp32 and fp16 files with the networks again.")
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Check an artifact that arrived from elsewhere: digests, schema, ONNX checker, nothing outside its folder."""
    from edc.deploy.verify import verify as check

    checks = check(artifact, run=run, data_root=data_root)
    if as_json:
        print_json({"artifact": str(artifact), "ok": True, "checks": checks})
    for line in checks:
        say(line) if as_json else print(line)


def doctor(as_json: Json = False) -> None:
    """Say what this machine can train, build and run, and how to get what is missing."""
    import dataclasses

    from edc.cli.tables.doctor import print_checks
    from edc.system.doctor import diagnose

    checks = diagnose()
    if as_json:
        print_json([dataclasses.asdict(check) for check in checks])
    print_checks(checks, console=table_console(as_json))
    if any(check.status == "broken" for check in checks):
        sys.exit(1)
