"""`edc distill --profile`: parts that add up to the step, a readable trace, and a run folder that stays as it was."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from command_line import edc
from conftest import TINY_RECIPE

from edc.runs.profile import MEASURED_STEPS, PARTS, _exclusive_spans


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A folder in which the tiny recipe was profiled before anything was trained, and what the command said."""
    folder = tmp_path_factory.mktemp("profiled")
    (folder / "tiny.yaml").write_text(TINY_RECIPE)
    called = edc("distill", "tiny.yaml", "--device", "cpu", "--threads", "1", "--profile", "--json", cwd=folder)
    assert called.exit_code == 0, called.stderr
    return folder, called


def files_in(folder: Path) -> dict[str, float]:
    return {str(path.relative_to(folder)): path.stat().st_mtime for path in folder.rglob("*") if path.is_file()}


def trace_of(folder: Path, document: dict) -> list[dict]:
    with gzip.open(folder / document["trace"], "rt") as file:
        return json.load(file)["traceEvents"]


def test_shares_add_up_to_the_whole_step(profiled):
    document = profiled[1].document
    assert [part["name"] for part in document["ranges"]] == [*PARTS, "other"]
    assert sum(part["share"] for part in document["ranges"]) == pytest.approx(1, abs=1e-9)
    assert sum(part["ms"] for part in document["ranges"]) == pytest.approx(document["step_ms"], rel=1e-9)
    assert all(part["share"] > 0 for part in document["ranges"])
    assert document["ranges"][-1]["share"] < 0.5, "most of the step has no name"
    assert document["ranges"][0]["kernels_ms"] is None
    assert document["exchange_ms"] is None


def test_parts_are_those_of_the_trace(profiled):
    """Read again from the file that a browser would open, by its own keys: `ts` and `dur` in microseconds."""
    folder, called = profiled
    events = [event for event in trace_of(folder, called.document) if event.get("name", "").startswith("edc:")]
    ends = sorted(event["ts"] + event["dur"] for event in events if event["name"] == "edc:optimizer")
    first, last = ends[0], ends[MEASURED_STEPS]
    assert called.document["step_ms"] == pytest.approx((last - first) / 1000 / MEASURED_STEPS, rel=1e-3)
    by_name = {part["name"]: part for part in called.document["ranges"]}
    for name in PARTS:  # none of them lies inside another, so their lengths are their own
        mine = [e for e in events if e["name"] == f"edc:{name}" and first <= e["ts"] and e["ts"] + e["dur"] <= last + 1]
        assert by_name[name]["calls"] == len(mine) / MEASURED_STEPS >= 1
        assert by_name[name]["ms"] == pytest.approx(sum(e["dur"] for e in mine) / 1000 / MEASURED_STEPS, rel=1e-3)


def test_ten_operators_by_their_own_time(profiled):
    operators = profiled[1].document["operators"]
    assert len(operators) == 10
    assert [o["ms"] for o in operators] == sorted((o["ms"] for o in operators), reverse=True)
    assert any("convolution" in operator["name"] for operator in operators)
    assert not any(operator["name"].startswith(("edc:", "Optimizer.step")) for operator in operators)


def test_profiling_leaves_nothing_but_its_own_folder(profiled):
    folder, called = profiled
    assert sorted(files_in(folder)) == [
        "runs/tiny-profile/profile.json",
        "runs/tiny-profile/trace.json.gz",
        "tiny.yaml",
    ]
    assert json.loads((folder / "runs/tiny-profile/profile.json").read_text()) == called.document
    assert called.document["teachers"] == "untrained"
    assert "teachers: untrained" in called.stderr
    assert "runs/tiny-profile/trace.json.gz" in called.stderr
    assert "gpuGetDeviceCount" not in called.stderr


def test_finished_run_stays_as_it_was_and_lends_its_teachers(workshop, tmp_path):
    shutil.copytree(workshop.folder, tmp_path / "copy")
    before = files_in(tmp_path / "copy")
    called = edc("distill", "tiny.yaml", "--device", "cpu", "--profile", cwd=tmp_path / "copy")
    assert called.exit_code == 0, called.stderr
    assert "teachers: untrained" not in called.stdout
    after = files_in(tmp_path / "copy")
    assert {name: after[name] for name in before} == before
    assert {name for name in after if name not in before and not name.endswith(".lock")} == {
        "runs/tiny-profile/profile.json",
        "runs/tiny-profile/trace.json.gz",
    }
    for word in (*PARTS, "other", "share %", "aten::", "peak memory", "trace: runs/tiny-profile/trace.json.gz"):
        assert word in called.stdout


def test_profile_and_dry_run_exclude_each_other(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    called = edc("distill", "tiny.yaml", "--profile", "--dry-run", cwd=tmp_path)
    assert called.exit_code == 2
    assert "--dry-run and --profile" in called.stderr


def test_time_of_an_inner_range_is_not_counted_twice():
    ranges = [
        (0, 100, "forward"),
        (10, 30, "perturbation"),
        (15, 20, "teachers"),
        (30, 40, "teachers"),
        (100, 110, "x"),
    ]
    lengths = [(name, sum(end - start for start, end in pieces)) for name, pieces in _exclusive_spans(ranges)]
    assert sorted(lengths) == [("forward", 70), ("perturbation", 15), ("teachers", 5), ("teachers", 10), ("x", 10)]
    spans = dict(_exclusive_spans(ranges[:2]))
    assert [piece for piece in spans["forward"] if piece[0] < piece[1]] == [(0, 10), (30, 100)]
