"""Everything that only a GPU can show: `make gpu-check`, offline; the limits of its parts add up to 25 minutes.

    python benchmarks/gpu_check.py                 # all parts
    python benchmarks/gpu_check.py --parts step_times,bench
    python benchmarks/gpu_check.py --cpu           # a rehearsal without a GPU: what needs one is skipped and says so

Each part of gpu_parts.py has a process and a time limit of its own. What it found is written at once, so that the same
command goes on after an interruption; a part that has passed on this device with these versions is not run again. At
the end there are gpu_check.json and gpu_check.md: a table of the parts, with device, driver and versions.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gpu_parts import PARTS, Part, Skipped, Where

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
PACKAGES = ("edc", "torch", "torchvision", "timm", "onnx", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy")


@dataclass(frozen=True)
class Result:
    """The outcome of one part: ok, skipped (with the reason), failed, or over its time limit."""

    name: str
    status: str
    found: dict[str, Any]
    reason: str = ""
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu_check"), help="folder of all that is written")
    parser.add_argument("--cpu", action="store_true", help="rehearse on the CPU, with small networks")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--again", action="store_true", help="run parts that have passed again")
    parser.add_argument("--limit-scale", type=float, default=1.0, help="times each part's time limit")
    parser.add_argument("--inside", metavar="PART", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    where = Where(arguments.output.resolve(), on_gpu=not arguments.cpu)
    if arguments.inside:
        return run_inside(PARTS[arguments.inside], where)
    unknown = [name for name in arguments.parts.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"--parts: {unknown[0]} is not one of {', '.join(PARTS)}")
    machine = machine_now(where)
    results = []
    for name in arguments.parts.split(","):
        result = None if arguments.again else passed_before(name, where, machine)
        if result is None:
            print(f"{name}: running (limit {PARTS[name].limit_s * arguments.limit_scale:.0f} s)", file=sys.stderr)
            result = run_apart(name, where, limit_s=PARTS[name].limit_s * arguments.limit_scale)
            keep(result, where, machine)
        print(f"{name}: {result.status} {result.reason}", file=sys.stderr)
        results.append(result)
    document = {"machine": machine, "command": sys.argv, "parts": [asdict(result) for result in results]}
    (where.folder / "gpu_check.json").write_text(json.dumps(document, indent=2) + "\n")
    (where.folder / "gpu_check.md").write_text(table_of(machine, results))
    print((where.folder / "gpu_check.md").read_text())
    return int(any(result.status in ("failed", "over its limit") for result in results))


def run_inside(part: Part, where: Where) -> int:
    """Runs one part in this process and writes what it found; its own errors are its outcome."""
    try:
        found: dict[str, Any] = {"status": "ok", "found": part.run(where)}
    except Skipped as skipped:
        found = {"status": "skipped", "reason": str(skipped)}
    except Exception as error:  # noqa: BLE001 - whatever a part meets is a line of the table, not the end of the check
        traceback.print_exc()
        found = {
            "status": "failed",
            "reason": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        }
    outcome_of(part.name, where).write_text(json.dumps(found))
    return 0


def run_apart(name: str, where: Where, *, limit_s: float) -> Result:
    """Runs one part in a process of its own, which is ended at its limit; its output is in <part>.log."""
    where.folder.mkdir(parents=True, exist_ok=True)
    outcome = outcome_of(name, where)
    outcome.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--inside", name, "--output", str(where.folder)]
    command += [] if where.on_gpu else ["--cpu"]
    started = time.monotonic()
    with (where.folder / f"{name}.log").open("w") as log:
        # A session of its own: what a part has started ends with it, or it would still be on the GPU in the next one.
        process = subprocess.Popen(command, env=os.environ | OFFLINE, stdout=log, stderr=log, start_new_session=True)
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return Result(name, "over its limit", {}, f"no result within {limit_s:g} s", limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - started
    if not outcome.is_file():
        return Result(name, "failed", {}, f"its process ended with code {code}; see {name}.log", seconds)
    found = json.loads(outcome.read_text())
    outcome.unlink()
    return Result(name, found["status"], found.get("found", {}), found.get("reason", ""), seconds)


def outcome_of(name: str, where: Where) -> Path:
    return where.folder / f"{name}.outcome.json"


def keep(result: Result, where: Where, machine: dict[str, Any]) -> None:
    kept = {"machine": machine, "result": asdict(result)}
    (where.folder / f"{result.name}.json").write_text(json.dumps(kept, indent=2) + "\n")


def passed_before(name: str, where: Where, machine: dict[str, Any]) -> Result | None:
    """Returns what a part found earlier, if it passed or was skipped on this device with these versions."""
    path = where.folder / f"{name}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    result = Result(**kept["result"])
    return result if kept["machine"] == machine and result.status in ("ok", "skipped") else None


def machine_now(where: Where) -> dict[str, Any]:
    """Returns device, driver and versions: what figures depend on."""
    from edc.system.gpu import gpus_or_reason
    from edc.system.machine import cpu_name

    gpus = gpus_or_reason()
    named = [gpus] if isinstance(gpus, str) else [f"{gpu.name}, driver {gpu.driver}" for gpu in gpus]
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "not installed"
    return {"device": "GPU" if where.on_gpu else "CPU", "gpus": named, "cpu": cpu_name(), "packages": packages}


def table_of(machine: dict[str, Any], results: list[Result]) -> str:
    lines = [
        f"# GPU check on {machine['device']}",
        "",
        f"GPUs: {'; '.join(machine['gpus']) or 'none'}. CPU: {machine['cpu']}.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in machine["packages"].items()) + ".",
        "",
        "| part | outcome | s | found |",
        "|---|---|---|---|",
    ]
    for result in results:
        found = result.reason or "; ".join(f"{key}: {value}" for key, value in result.found.items())
        cell = found.replace("|", "/").replace("\n", " ")
        lines.append(f"| {result.name} | {result.status} | {result.seconds:.0f} | {cell} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
