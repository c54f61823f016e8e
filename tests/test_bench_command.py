"""The bench from the command line: against a saved one, beside another artifact, interrupted, and refused."""

import copy
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import Called, edc
from conftest import Workshop, environment
from PIL import Image

from edc.benchmark.backends import is_installed
from edc.benchmark.measure.server import ServerPlan
from edc.benchmark.options import BenchPlan
from edc.benchmark.workers.timing import TimingPlan
from edc.system.files import sha256_of

PLAN = TimingPlan(seconds_per_row=0.05, num_rounds=8, min_rounds=8, window_ms=1.0, max_windows=5, settle_ms=0.1)
SERVER = ServerPlan(loads=(0.2,), num_rounds=1, seconds_per_point=0.01, least_requests=10, most_seconds=0.1)
CHEAP = ("--backends", "onnxruntime", "--batch", "1", "--threads", "1", "--no-robustness")
SUBJECTS = ("teacher 0", "ensemble, in turn", "ensemble, merged", "latent_be")


def bench(artifact: str | Path, *options: str | Path, cwd: Path) -> Called:
    """Returns what the least bench of an artifact ends with."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edc.benchmark.options.QUICK", BenchPlan(PLAN, PLAN, 8, SERVER, 2000))
        return edc("bench", artifact, "--quick", "--json", *CHEAP, *options, cwd=cwd)


@pytest.fixture(scope="module")
def place(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the artifact, its run, and `old.json`, an earlier bench of it."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(workshop.artifact, folder / "tiny")
    (folder / "runs").symlink_to(workshop.folder / "runs")
    called = bench("tiny", cwd=folder)
    assert called.exit_code == 0, called.stderr
    shutil.copy(folder / "tiny/bench.json", folder / "old.json")
    return folder


def old_bench(place: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((place / "old.json").read_text())
    return document


def faster(document: dict[str, Any], times: float) -> dict[str, Any]:
    """Returns a bench in which every row was so many times as fast."""
    document = copy.deepcopy(document)
    for row in document["rows"]:
        row["p50_ms"] = {name: value and value / times for name, value in row["p50_ms"].items()}
        row["round_medians_ms"] = {number: ms / times for number, ms in row["round_medians_ms"].items()}
    return document


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(place: Path, *options: str | Path, artifact: str = "tiny") -> str:
    """Returns the one message of a bench that was refused; it wrote nothing, and measured nothing."""
    before = files_of(place / artifact)
    called = bench(artifact, *options, cwd=place)
    assert called.exit_code == 2, called.stderr
    assert files_of(place / artifact) == before
    errors = [line for line in called.stderr.splitlines() if line.startswith("error: ")]
    assert [f"error: {called.document['error']['message']}"] == errors
    assert "loading" not in called.stderr
    return errors[0]


def test_bench_against_an_earlier_one_says_what_changed(place):
    called = bench("tiny", "--compare", "old.json", "--fail-on", "99%", cwd=place)
    comparison = called.document["comparison"]
    times = {change["key"]: change for change in comparison["changes"] if change["figure"] == "p50_ms"}
    assert times.keys() == {f"{subject} on onnxruntime" for subject in SUBJECTS}
    old = {f"{row['subject']} on onnxruntime": row["p50_ms"]["value"] for row in old_bench(place)["rows"]}
    for key, change in times.items():
        assert change["old"] == old[key]
        assert change["change"]["value"] == pytest.approx(change["new"] / old[key])
    # Other work on this machine may have made a row twice as slow; what must not happen is a silent failure.
    assert called.exit_code == comparison["exit_code"] == (1 if comparison["worse"] else 0)
    assert all(f"got worse: {name}" in called.stderr for name in comparison["worse"])
    good_news = ("nothing got worse", "nothing is shown to have got worse")
    assert comparison["worse"] or any(words in " ".join(called.stderr.split()) for words in good_news)
    saved = json.loads((place / "tiny/bench.json").read_text())
    assert {**saved, "comparison": comparison} == called.document  # which is what was measured, and no more


def test_rows_that_became_slower_fail_by_name(place):
    old = faster(old_bench(place), 10)
    for row in old["rows"]:  # as sure as a quiet machine is: this one may be at work for others, and change its speed
        row["probe_us"] = None
        value = row["p50_ms"]["value"]
        row["p50_ms"] = {"value": value, "low": value * 0.99, "high": value * 1.01}
        row["round_medians_ms"] = dict.fromkeys(row["round_medians_ms"], value)
    (place / "fast.json").write_text(json.dumps(old))
    called = bench("tiny", "--compare", "fast.json", cwd=place)
    assert called.exit_code == called.document["comparison"]["exit_code"] == 1, called.stderr
    worse = called.document["comparison"]["worse"]
    assert worse
    said = " ".join(called.stderr.split())
    assert all(f"got worse: {name}" in said for name in worse)
    assert set(worse) <= {f"{subject} on onnxruntime at batch 1" for subject in SUBJECTS}
    assert (place / "tiny/report.html").is_file()  # the bench itself is as good as any


def test_what_all_rows_share_is_divided_out_when_asked_for(place):
    (place / "half.json").write_text(json.dumps(faster(old_bench(place), 2)))
    called = bench("tiny", "--compare", "half.json", "--relative", cwd=place)
    comparison = called.document["comparison"]
    assert comparison["relative"] is True
    ratios = [change["new"] / change["old"] for change in comparison["changes"] if change["figure"] == "p50_ms"]
    assert comparison["common_factor"] == pytest.approx(sum(sorted(ratios)[1:3]) / 2)
    judged = [change["against_rest"]["value"] for change in comparison["changes"] if change["figure"] == "p50_ms"]
    assert judged == pytest.approx([ratio / comparison["common_factor"] for ratio in ratios])
    assert called.exit_code == comparison["exit_code"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpu": "Another CPU"}, "--compare: the saved bench ran with cpu Another CPU"),
        ({"threads": 7}, "--compare: the saved bench ran with threads 7, this one with 1: .*; give --threads 7"),
        ({"gpu": "Another GPU"}, "--compare: the saved bench ran with gpu Another GPU, this one with None"),
    ],
)
def test_bench_of_another_machine_is_refused_before_anything_is_measured(place, changes, message):
    old = old_bench(place)
    old["environment"] |= changes
    (place / "other.json").write_text(json.dumps(old))
    refused = refusal(place, "--compare", "other.json")
    assert re.search(message, refused)


def test_bench_of_another_task_is_refused_before_anything_is_measured(place):
    old = old_bench(place)
    old["class_names"] = [f"other {name}" for name in old["class_names"]]
    (place / "task.json").write_text(json.dumps(old))
    assert "--compare: the saved bench is of a network with other classes" in refusal(place, "--compare", "task.json")


def test_bench_of_other_rows_is_refused_before_anything_is_measured(place):
    assert "no row in common" in refusal(place, "--compare", "old.json", "--batch", "2")


@pytest.mark.parametrize("option", [("--relative",), ("--fail-on", "5%")])
def test_options_of_a_comparison_need_one(place, option):
    assert f"{option[0]}: needs --compare OLD.json" in refusal(place, *option)


@pytest.mark.slow
def test_another_artifact_is_measured_beside_it(place, workshop):
    kd = place / "more/kd"
    shutil.copytree(workshop.run, kd)
    shutil.copytree(workshop.folder / "runs/teachers", place / "more/teachers")
    recipe = kd / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("deploy: latent_be", "deploy: kd"))
    exported = edc("export", kd, "--max-batch", "8", "--output", "only kd", cwd=place)
    assert exported.exit_code == 0, exported.stderr
    called = bench("tiny", "--also", "only kd", cwd=place)
    assert called.exit_code == 0, called.stderr
    document = called.document
    added = "only kd: kd on onnxruntime"
    keys = [f"{row['artifact']}: " * bool(row["artifact"]) + row["subject"] for row in document["rows"]]
    assert keys == [*SUBJECTS, "only kd: kd"]  # and not its ensemble, which is the same
    row = document["rows"][-1]
    known = {each["subject"]: each for each in workshop.distilled.document["rows"]}["kd"]
    assert row["quality"]["raw"]["nll"] == pytest.approx(known["calibrated"]["nll"], abs=1e-4)
    assert row["parameters"] == known["parameters"]
    assert row["against"][0]["baseline"].startswith("ensemble, ")
    assert set(document["details"]) == {added, *(f"{subject} on onnxruntime" for subject in SUBJECTS)}
    assert added in {each["key"] for each in document["throughput"]}
    assert document["verdict"]["row"] == "latent_be on onnxruntime"
    assert "only kd: kd" in called.stderr
    assert "only kd: kd" in (place / "tiny/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["classes"].reverse(), "--also foreign: has "),
        (
            lambda manifest: manifest["preprocessing"].update(image_size=[7, 7]),
            "--also foreign: takes RGB images of 7x7",
        ),
    ],
)
def test_artifact_of_another_task_is_refused_beside_it(place, change, message):
    shutil.rmtree(place / "foreign", ignore_errors=True)
    shutil.copytree(place / "tiny", place / "foreign")
    manifest = json.loads((place / "foreign/manifest.json").read_text())
    change(manifest)
    (place / "foreign/manifest.json").write_text(json.dumps(manifest))
    assert message in refusal(place, "--also", "foreign")


def test_artifact_is_not_measured_twice(place):
    assert "--also tiny: is measured already" in refusal(place, "--also", "./tiny")
    shutil.copytree(place / "tiny", place / "twin")
    assert "twin: is measured already" in refusal(place, "--also", "twin", "--also", place / "tiny/../twin")


@pytest.mark.slow
def test_ctrl_c_leaves_the_files_of_the_last_bench(place):
    before = files_of(place / "tiny")
    assert {"bench.json", "report.html"} <= before.keys()
    command = [sys.executable, "-m", "edc", "bench", "tiny", *CHEAP]
    # A child inherits that SIGINT is ignored, as it is in a shell's background jobs, but not a handler.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=place, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("timing "):
                os.kill(process.pid, signal.SIGINT)
                break
        rest = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    said = "".join(lines) + rest
    assert process.returncode == 130, said
    assert "interrupted; what was written before is intact" in rest
    assert "Traceback" not in said
    assert files_of(place / "tiny") == before


@pytest.fixture(scope="module")
def on_files(place: Path) -> Path:
    """The artifact as one whose images lie in folders, which are anywhere: --data-root has to say."""
    shutil.copytree(place / "tiny", place / "on_files")
    recipe = place / "on_files/recipe.yaml"
    document = yaml.safe_load(recipe.read_text())
    document["data"] = {"kind": "image_folder", "image_size": 8}
    recipe.write_text(yaml.safe_dump(document))
    manifest = json.loads((place / "on_files/manifest.json").read_text())
    record = next(file for file in manifest["files"] if file["path"] == "recipe.yaml")
    record.update(sha256=sha256_of(recipe), bytes=recipe.stat().st_size)
    (place / "on_files/manifest.json").write_text(json.dumps(manifest))
    return place


def write_images(folder: Path, classes: Sequence[str], *, num_images: int) -> None:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(num_images):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name / f"{number}.png")


@pytest.mark.parametrize(
    ("num_train", "num_test", "prefix", "message"),
    [
        (4, 0, "class", "untested/test/class0: no images"),
        (1, None, "class", "data.validation, data.test or data.train_limit: 0 of 4 images cannot be set apart"),
        (0, None, "class", "untested/train/class0: no images"),
        (10, 4, "kind", r"on_files: knows 4 classes \(class0, .*, its data set has 4 classes \(kind0, .*--data-root"),
    ],
)
def test_data_set_without_the_test_images_is_refused(on_files, tmp_path, num_train, num_test, prefix, message):
    root = tmp_path / "untested"
    classes = [f"{prefix}{number}" for number in range(4)]
    write_images(root / "train", classes, num_images=num_train)
    if num_test is not None:
        write_images(root / "test", classes, num_images=num_test)
    found = refusal(on_files, "--data-root", root, artifact="on_files")
    assert re.search(message, found), found
    assert "DataError" in bench("on_files", "--data-root", root, cwd=on_files).document["error"]["kind"]


def test_data_that_is_not_there_is_refused(on_files, tmp_path):
    assert "point data.root or --data-root" in refusal(on_files, "--data-root", tmp_path / "gone", artifact="on_files")


def test_report_holds_the_verdict_of_the_bench(place):
    document = json.loads((place / "tiny/bench.json").read_text())
    page = html.unescape((place / "tiny/report.html").read_text())
    signs = str.maketrans({"\u2212": "-", "\u2013": "-"})  # the page writes minus and "to" as typographers do
    assert len(document["verdict"]["sentences"]) >= 4
    for sentence in document["verdict"]["sentences"]:
        assert sentence in page.translate(signs).replace("<wbr>", "")


@pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="tensorrt-rtx is not installed")
def test_bench_in_which_nothing_can_run_fails_and_keeps_the_last_one(place):
    before = {name: (place / "tiny" / name).read_bytes() for name in ("bench.json", "report.html")}
    called = edc("bench", "tiny", "--quick", "--threads", "1", "--backends", "tensorrt-rtx", cwd=place)
    assert called.exit_code == 1
    assert "error: bench: no row could run, so nothing was written. " in called.stderr
    assert {name: (place / "tiny" / name).read_bytes() for name in before} == before


@pytest.mark.skipif(is_installed("tensorrt"), reason="tensorrt is installed here")
def test_backend_that_is_not_installed_is_refused_with_the_line_that_installs_it(place):
    message = refusal(place, "--backends", "onnxruntime,tensorrt")
    assert "backend tensorrt: is not installed; install it with: pip install 'edc[trt]'" in message
