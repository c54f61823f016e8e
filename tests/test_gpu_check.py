"""`make gpu-check`: parts with a limit each, a table at the end, and the same command goes on where it was cut off."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TESTS, environment

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
