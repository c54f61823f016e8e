"""What stands around the code agrees with pyproject.toml: workflow, lock file, citation, issue forms, make targets."""

import re
import tomllib
from typing import Any

import pytest
import yaml
from conftest import TESTS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edc

ROOT = TESTS.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements-dev.lock").read_text()
TARGETS = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    document: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    return document


def made_by(job: dict[str, Any]) -> list[str]:
    """Returns the make targets that a job of the workflow calls."""
    lines = [step["run"] for step in job["steps"] if "run" in step]
    return [target for line in lines for target in re.findall(r"\bmake ([\w-]+)", line)]


def test_workflow_tests_every_python_that_the_classifiers_name(workflow):
    named = [
        found[1]
        for classifier in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", classifier))
    ]
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"


def test_workflow_makes_what_a_developer_makes(workflow):
    jobs = workflow["jobs"]
    assert {name: made_by(job) for name, job in jobs.items()} == {
        "test": ["test"], "coverage": ["coverage"], "slow": ["test-slow"],
    }  # fmt: skip
    assert {target for job in jobs.values() for target in made_by(job)} <= TARGETS
    for job in jobs.values():
        variables = re.findall(r"\b([A-Z]+)=", " ".join(step.get("run", "") for step in job["steps"]))
        assert variables
        assert all(re.search(rf"^{name} \?=", MAKEFILE, re.MULTILINE) for name in variables)
        assert job["timeout-minutes"]


def test_slow_tests_run_weekly_and_the_rest_when_something_changes(workflow):
    triggers = workflow[True]  # YAML 1.1 reads `on` as true
    assert set(triggers) == {"push", "pull_request", "workflow_dispatch", "schedule"}
    assert len(triggers["schedule"]) == 1
    assert triggers["schedule"][0]["cron"].split()[2:4] == ["*", "*"]
    assert triggers["schedule"][0]["cron"].split()[4].isdigit()
    assert "== 'schedule'" in workflow["jobs"]["slow"]["if"]
    assert workflow["jobs"]["test"]["if"] == workflow["jobs"]["coverage"]["if"] == "github.event_name != 'schedule'"
    assert workflow["concurrency"]["cancel-in-progress"] is True


def test_makefile_names_its_targets_at_the_top():
    listed = set(re.findall(r"^# make ([\w-]+)", MAKEFILE.split("\n\n", maxsplit=1)[0], re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    assert listed == phony == TARGETS
    assert listed >= {"demo", "test", "test-slow", "coverage", "lint", "format", "lock", "clean"}


def requirements(names: list[str]) -> list[Requirement]:
    """Returns requirements that apply to Linux on x86-64, extras of edc itself replaced by what they hold."""
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "extra": ""}
    found = []
    for requirement in map(Requirement, names):
        if requirement.marker and not requirement.marker.evaluate(linux):
            continue
        if requirement.name == "edc":
            for extra in requirement.extras:
                found += requirements(PROJECT["optional-dependencies"][extra])
        else:
            found.append(requirement)
    return found


def test_lock_file_has_a_version_that_fits_for_everything_the_tests_need():
    """If this fails after a change of the dependencies: make lock."""
    locked = dict(line.split("==") for line in LOCK.splitlines() if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in locked.items()}
    needed = requirements([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]])
    assert {"torch", "pytest", "openvino", "pyarrow"} <= {requirement.name for requirement in needed}
    wrong = [
        str(requirement)
        for requirement in needed
        if not requirement.specifier.contains(versions.get(canonicalize_name(requirement.name), "0"))
    ]
    assert wrong == []


def test_lock_file_holds_names_and_versions_and_nothing_of_a_machine():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.+!-]*", line)] == []


def test_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == edc.__version__
    assert citation["license"] == PROJECT["license"]
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Nam", "Lee", "Heo", "Lee"]
    assert paper["identifiers"][0]["value"] == "arXiv:2206.15047"
    assert paper["year"] == 2022


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_form_can_be_read(path):
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["attributes"]["label"] for field in form["body"])


def test_bug_form_asks_for_the_command_and_the_machine():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    required = {field["id"]: field["attributes"]["label"] for field in form["body"] if field["validations"]["required"]}
    assert "command" in required
    assert "edc doctor --json" in required["doctor"]


def test_coverage_has_a_floor_and_costs_an_ordinary_test_run_nothing():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["coverage"]["report"]["fail_under"] >= 80
    assert "--cov" not in tools["pytest"]["ini_options"]["addopts"]
    assert "--cov" in re.search(r"^coverage:.*\n\t(.*)$", MAKEFILE, re.MULTILINE)[1]
