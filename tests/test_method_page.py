"""docs/method.md: its costs are those of the code, and what it names stands where it says."""

import ast
import re
from pathlib import Path

import pytest
from conftest import TESTS

from edc.recipe import StudentSection
from edc.runs.cost import units_per_step

ROOT = TESTS.parent
PAGE = (ROOT / "docs/method.md").read_text()
STUDENTS = {
    "KD": StudentSection(method="kd"),
    "KD + ODS": StudentSection(method="kd", perturbation="ods"),
    "KD + TDiv": StudentSection(method="kd", perturbation="tdiv"),
    "LatentBE": StudentSection(method="latent_be"),
    "LatentBE + TDiv-SDiv": StudentSection(method="latent_be", perturbation="tdiv_sdiv"),
    "KD, `answers: split`": StudentSection(method="kd", answers="split"),
    "LatentBE, `answers: split`": StudentSection(method="latent_be", answers="split"),
    "LatentBE + TDiv-SDiv, `answers: split`": StudentSection(perturbation="tdiv_sdiv", answers="split"),
    "labels alone (KD, `alpha: 0`)": StudentSection(method="kd", alpha=0.0),
}


def costs() -> dict[str, tuple[int, str]]:
    """Returns the units at M = 4 and the formula of each row of the page's table."""
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    return {name: (int(units), formula) for name, units, formula in rows}


@pytest.mark.parametrize("name", STUDENTS)
def test_costs_are_those_of_the_dry_run_at_any_number_of_members(name):
    units, formula = costs()[name]
    assert units == units_per_step(STUDENTS[name], 4)
    term, factor, rest = re.fullmatch(r"((?:(\d+) )?M)?(?: \+ )?(\d+)?", formula).groups()
    for num_members in (2, 3, 4, 8):
        expected = (int(factor or 1) * num_members if term else 0) + int(rest or 0)
        assert units_per_step(STUDENTS[name], num_members) == expected


def test_table_of_costs_has_the_two_rows_that_are_no_student_of_edc():
    assert set(costs()) - set(STUDENTS) == {"cross-entropy (a teacher)", "the same in the official order"}
    assert costs()["cross-entropy (a teacher)"] == (3, "3")
    assert costs()["the same in the official order"] == (32, "8 M")


def names_in(path: Path) -> set[str]:
    """Returns what a file defines: its functions, methods and classes."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def test_every_function_stands_in_the_file_that_it_is_said_to_be_in():
    """Names in backticks, then "in", then a link to a Python file: all of them are defined there."""
    said = re.findall(r"((?:`\w+`(?:, )?)+)\s+in\s+\[([\w/]+\.py)\]", PAGE)
    assert {path for _, path in said} >= {f"edc/method/{name}.py" for name in ("perturb", "losses", "member_layers")}
    for names, path in said:
        assert set(re.findall(r"`(\w+)`", names)) <= names_in(ROOT / path), (names, path)
