"""`make gpu-check`: parts with a limit each, a table at the end, and the same command goes on where it was cut off."""

import ast
import fcntl
import importlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO

import pytest
import stub_gpu
import torch
from conftest import TESTS, environment
from typer.testing import CliRunner

from edc.cli.main import app
from edc.errors import FailedError

SCRIPT = TESTS.parent / "benchmarks/gpu_check.py"


def check(folder: Path, *options: str) -> tuple[int, dict[str, dict], str]:
    """Returns the exit code, what each part found, and the table."""
    command = [sys.executable, str(SCRIPT), "--cpu", "--output", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=folder.parent, check=False)
    document = json.loads((folder / "gpu_check.json").read_text())
    return done.returncode, {part["name"]: part for part in document["parts"]}, (folder / "gpu_check.md").read_text()


def test_parts_are_skipped_with_reasons_limited_and_not_repeated_once_they_have_passed(tmp_path):
    folder = tmp_path / "found"
    code, parts, table = check(folder, "--parts", "no_waiting,agreement", "--limit-scale", "0.01")
    assert code == 1
    assert parts["agreement"]["status"] == "over its limit"
    assert "| agreement | over its limit |" in table
    assert "torch 2." in table
    code, parts, _ = check(folder, "--parts", "no_waiting")
    assert code == 0
    assert (parts["no_waiting"]["status"], parts["no_waiting"]["reason"]) == (
        "skipped", "torch.cuda.set_sync_debug_mode needs a GPU"
    )  # fmt: skip
    code, again, _ = check(folder, "--parts", "no_waiting", "--limit-scale", "0")
    assert code == 0
    assert again["no_waiting"] == parts["no_waiting"]  # not run again


def test_limits_of_the_parts_add_up_to_25_minutes_and_docs_say_the_same():
    calls = [node for node in ast.walk(ast.parse((SCRIPT.parent / "gpu_parts.py").read_text())) if _is_part(node)]
    limits = {call.args[0].value: call.args[2].value for call in calls}
    page = (TESTS.parent / "docs/gpu.md").read_text()
    assert {name: int(limit) for name, limit in re.findall(r"^\| (\w+) \|.*\| (\d+) \|$", page, re.MULTILINE)} == limits
    assert sum(limits.values()) <= 25 * 60


def _is_part(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "Part"


def test_docs_list_exactly_the_tests_that_are_left_for_a_gpu():
    """Those that `pytest -m gpu --collect-only` lists."""
    marked = {
        f"tests/{path.name}::{node.name}"
        for path in TESTS.glob("test_*.py")
        if "pytest.mark.gpu" in (text := path.read_text())
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(decorator) == "pytest.mark.gpu" for decorator in node.decorator_list)
    }
    others = [path for path in TESTS.glob("test_*.py") if path != Path(__file__)]
    assert sum(path.read_text().count("mark.gpu") for path in others) == len(marked), "marked in another way"
    page = (TESTS.parent / "docs/gpu.md").read_text()
    assert len(marked) > 3
    assert set(re.findall(r"`(tests/test_\w+\.py::\w+)`", page)) == marked


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_it_runs_on_the_cpu_to_its_end(tmp_path):
    code, parts, table = check(tmp_path / "found", "--limit-scale", "3")
    print(table)
    assert code == 0
    assert {name: part["status"] for name, part in parts.items()} == {
        "doctor": "ok", "gpu_tests": "skipped", "agreement": "ok", "resume": "ok", "no_waiting": "skipped",
        "step_times": "ok", "export": "ok", "bench": "ok", "data_loading": "ok",
    }  # fmt: skip
    assert parts["resume"]["found"]["interrupted"]


# What the parts ask for where a GPU is


@pytest.fixture
def gpu_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    yield importlib.import_module("gpu_parts")
    for name in ("gpu_parts", "gpu_steps", "gpu_check"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_device_that_the_parts_name_is_one_that_edc_takes(gpu_parts, tmp_path):
    """Three parts of nine asked for one that it refused as no option."""
    (tmp_path / "check.yaml").write_text(gpu_parts.RECIPE)
    device = gpu_parts.Where(tmp_path, on_gpu=True).device
    command = ["distill", str(tmp_path / "check.yaml"), "--device", device, "--runs", str(tmp_path / "runs")]
    found = CliRunner().invoke(app, command).exception
    assert isinstance(found, FailedError), found
    assert re.match(r"--device cuda: no CUDA device that torch can use \(torch .*--device cpu", str(found))


def test_step_times_say_the_precision_that_they_computed_in(gpu_parts, tmp_path, monkeypatch):
    """torch computes convolutions of float32 in TF32 unless it is told not to; the table called that fp32."""

    def timed(_take: object, *, on_gpu: bool) -> tuple[str, str, bool]:
        matmul, conv = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
        return matmul, conv, torch.backends.cudnn.benchmark

    monkeypatch.setattr(gpu_parts, "stepper", lambda *_, **__: None)
    monkeypatch.setattr(gpu_parts, "timed", timed)
    found = gpu_parts.step_times(gpu_parts.Where(tmp_path, on_gpu=True))
    kinds = ("teacher", "kd", "latent_be", "tdiv_sdiv")
    wanted = {"fp32": ("ieee", "ieee", True), "tf32": ("tf32", "tf32", True), "bf16": ("ieee", "ieee", True)}
    assert found == {f"{kind}, {name}": flags for kind in kinds for name, flags in wanted.items()}


@pytest.mark.parametrize(
    ("generation", "installed", "wanted"),
    [
        (90, ("tensorrt_rtx",), ([], r"none \(--trt: TensorRT-RTX knows SM 75, 80, .* and not SM 90")),
        (90, ("tensorrt", "tensorrt_rtx"), (["--trt"], "tensorrt$")),
        (86, ("tensorrt_rtx",), (["--trt"], "tensorrt_rtx$")),
        (86, (), ([], r"none \(--trt: no engine library here")),
    ],
)
def test_files_are_written_and_benched_where_no_library_builds_engines_for_the_gpu(
    gpu_parts, tmp_path, monkeypatch, generation, installed, wanted
):
    """An H100 with TensorRT-RTX alone: the part export failed, and there was nothing to bench."""
    stub_gpu.install(monkeypatch, *installed, generation=generation)
    options, said = gpu_parts.engine_options(gpu_parts.Where(tmp_path, on_gpu=True))
    assert options == wanted[0]
    assert re.match(wanted[1], said)


def test_a_backend_of_which_nothing_ran_fails_the_part_unless_there_was_nothing_to_run(gpu_parts):
    def row(backend: str, reason: str | None = None) -> dict[str, str | None]:
        return {"backend": backend, "reason_not_run": reason}

    absent = "no tensorrt engine of student in the artifact; edc export --trt builds engines"
    rows = [row("torch-cuda"), row("torch-cuda", "no memory"), row("tensorrt", absent)]
    assert gpu_parts.backends_that_ran(rows) == {
        "torch-cuda": "1 of 2 rows; no memory", "tensorrt": f"0 of 1 rows; {absent}"
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="onnxruntime-cuda: no row ran; fell back to CPUExecutionProvider"):
        gpu_parts.backends_that_ran([*rows, row("onnxruntime-cuda", "fell back to CPUExecutionProvider")])


def test_what_a_part_has_started_ends_with_it(gpu_parts, tmp_path, monkeypatch):
    """Else a training of one part is on the GPU while the next is timed."""
    gpu_check = importlib.import_module("gpu_check")
    child = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "file.write('held'); file.flush(); time.sleep(60)"
    )
    held = tmp_path / "held"
    (tmp_path / "part.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}, {str(held)!r}])\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(tmp_path / "part.py"))
    result = gpu_check.run_apart("resume", gpu_parts.Where(tmp_path, on_gpu=False), limit_s=3)
    assert result.status == "over its limit"
    assert held.read_text() == "held"
    with held.open() as file:
        until = time.monotonic() + 10
        while not can_lock(file) and time.monotonic() < until:
            time.sleep(0.05)
        assert can_lock(file), "a process of the part lives on"


def can_lock(file: IO[str]) -> bool:
    """Returns whether the file can be locked here: nobody else holds it."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
