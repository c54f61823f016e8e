"""Quick benches of one artifact, kept in a folder: what bench_repeat.py and planted_slowdown.py have in common."""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from edc.benchmark.regression.saved_bench import load_saved

EDC = (sys.executable, "-m", "edc")


def parse(description: str | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Returns the command line: an artifact, a folder, and what a bench is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the benches are kept; it goes on with them")
    parser.add_argument("--backends", default="onnxruntime")
    parser.add_argument("--batch", default="1,64")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--run", type=Path, help="for torch rows")
    parser.add_argument("--full", action="store_true", help="not --quick: takes minutes a bench")
    for name, settings in more:
        parser.add_argument(name, **settings)
    return parser.parse_args()


def bench_into(path: Path, options: argparse.Namespace, *more: str, command: tuple[str, ...] = EDC) -> int:
    """Runs `edc bench` on a copy of the artifact, leaves its bench.json at `path`, and returns its exit code.

    Whatever the bench prints on stderr is shown if it ends with anything but 0 or 1.
    """
    artifact = options.folder / options.artifact.name
    if not artifact.is_dir():
        shutil.copytree(options.artifact, artifact, ignore=shutil.ignore_patterns("bench.json", "report.html"))
    arguments = ["bench", str(artifact), "--backends", options.backends, "--batch", options.batch]
    arguments += ["--threads", options.threads, "--no-robustness", "--json"]
    arguments += [] if options.full else ["--quick"]
    arguments += ["--run", str(options.run)] if options.run else []
    environment = os.environ | {"OMP_NUM_THREADS": options.threads}
    ended = subprocess.run([*command, *arguments, *more], env=environment, check=False, capture_output=True, text=True)
    if ended.returncode not in (0, 1) or not (artifact / "bench.json").is_file():
        sys.exit(f"{' '.join(arguments)}: exit code {ended.returncode}\n{ended.stderr}")
    document = json.loads((artifact / "bench.json").read_text())
    if (comparison := json.loads(ended.stdout or "{}").get("comparison")) is not None:
        document["comparison"] = comparison
    write(path, document)
    return ended.returncode


def benches(names: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the saved benches, running those that are not there yet."""
    for number, name in enumerate(names, 1):
        path = options.folder / f"{name}.json"
        if not path.is_file():
            print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
            bench_into(path, options)
    return [load_saved(options.folder / f"{name}.json") for name in names]


def write(path: Path, document: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1, allow_nan=False))
    temporary.replace(path)


def machine(document: dict[str, Any]) -> str:
    """Returns a line on what the figures come from."""
    found = document["environment"]
    packages = found.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("edc", "torch", "onnxruntime-gpu") if name in packages)
    return (
        f"{found['cpu']}, {found['threads']} threads of {found['num_cpus']} processors; {versions}; {found['started']}"
    )


def share(count: int, total: int) -> str:
    """Returns a rate with its 95 % interval (Wilson 1927)."""
    if not total:
        return "-"
    p, z = count / total, 1.96
    middle, half = p + z * z / 2 / total, z * math.sqrt(p * (1 - p) / total + z * z / 4 / total**2)
    low, high = ((middle + sign * half) / (1 + z * z / total) for sign in (-1, 1))
    return f"{count} of {total} ({100 * p:.1f} %, {100 * max(0, low):.0f} to {100 * min(1, high):.0f})"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Returns a markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
