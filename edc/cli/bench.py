"""The command that measures: bench."""

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edc.cli.options import (
    EXPORT,
    RUNS,
    DataRoot,
    Json,
    RunsFolder,
    Threads,
    listed,
    numbers,
    print_json,
    say,
    table_console,
)
from edc.errors import RequestError

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Adds the command of this file to the command line."""
    app.command(epilog="Example: edc bench export/digits --batch 1,8,64 --threads 2")(bench)


def bench(
    artifact: Annotated[
        Path | None, typer.Argument(metavar="[ARTIFACT]", help="An artifact; default: the newest.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run it came from, for torch rows; default: RUNS/<its name>.")
    ] = None,
    runs: RunsFolder = RUNS,
    data_root: DataRoot = None,
    backends: Annotated[
        str, typer.Option(help="auto (all that can run here), or some of torch,onnxruntime,openvino,tensorrt,...")
    ] = "auto",
    batch: Annotated[
        str | None, typer.Option(help="Batch sizes, comma-separated; default: 1 and the artifact's largest.")
    ] = None,
    threads: Threads = None,
    also: Annotated[
        list[Path],
        typer.Option("--also", metavar="ARTIFACT", help="Another artifact to measure beside it; repeatable."),
    ] = [],  # noqa: B006 - typer's way to say "none given"
    latency_bound: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="MS", help="The server's bound on p99; default: three ensemble medians."),
    ] = None,
    robustness: Annotated[
        bool | None,
        typer.Option(
            "--robustness/--no-robustness",
            help="Quality on corrupted images; default: yes, unless --quick has no time.",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Short timings, a coarse sweep, up to 2,000 images: a minute for small networks."),
    ] = False,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="OLD.json", help="Compare with this earlier bench.json.")
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(metavar="5%", help="With --compare: exit 1 if a row got worse by more; default 5%.")
    ] = None,
    relative: Annotated[
        bool,
        typer.Option(
            "--relative",
            help="With --compare: ignore a change that all rows share (a slower machine, or edc itself slower).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure what was gained and lost: the student against its whole ensemble, on the same backend, taking turns."""
    from edc.benchmark.backends import BACKENDS
    from edc.deploy.artifact.folder import newest_artifact
    from edc.system.machine import num_cpus

    num_threads = threads or num_cpus()
    old, limit = _old_bench(compare, fail_on, relative=relative, threads=num_threads)
    folder = artifact or newest_artifact(EXPORT)
    if not artifact:
        say(f"artifact: {folder} (the newest)")
    chosen = None if backends == "auto" else listed(backends, BACKENDS, "--backends")
    sizes = numbers(batch, "--batch", "sizes like 1,8,64") if batch is not None else None
    from edc.benchmark.bench import bench as measure
    from edc.benchmark.options import BenchOptions
    from edc.cli.tables.bench import print_bench
    from edc.deploy.artifact.manifest import load_manifest

    options = BenchOptions(
        run=run or runs / load_manifest(folder).run,
        data_root=data_root,
        backends=chosen,
        batches=sizes,
        threads=num_threads,
        also=tuple(also),
        quick=quick,
        robustness=robustness,
        latency_bound_ms=latency_bound,
        compare_with=old,
        command=shlex.join(["edc", *sys.argv[1:]]),
    )
    result = measure(folder, options)
    document = result.to_json()
    comparison = _comparison(document, old, limit, relative=relative)
    if as_json:
        print_json(document if comparison is None else {**document, "comparison": comparison.to_json()})
    print_bench(result, console=table_console(as_json))
    say(f"written: {folder / 'bench.json'}, {folder / 'report.html'}")
    if comparison is not None:
        from edc.cli.tables.compare import print_comparison

        print_comparison(comparison, console=table_console(as_json))
        sys.exit(comparison.exit_code)


def _old_bench(
    path: Path | None, fail_on: str | None, *, relative: bool, threads: int
) -> tuple[dict[str, Any] | None, float]:
    """Returns the earlier bench and the limit; raises before anything is measured if they cannot be compared."""
    if path is None:
        for option, is_given in (("--fail-on", fail_on is not None), ("--relative", relative)):
            if is_given:
                raise RequestError(f"{option}: needs --compare OLD.json, which says what to compare with")
        return None, 0.0
    from edc.benchmark.environment import environment_now
    from edc.benchmark.regression.compare import parse_fail_on
    from edc.benchmark.regression.compatible import require_comparable
    from edc.benchmark.regression.saved_bench import load_saved
    from edc.benchmark.saved.document import SavedEnvironment, whole_bench

    limit, old = parse_fail_on(fail_on or "5%"), load_saved(path)
    now = SavedEnvironment.model_validate(environment_now(threads=threads).to_json())
    require_comparable(now, whole_bench(old, name=str(path)).environment)
    return old, limit


def _comparison(document: dict[str, Any], old: dict[str, Any] | None, limit: float, *, relative: bool) -> Any:
    if old is None:
        return None
    from edc.benchmark.regression.compare import compare

    return compare(document, old, fail_on=limit, relative=relative)
