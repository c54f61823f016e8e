"""A bench of a real artifact: every subject on every backend, the figures of the run, and a fair baseline."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Called, edc
from conftest import Workshop
from page_reader import show, wider_than_the_screen

from edc.benchmark.backends import BACKENDS, available_backends
from edc.benchmark.measure.server import ServerPlan
from edc.benchmark.options import BenchPlan
from edc.benchmark.page.numbers import typeset
from edc.benchmark.workers.timing import TimingPlan

PLAN = TimingPlan(seconds_per_row=0.02, num_rounds=8, min_rounds=8, window_ms=1.0, max_windows=5, settle_ms=0.1)
"""Two runs of each row or more in each of 8 rounds: enough for a median, and for an interval of the ratios."""

SERVER = ServerPlan(loads=(0.2, 0.4), num_rounds=3, seconds_per_point=0.02, least_requests=50, most_seconds=0.5)
BATCHES = (1, 4)
ON_TORCH = {
    "teacher 0": "teacher 0",
    "ensemble, in turn": "ensemble",
    "kd": "kd",
    "latent_be (members)": "latent_be (members)",
    "latent_be": "latent_be",
}
ON_ONNX = {
    "teacher 0": "teacher 0",
    "ensemble, in turn": "ensemble",
    "ensemble, merged": "ensemble",
    "latent_be": "latent_be",
}
BF16 = "openvino-bf16"
INSTALLED = list(available_backends(quick=True))


@dataclass(frozen=True)
class Benched:
    """What `edc bench --json` printed and where."""

    called: Called
    artifact: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.called.document["rows"]


def benched(artifact: Path, *options: str | Path, cwd: Path, quick_images: int = 2000) -> Benched:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edc.benchmark.options.QUICK", BenchPlan(PLAN, PLAN, 4, SERVER, quick_images))
        called = edc("bench", artifact, "--quick", "--json", "--threads", "1", *options, cwd=cwd)
    assert called.exit_code == 0, called.stderr
    return Benched(called, artifact)


@pytest.fixture(scope="module")
def bench(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """Every subject on every backend that is installed."""
    artifact = tmp_path_factory.mktemp("bench") / "tiny [v2]"
    shutil.copytree(workshop.artifact, artifact)
    return benched(artifact, "--robustness", "--batch", ",".join(map(str, BATCHES)), cwd=workshop.folder)


@pytest.fixture(scope="module")
def bench_alone(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Benched:
    """An artifact on a machine that has no runs."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(workshop.artifact, folder / "tiny")
    options = ("--backends", "torch,onnxruntime", "--batch", "1", "--run", "runs/gone[v2]")
    with pytest.MonkeyPatch.context() as patched:
        for limit in ("QUICK_ROBUSTNESS_S", "QUICK_SERVER_S"):
            patched.setattr(f"edc.benchmark.forecast.{limit}", 0.0)
        return benched(folder / "tiny", *options, cwd=folder, quick_images=20)


def test_there_is_a_row_for_every_subject_backend_and_batch_and_all_ran(bench: Benched):
    assert {"torch", "onnxruntime"} <= set(INSTALLED)
    wanted = {
        (subject, backend, batch)
        for backend in INSTALLED
        for subject in (ON_TORCH if backend == "torch" else ON_ONNX)
        for batch in BATCHES
    }
    found = [(row["subject"], row["backend"], row["batch"]) for row in bench.rows]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    assert [row["reason_not_run"] for row in bench.rows] == [None] * len(found)
    for row in bench.rows:
        assert row["what_ran"]["precision"] == ("bf16" if row["backend"] == BF16 else "fp32")
        assert row["what_ran"]["threads"] == 1
        assert row["num_samples"] >= PLAN.num_rounds
        assert 0 < row["p50_ms"]["value"] < 1000
        assert row["file_bytes"] > 4 * row["parameters"] * 0.99


def test_quality_of_every_row_is_that_of_the_summary(bench: Benched, workshop: Workshop):
    summary = {row["subject"]: row for row in workshop.distilled.document["rows"]}
    num_images = workshop.distilled.document["data"]["test"]
    assert bench.called.document["num_test_images"] == num_images
    ensembles_are_tempered = False
    for row in bench.rows:
        tolerance = 100 if row["backend"] == BF16 else 1
        known = summary[(ON_TORCH if row["backend"] == "torch" else ON_ONNX)[row["subject"]]]
        # The exported student's logits are divided by its temperature already: raw there is calibrated here.
        is_tempered = row["subject"] == "latent_be" and row["backend"] != "torch"
        averages_tempered_members = known["member_temperature"] != 1
        raw = known["calibrated" if is_tempered or averages_tempered_members else "raw"]
        assert abs(row["quality"]["raw"]["acc"] - raw["acc"]) <= (tolerance > 1) * 0.05 + 1 / num_images + 1e-12
        if not averages_tempered_members:
            assert row["quality"]["raw"]["nll"] == pytest.approx(raw["nll"], abs=1e-4 * tolerance)
        assert row["quality"]["calibrated"]["nll"] == pytest.approx(known["calibrated"]["nll"], abs=1e-4 * tolerance)
        temperature = 1 if is_tempered else known["calibration_temperature"]
        assert row["quality"]["calibration_temperature"] == pytest.approx(temperature, rel=1e-2 * tolerance)
        assert row["parameters"] == known["parameters"]
        ensembles_are_tempered |= averages_tempered_members and row["subject"] == "ensemble, merged"
        if row["dee"] is not None and known["dee"] is not None and tolerance == 1:
            assert row["dee"] == pytest.approx(known["dee"], abs=1e-2)
    assert ensembles_are_tempered, "the case shows nothing of members' temperatures"


def test_agreement_is_with_the_ensemble(bench: Benched):
    for row in bench.rows:
        if row["subject"].startswith("ensemble"):
            assert row["quality"]["agreement"] >= 1 - 1 / 40
    assert any(row["quality"]["agreement"] < 1 for row in bench.rows)


@pytest.mark.parametrize("batch", BATCHES)
def test_baseline_is_the_faster_form_of_the_ensemble(bench: Benched, batch):
    rows = [row for row in bench.rows if row["batch"] == batch]
    fastest = {}
    for backend in INSTALLED:
        forms = [row for row in rows if row["backend"] == backend and row["subject"].startswith("ensemble")]
        best = min(forms, key=lambda row: row["p50_ms"]["value"])
        fastest[backend] = f"{best['subject']} on {backend}"
    for row in rows:
        name = f"{row['subject']} on {row['backend']}"
        wanted = [fastest[backend] for backend in dict.fromkeys((row["backend"], "torch"))]
        bases = ("ensemble", "ensemble in torch")
        held_to_an_ensemble = [against["baseline"] for against in row["against"] if against["basis"] in bases]
        assert held_to_an_ensemble == [each for each in wanted if each != name]
        for against in row["against"]:
            ratio = against["speedup"]
            assert ratio["low"] <= ratio["value"] <= ratio["high"]


def test_speed_up_is_the_ratio_of_medians(bench: Benched):
    """Both are noisy here, and the ratio is paired by round: only the size must be right."""
    p50 = {(f"{row['subject']} on {row['backend']}", row["batch"]): row["p50_ms"]["value"] for row in bench.rows}
    ratios = []
    for row in bench.rows:
        for against in row["against"]:
            expected = p50[against["baseline"], row["batch"]] / row["p50_ms"]["value"]
            ratios.append(math.log(against["speedup"]["value"] / expected))
    assert abs(sorted(ratios)[len(ratios) // 2]) < math.log(2)


def test_bench_json_is_what_was_printed(bench: Benched, workshop: Workshop):
    assert json.loads((bench.artifact / "bench.json").read_text()) == bench.called.document
    assert not (workshop.artifact / "bench.json").exists()
    environment = bench.called.document["environment"]
    assert environment["threads"] == 1
    assert environment["packages"]["torch"]
    assert environment["started"] <= environment["ended"]


def test_people_read_every_row_in_the_table(bench: Benched):
    lines = bench.called.stderr.splitlines()
    assert "…" not in bench.called.stderr  # a cell that was cut
    for row in bench.rows:
        start = f"{row['subject']} "
        line = next(line for line in lines if line.strip().startswith(start) and f" {row['backend']} " in line)
        assert f"{100 * row['quality']['raw']['acc']:.2f}" in line
    assert lines[-1].startswith(f"written: {bench.artifact / 'bench.json'}")


def test_brackets_in_names_are_no_markup(bench: Benched):
    assert bench.called.document["artifact"] == "tiny [v2]"
    assert "tiny [v2]: 1 thread on" in bench.called.stderr


def test_torch_rows_say_why_when_the_run_is_gone(bench_alone: Benched):
    rows = {backend: [row for row in bench_alone.rows if row["backend"] == backend] for backend in BACKENDS}
    assert {row["subject"] for row in rows["torch"]} == set(ON_TORCH)
    for row in rows["torch"]:
        assert "runs/gone[v2]: not a run (no recipe.yaml)" in row["reason_not_run"]
        assert row["p50_ms"] is row["quality"] is None
        line = f"{row['subject']} on torch did not run: {row['reason_not_run']}"
        assert line in " ".join(bench_alone.called.stderr.split())
    assert {row["subject"] for row in rows["onnxruntime"]} == set(ON_ONNX)
    for row in rows["onnxruntime"]:
        assert row["reason_not_run"] is None
        assert row["parameters"] > 0
        assert all("torch" not in against["baseline"] for against in row["against"])


def test_quick_measures_quality_on_fewer_images_and_says_how_many(bench_alone: Benched):
    assert bench_alone.called.document["num_test_images"] == 20
    assert "quality on 20 test images" in bench_alone.called.stderr
    for row in bench_alone.rows:
        if row["quality"] is not None:
            num_right = 20 * row["quality"]["raw"]["acc"]
            assert num_right == pytest.approx(round(num_right))


def test_quick_leaves_out_what_would_take_long_and_says_so(bench: Benched, bench_alone: Benched):
    assert any(each["robustness"] for each in bench.called.document["details"].values())
    assert not any(each["robustness"] for each in bench_alone.called.document["details"].values())
    assert bench.called.document["server"]
    assert not bench_alone.called.document["server"]
    assert re.search(r"load on a server is left out, it would take about \d", bench_alone.called.stderr)
    assert re.search(
        r"corrupted images are left out, they would take about \d.* s; --robustness", bench_alone.called.stderr
    )
    for called in (bench.called, bench_alone.called):
        assert re.search(r"measuring \d+ rows takes about \d", called.stderr)


def test_quick_lowers_the_largest_batch_where_it_would_take_long_unless_it_was_named(workshop: Workshop, tmp_path):
    shutil.copytree(workshop.artifact, tmp_path / "tiny")
    options = ("--backends", "onnxruntime", "--no-robustness")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edc.benchmark.forecast.QUICK_TIMING_S", 0.0)
        lowered = benched(tmp_path / "tiny", *options, cwd=workshop.folder, quick_images=20)
        named = benched(tmp_path / "tiny", *options, "--batch", "4", cwd=workshop.folder, quick_images=20)
    assert {row["batch"] for row in lowered.rows} == {1}
    assert {point["batch"] for row in lowered.called.document["throughput"] for point in row["points"]} == {1}
    assert re.search(r"the largest batch is 1; \d+ would take about .* s, --batch names it", lowered.called.stderr)
    assert {row["batch"] for row in named.rows} == {4}
    assert "the largest batch is" not in named.called.stderr


def test_run_that_is_not_the_artifacts_is_not_measured_in_its_place(workshop: Workshop, tmp_path):
    shutil.copytree(workshop.artifact, tmp_path / "tiny")
    shutil.copytree(workshop.folder / "runs/teachers", tmp_path / "runs/teachers")
    shutil.copytree(workshop.run, tmp_path / "runs/tiny")
    recipe = tmp_path / "runs/tiny/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("temperature: 4.0", "temperature: 2.0"))
    assert recipe.read_text().count("temperature: 2.0") == 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("edc.benchmark.options.QUICK", BenchPlan(PLAN, PLAN, 4, SERVER, 2000))
        called = edc(
            "bench", "tiny", "--quick", "--json", "--backends", "torch", "--batch", "1", "--threads", "1", cwd=tmp_path
        )
    if called.exit_code == 2:
        assert "recipe" in called.document["error"]["message"]
    else:
        assert all("recipe" in (row["reason_not_run"] or "") for row in called.document["rows"])


def test_document_holds_what_the_report_is_made_from(bench: Benched):
    document = bench.called.document
    rows = {(f"{row['subject']} on {row['backend']}", row["batch"]): row for row in document["rows"]}
    assert set(document["details"]) == {key for key, _ in rows}
    assert {len(each["reliability"]["raw"]) for each in document["details"].values()} == {15}
    assert any(each["robustness"] for each in document["details"].values())
    assert set(document["curves"]) == {"teacher 0", "teacher 1", "kd", "latent_be"}
    assert document["class_names"]
    assert document["command"].startswith("edc bench ")
    assert document["verdict"]["row"].startswith("latent_be on ")
    few, *sentences = document["verdict"]["sentences"]
    assert few.startswith("latent_be predicts `class1` and `class2` for all 40 images (`class0` alone")
    assert any(sentence.startswith("latent_be is ") for sentence in sentences)
    assert document["sweep_batches"] == [1, 4, 8]
    assert {each["key"] for each in document["throughput"]} == set(document["details"])
    assert {each["key"].split(" on ")[1] for each in document["server"]} == set(INSTALLED)
    assert 0 < document["disagreements"]["num_disagree"] <= document["disagreements"]["num_images"]
    for row in document["rows"]:
        quantiles = row["latency_quantiles_ms"]
        assert len(quantiles) == 101
        assert quantiles == sorted(quantiles)
        assert quantiles[50] == pytest.approx(row["p50_ms"]["value"])
        for against in row["against"]:
            if against["accuracy"] is not None:
                assert against["accuracy"]["p_corrected"] >= against["accuracy"]["paired"]["p_value"]
                assert against["accuracy"]["p_margin_corrected"] >= against["accuracy"]["p_margin"]
        is_student = not row["subject"].startswith(("teacher", "ensemble"))
        flops_ratios = {against["basis"]: against["flops_ratio"] for against in row["against"]}
        if is_student and "members" not in row["subject"]:
            assert (flops_ratios["teacher"], flops_ratios["ensemble"]) == (1, 2)  # two teachers of its own architecture
    assert (bench.artifact / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("width", [360, 1280])
def test_page_of_a_real_bench_complains_of_nothing_and_is_no_wider_than_the_screen(bench: Benched, browser, width):
    show(browser, (bench.artifact / "report.html").as_uri(), width=width)
    assert browser.problems() == []
    assert wider_than_the_screen(browser) == []
    for sentence in bench.called.document["verdict"]["sentences"]:
        assert typeset(sentence) in " ".join(browser.text(".verdict").split())
    # On OpenVINO in bf16 every marker is hollow, whatever the subject's name.
    rows = bench.rows
    drawn = browser.evaluate(
        "[...document.querySelectorAll('#pareto .panel-0-0 .wide a')]"
        ".map((e) => [e.getAttribute('href').slice(5), e.firstChild.classList.contains('h')])"
    )
    assert len(drawn) == sum(row["batch"] == BATCHES[0] for row in rows)
    assert {rows[int(n)]["backend"] for n, is_hollow in drawn if is_hollow} == {BF16} & set(INSTALLED)
    assert all(is_hollow for n, is_hollow in drawn if rows[int(n)]["backend"] == BF16)


@pytest.fixture
def spoiled(workshop: Workshop, tmp_path: Path) -> Path:
    """A folder with the artifact and its run, to be spoiled, and an earlier bench.json."""
    shutil.copytree(workshop.artifact, tmp_path / "tiny")
    shutil.copytree(workshop.folder / "runs", tmp_path / "runs")
    (tmp_path / "tiny/bench.json").write_text("{}")
    return tmp_path


def refused(folder: Path, *options: str) -> str:
    """Returns the one message; the earlier bench.json is as it was."""
    called = edc("bench", "tiny", "--quick", "--threads", "1", *options, cwd=folder)
    assert called.exit_code == 2, called.stderr
    assert (folder / "tiny/bench.json").read_text() == "{}"
    assert not (folder / "tiny/report.html").exists()
    messages = [line for line in called.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    assert "Traceback" not in called.stderr
    return messages[0]


def test_artifact_that_does_not_say_its_images_is_refused(spoiled):
    (spoiled / "tiny/recipe.yaml").unlink()
    message = refused(spoiled)
    assert "recipe.yaml" in message
    assert "export" in message


@pytest.mark.parametrize("place", ["runs/tiny/students/kd", "runs/teachers/*"])
def test_run_whose_weights_are_damaged_is_refused(spoiled, place):
    path = next(spoiled.glob(f"{place}/weights.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])
    message = refused(spoiled)
    assert str(path.relative_to(spoiled)) in message
    assert "not readable as weights" in message


def test_earlier_bench_that_is_damaged_is_refused_before_anything_is_measured(spoiled):
    (spoiled / "old.json").write_text('{"schema_version": 2, ')
    assert "old.json" in refused(spoiled, "--compare", "old.json")
    assert "old.json" in refused(spoiled, "--compare", "old.json", "--fail-on", "5%")
    assert "--compare" in refused(spoiled, "--fail-on", "5%")
    assert "gone.json" in refused(spoiled, "--compare", "gone.json")
