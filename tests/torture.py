"""`make torture`: kills, signals, double starts and full disks over distill, export and bench, until all were tried.

    python tests/torture.py FOLDER [--kills 100] [--terms 50] [--doubles 60] [--disks 20] [--minutes 0] [--seed 0]

Each try starts the real command in a copy of a small run, does its harm at a moment or a file operation that is drawn
from the seed, and then starts the command again. It held if that ends with 0, and all that is read of a run or an
artifact is what an undisturbed one has. Every try is a line of FOLDER/tries.jsonl; the same command goes on where it
stopped, and prints the table for docs/trust.md. Full disks are small tmpfs mounts (Linux, as root).
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RECIPE = """
name: tiny
data: {kind: synthetic, image_size: 8, num_images: 64, test: 40}
network: cifar_resnet8
training: {epochs: 2, warmup_epochs: 1, batch_size: 16}
teachers: {ensemble_size: 2}
students: {latent_be: {method: latent_be, perturbation: none}}
"""
COMMANDS: dict[str, tuple[str, ...]] = {
    "distill": ("distill", "tiny.yaml", "--device", "cpu", "--threads", "1", "--json"),
    "export": ("export", "runs/tiny", "--output", "export/tiny", "--max-batch", "8", "--json"),
    "bench": (
        "bench",
        "export/tiny",
        "--quick",
        "--backends",
        "onnxruntime",
        "--batch",
        "1",
        "--no-robustness",
        "--json",
    ),
}
# Counts the operations that change files below a folder, and kills the process at the one with the number.
KILLED_AT = """
import os, signal, sys
number, folder = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
def count(event, arguments):
    global number
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open") and arguments:
        writes = event != "open" or (len(arguments) > 1 and any(c in str(arguments[1]) for c in "wax+"))
        path = os.path.abspath(arguments[0]) if isinstance(arguments[0], (str, bytes, os.PathLike)) else ""
        if writes and str(path).startswith(folder):
            number -= 1
            if number < 0:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
import edc.__main__
edc.__main__.main()
"""
Try = dict[str, Any]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def start(command: str, folder: Path, *, kill_at: int | None = None) -> "subprocess.Popen[str]":
    own = ["-m", "edc"] if kill_at is None else ["-c", KILLED_AT, str(kill_at), str(folder)]
    return subprocess.Popen(
        [sys.executable, *own, *COMMANDS[command]],
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    stderr = process.communicate(timeout=1800)[1]
    return process.returncode, stderr


def facts(command: str, folder: Path) -> dict[str, str]:
    """Returns what must be as in an undisturbed run: weights and figures, an artifact's files, a bench's answers."""
    if command == "distill":
        found = {path: _digest(path) for path in sorted(folder.glob("runs/**/*.safetensors"))}
        summary = json.loads((folder / "runs/tiny/summary.json").read_text())
        found[Path("rows")] = json.dumps([{**row, "seconds": None} for row in summary["rows"]])
    elif command == "export":
        found = {path: _digest(path) for path in sorted(folder.glob("export/tiny/**/*.onnx"))}
        manifest = json.loads((folder / "export/tiny/manifest.json").read_text())
        found |= {Path(file["path"]): file["sha256"] for file in manifest["files"]}
    else:
        bench = json.loads((folder / "export/tiny/bench.json").read_text())
        found = {Path(key): str(detail["correct"]) for key, detail in bench["details"].items()}
    return {str(path).replace(f"{folder}/", ""): value for path, value in found.items()}


def left_over(folder: Path) -> list[str]:
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if ".tmp" in path.name or ".old" in path.name
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Torture:
    """The folder of a torture: an undisturbed run to compare with, and every try so far."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.folder, self.seed = folder.resolve(), seed
        self.tries_path, self.whole = self.folder / "tries.jsonl", self.folder / "whole"
        self.took: dict[str, float] = {}
        self.wanted: dict[str, dict[str, str]] = {}

    def prepare(self) -> None:
        """Makes the undisturbed run, and notes how long each command takes."""
        times = self.folder / "times.json"
        if not times.is_file():
            shutil.rmtree(self.whole, ignore_errors=True)
            self.whole.mkdir(parents=True)
            (self.whole / "tiny.yaml").write_text(RECIPE)
            for command in COMMANDS:
                started = time.monotonic()
                code, stderr = ended(start(command, self.whole))
                assert code == 0, stderr
                self.took[command] = time.monotonic() - started
            times.write_text(json.dumps(self.took))
        self.took = json.loads(times.read_text())
        self.wanted = {command: facts(command, self.whole) for command in COMMANDS}

    def tries(self) -> list[Try]:
        lines = self.tries_path.read_text().splitlines() if self.tries_path.is_file() else []
        return [json.loads(line) for line in lines]

    def fresh(self, command: str, to: Path) -> Path:
        """Fills the folder with what the command starts from: a run for an export, an artifact for a bench."""
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.whole / "tiny.yaml", to / "tiny.yaml")
        if command != "distill":
            shutil.copytree(self.whole / "runs", to / "runs")
            shutil.copytree(self.whole / "export", to / "export")  # an earlier artifact, which must not be lost
        return to

    def problem(self, command: str, folder: Path) -> str:
        """Returns what is wrong after the command was started again; nothing if it held."""
        code, stderr = ended(start(command, folder))
        if code != 0:
            return f"started again it exits {code}: {stderr[-300:]}"
        found = facts(command, folder)
        different = [name for name, value in self.wanted[command].items() if found.get(name) != value]
        if different:
            return f"differs in {different[0]}"
        return f"left over: {left[0]}" if (left := left_over(folder)) else ""

    def still_whole(self, command: str, folder: Path) -> str:
        """Returns what is wrong with an earlier artifact right after the harm; a bench must find it, too."""
        if command == "distill":
            return ""
        done = subprocess.run(
            [sys.executable, "-m", "edc", "verify", "export/tiny"],
            cwd=folder, env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        return "" if done.returncode == 0 else f"the artifact is not whole: {done.stderr[-200:]}"

    # The four kinds of harm: each returns what is wrong, or nothing.

    def kill(self, command: str, folder: Path, generator: random.Random) -> str:
        if generator.random() < 0.5:
            process = start(command, folder, kill_at=generator.randrange(60))
        else:
            process = start(command, folder)
            self._after_a_while(command, process, signal.SIGKILL, generator)
        code, stderr = ended(process)
        if code not in (0, -signal.SIGKILL):
            return f"exit {code}: {stderr[-300:]}"
        return self.still_whole(command, folder) or self.problem(command, folder)

    def term(self, command: str, folder: Path, generator: random.Random) -> str:
        process = start(command, folder)
        self._after_a_while(command, process, generator.choice([signal.SIGTERM, signal.SIGUSR1]), generator)
        code, stderr = ended(process)
        if code not in (0, 75) or "Traceback" in stderr:
            return f"exit {code}: {stderr[-300:]}"
        return self.still_whole(command, folder) or self.problem(command, folder)

    def double(self, command: str, folder: Path, generator: random.Random) -> str:
        first = start(command, folder)
        time.sleep(generator.choice([0.0, 0.0, generator.uniform(0, 1)]))
        ends = [ended(process) for process in (first, start(command, folder))]
        wrong = [end for end in ends if end[0] not in (0, 2) or (end[0] == 2 and "another process" not in end[1])]
        if wrong or all(code for code, _ in ends):
            return f"exits {[code for code, _ in ends]}: {(wrong or ends)[0][1][-300:]}"
        return self.still_whole(command, folder) or self.problem(command, folder)

    def disk(self, command: str, folder: Path, generator: random.Random) -> str:
        """Fills the disk so that so many bytes are left, and then makes room."""
        filler = folder / "filler"
        free = shutil.disk_usage(folder).free
        left = generator.randrange(0, 3_000_000)
        with filler.open("wb") as file:
            file.write(b"\0" * max(free - left, 0))
        code, stderr = ended(start(command, folder))
        if code not in (0, 1, 2) or "Traceback" in stderr or (code and "disk" not in stderr and "free" not in stderr):
            return f"exit {code} with {left} bytes free: {stderr[-300:]}"
        whole = self.still_whole(command, folder)
        filler.unlink()
        return whole or self.problem(command, folder)

    def _after_a_while(
        self, command: str, process: "subprocess.Popen[str]", number: int, generator: random.Random
    ) -> None:
        deadline = time.monotonic() + generator.uniform(0.3, 1.1 * self.took[command])
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(number)

    def run(self, plan: dict[str, int], *, minutes: float) -> None:
        """Does what is left of the plan, kind by kind in turn, until the minutes are over (0: until the end)."""
        harm: dict[str, Callable[[str, Path, random.Random], str]] = {
            "SIGKILL": self.kill,
            "SIGTERM or SIGUSR1": self.term,
            "double start": self.double,
            "full disk": self.disk,
        }
        done = {(each["kind"], each["number"]) for each in self.tries()}
        left = [(number, kind) for kind, num in plan.items() for number in range(num) if (kind, number) not in done]
        deadline = time.monotonic() + 60 * minutes
        for number, kind in sorted(left):
            if minutes and time.monotonic() > deadline:
                return
            generator = random.Random(f"{self.seed} {kind} {number}")
            command = list(COMMANDS)[number % len(COMMANDS)]
            place = self.folder / "try"
            shutil.rmtree(place, ignore_errors=True)  # of a torture that was itself stopped
            mounted = _mount(place) if kind == "full disk" else False
            try:
                problem = harm[kind](command, self.fresh(command, place), generator)
            finally:
                if mounted:
                    subprocess.run(["umount", str(place)], check=True)
                shutil.rmtree(place, ignore_errors=True)
            one = {"kind": kind, "number": number, "command": command, "problem": problem}
            with self.tries_path.open("a") as file:
                file.write(json.dumps(one) + "\n")
            print(f"{kind} {number} ({command}): {problem or 'held'}", file=sys.stderr, flush=True)


def _mount(place: Path) -> bool:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], check=True)
    return True


def table(tries: list[Try]) -> str:
    """Returns the table: how often each harm was tried on each command, and how often all held."""
    tried = Counter((each["kind"], each["command"]) for each in tries)
    held = Counter((each["kind"], each["command"]) for each in tries if not each["problem"])
    kinds = dict.fromkeys(kind for kind, _ in tried)
    lines = ["| harm | " + " | ".join(COMMANDS) + " | tried | held |", "|---" * (len(COMMANDS) + 3) + "|"]
    for kind in kinds:
        cells = [f"{held[kind, command]} of {tried[kind, command]}" for command in COMMANDS]
        total, well = (sum(counts[kind, command] for command in COMMANDS) for counts in (tried, held))
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {total} | {well} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, default in (("kills", 100), ("terms", 50), ("doubles", 60), ("disks", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--minutes", type=float, default=0.0)
    asked = parser.parse_args()
    torture = Torture(asked.folder, seed=asked.seed)
    torture.prepare()
    plan = {
        "SIGKILL": asked.kills,
        "SIGTERM or SIGUSR1": asked.terms,
        "double start": asked.doubles,
        "full disk": asked.disks,
    }
    torture.run(plan, minutes=asked.minutes)
    tries = torture.tries()
    print(f"{datetime.now(UTC):%Y-%m-%d}\n\n{table(tries)}")
    sys.exit(any(each["problem"] for each in tries))


if __name__ == "__main__":
    main()
