"""The parts of gpu_check.py. Each returns what it found as a flat record, or raises: `Skipped` with the reason."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_steps import losses_of, stepper, timed

REPOSITORY = Path(__file__).parent.parent
NUM_THREADS = 4
"""Of the CPU's side of a comparison: networks as small as these are slower on more."""
RECIPE = """
name: check
data: {kind: synthetic, image_size: 16, num_images: 512, test: 256}
network: wrn10x1
training: {epochs: 6, warmup_epochs: 1, batch_size: 32, deterministic: true}
teachers: {ensemble_size: 2}
students:
  latent_be: {method: latent_be, perturbation: tdiv_sdiv}
"""


class Skipped(Exception):  # noqa: N818 - an outcome, not an error
    """This part cannot run here, and why."""


@dataclass(frozen=True)
class Where:
    """Where a check runs and writes."""

    folder: Path
    on_gpu: bool

    @property
    def device(self) -> str:
        return "cuda" if self.on_gpu else "cpu"

    def require_gpu(self, what: str) -> None:
        """Raises `Skipped` without a GPU."""
        if not self.on_gpu:
            raise Skipped(f"{what} needs a GPU")
        import torch

        if not torch.cuda.is_available():
            raise Skipped(f"{what} needs a GPU, and torch sees none")


@dataclass(frozen=True)
class Part:
    name: str
    run: Callable[[Where], dict[str, Any]]
    limit_s: float


def doctor(_where: Where) -> dict[str, Any]:
    """What the machine can do, by trying."""
    from edc.system.doctor import diagnose

    checks = diagnose()
    broken = [f"{check.name}: {check.found}" for check in checks if check.status == "broken"]
    if broken:
        raise RuntimeError("; ".join(broken))
    return {check.name: check.found for check in checks if check.name.split(" ")[0] in ("GPU", "torch", "onnxruntime")}


def gpu_tests(where: Where) -> dict[str, Any]:
    """The tests that are marked gpu."""
    where.require_gpu("pytest -m gpu")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rs", "--tb=short"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    if done.returncode:
        raise RuntimeError(last)
    return {"pytest": last}


def agreement(where: Where) -> dict[str, Any]:
    """The losses of 20 steps here against the CPU in float32, in each precision and member form."""
    import torch

    from edc.train.placement import float32_as

    found = {}
    torch.set_num_threads(min(NUM_THREADS, torch.get_num_threads()))
    for form in ("joint", "sequential"):
        wanted = losses_of("cpu", form, None, num_steps=20)
        for name, autocast in (("ieee", None), ("tf32", None), ("bf16", torch.bfloat16)):
            if name == "tf32" and not where.on_gpu:
                found[f"{form}, tf32"] = "skipped: needs a GPU"
                continue
            with float32_as("tf32" if name == "tf32" else "ieee"):
                losses = losses_of(where.device, form, autocast, num_steps=20)
            worst = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
            found[f"{form}, {name}"] = f"{worst:.1e} of the loss"
            limit = {"ieee": 1e-3, "tf32": 2e-2, "bf16": 1e-1}[name]
            if not worst < limit:
                raise RuntimeError(f"{form} in {name}: losses differ by {worst:.1e}, expected under {limit:g}")
    return found


def resume(where: Where) -> dict[str, Any]:
    """A deterministic training that SIGTERM interrupts goes on to the losses, bit by bit, of one that nothing does."""
    whole, cut = _run_of("whole", where), where.folder / "cut"
    _write_recipe(cut)
    process = subprocess.Popen([*_edc(), "distill", "check.yaml", "--device", where.device], cwd=cut)
    metrics = cut / "runs/check/students/latent_be/metrics.jsonl"
    until = time.monotonic() + 120
    while not metrics.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code = process.wait()
    if code != 75:
        ended = "before it was interrupted" if code == 0 else f"with {code}, expected 75"
        raise RuntimeError(f"the training to interrupt ended {ended}")
    _call("distill", "check.yaml", "--device", where.device, cwd=cut)
    losses = [
        [json.loads(line)["loss"] for line in path.read_text().splitlines()]
        for path in (whole / "runs/check/students/latent_be/metrics.jsonl", metrics)
    ]
    worst = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    if worst:
        raise RuntimeError(f"losses of the resumed training differ by {worst:.1e}")
    return {"interrupted": True, "epochs": len(losses[0]), "largest difference": f"{worst:.1e} of the loss"}


def no_waiting(where: Where) -> dict[str, Any]:
    """No call of a step makes the host wait for the GPU: torch raises at the first that would."""
    where.require_gpu("torch.cuda.set_sync_debug_mode")
    import torch

    take = stepper("cuda", "joint", "tdiv_sdiv", None, small=False)
    for _ in range(3):
        take()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 10}


def step_times(where: Where) -> dict[str, Any]:
    """Milliseconds of a step by the device's clock, of the host to ask for it, operators, and peak memory, with the
    settings of a training: fp32 is IEEE, and cuDNN tunes its convolutions."""
    import torch

    from edc.train.placement import convolutions_tuned, float32_as

    found = {}
    precisions = {"fp32": None, "tf32": None, "bf16": torch.bfloat16}
    if not where.on_gpu:
        del precisions["tf32"]
    for kind in ("teacher", "kd", "latent_be", "tdiv_sdiv"):
        for name, autocast in precisions.items():
            with (
                float32_as("tf32" if name == "tf32" else "ieee"),
                convolutions_tuned(torch.device(where.device), shapes_stay=True),
            ):
                take = stepper(where.device, "joint", kind, autocast, small=not where.on_gpu)
                found[f"{kind}, {name}"] = timed(take, on_gpu=where.on_gpu)
    return found


def export(where: Where) -> dict[str, Any]:
    """Every precision, with engines where a library is, through their gates."""
    run = _run_of("whole", where)
    trt, about_engines = engine_options(where)
    command = ["export", "runs/check", "--precision", "fp32,fp16,int8", "--max-batch", "16", "--max-drop", "100"]
    document = json.loads(_call(*command, *trt, "--json", cwd=run))
    files = [file for file in document["manifest"]["files"] if file["format"] != "other"]
    ran = [file for file in files if file["parity"] is not None]
    found = {"files": len(files), "run and compared": len(ran), "formats": sorted({file["format"] for file in files})}
    return {**found, "engines": about_engines}


def engine_options(where: Where) -> tuple[list[str], str]:
    """Returns the options of `edc export` that build engines here, and which they are or why there are none: the
    ONNX files and the bench need none.
    """
    from edc.deploy.engine_files import choose_library
    from edc.errors import EdcError

    sm = [] if where.on_gpu else [86]
    try:
        library = choose_library(compute_capabilities=tuple(sm))
    except EdcError as error:
        return [], f"none ({error})"
    return ["--trt", *(["--sm", "86"] if sm else [])], library


def bench(where: Where) -> dict[str, Any]:
    """Every backend that is here, student against ensemble."""
    run = _run_of("whole", where)
    if not (run / "export/check/manifest.json").is_file():
        raise Skipped("there is no artifact: the part export did not pass")
    rehearsal = [] if where.on_gpu else ["--backends", "torch,onnxruntime", "--batch", "1"]
    document = json.loads(_call("bench", "export/check", "--quick", "--json", *rehearsal, cwd=run))
    return backends_that_ran(document["rows"])


def backends_that_ran(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns how many of each backend's rows ran, and why others did not.

    Raises:
        RuntimeError: a backend is here, has something to run, and none of its rows ran.
    """
    found: dict[str, Any] = {}
    for backend in dict.fromkeys(row["backend"] for row in rows):
        of_backend = [row for row in rows if row["backend"] == backend]
        reasons = {row["reason_not_run"] for row in of_backend if row.get("reason_not_run")}
        num_ran = sum(not row.get("reason_not_run") for row in of_backend)
        why = "".join(f"; {reason[-160:]}" for reason in sorted(reasons)[:2])
        found[backend] = f"{num_ran} of {len(of_backend)} rows{why}"
        if not num_ran and not all(" engine of " in reason for reason in reasons):
            raise RuntimeError(f"{backend}: no row ran{why}")
    return found


def data_loading(where: Where) -> dict[str, Any]:
    """Images per second from memory to the device, cropped and flipped, over one epoch of 5,120."""
    import torch

    from edc.data import load_data, train_batches
    from edc.recipe import DataSection

    section = DataSection(kind="synthetic", num_images=5120, image_size=32, test=64)
    data, device = load_data(section), torch.device(where.device)
    torch.zeros(1, device=device)  # starts CUDA
    started, num_images = time.perf_counter(), 0
    for pixels, _ in train_batches(data.train, section, batch_size=128, seed=0, epoch=0, device=device):
        num_images += len(pixels.to(device, non_blocking=True))
    if where.on_gpu:
        torch.cuda.synchronize()
    return {"images per second": round(num_images / (time.perf_counter() - started))}


PARTS = {
    part.name: part
    for part in (
        Part("doctor", doctor, 120),
        Part("gpu_tests", gpu_tests, 240),
        Part("agreement", agreement, 150),
        Part("resume", resume, 240),
        Part("no_waiting", no_waiting, 60),
        Part("step_times", step_times, 180),
        Part("export", export, 180),
        Part("bench", bench, 300),
        Part("data_loading", data_loading, 30),
    )
}


def _run_of(name: str, where: Where) -> Path:
    """Returns the folder of a finished small run, which the first part that needs it trains."""
    folder = where.folder / name
    _write_recipe(folder)
    _call("distill", "check.yaml", "--device", where.device, cwd=folder)
    return folder


def _write_recipe(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.yaml").write_text(RECIPE)


def _edc() -> list[str]:
    return [sys.executable, "-m", "edc"]


def _call(*arguments: str, cwd: Path) -> str:
    """Returns what a command of edc prints on stdout."""
    done = subprocess.run([*_edc(), *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise RuntimeError(f"edc {arguments[0]} ended with code {done.returncode}: {''.join(said)}")
    return done.stdout
