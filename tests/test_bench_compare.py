"""A bench against a saved one: what counts as worse, what is refused, and what people are told."""

import copy
import io
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import norm

from edc.benchmark.judge.statistics import MEDIAN_SPREAD, RATIO_SPREAD, compare_accuracy, quantile
from edc.benchmark.packed import packed, unpacked
from edc.benchmark.regression.changes import Comparison
from edc.benchmark.regression.compare import compare, parse_fail_on
from edc.benchmark.regression.compatible import require_comparable
from edc.benchmark.regression.saved_bench import load_saved
from edc.benchmark.saved.document import whole_bench
from edc.benchmark.workers.timing import RowSamples
from edc.cli.tables.compare import print_comparison
from edc.errors import RequestError

SUBJECTS = ("teacher 0", "ensemble, merged", "student")


def p50(value: float, *, share: float = 0.06) -> dict[str, float]:
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def row(subject: str, ms: float, *, batch: int = 1, backend: str = "onnxruntime") -> dict[str, Any]:
    scores = {"acc": 0.95, "nll": 0.2, "ece": 0.03, "brier": 0.1}
    return {
        "subject": subject,
        "backend": backend,
        "artifact": None,
        "batch": batch,
        "p50_ms": p50(ms),
        "round_medians_ms": {str(number): ms for number in range(12)},
        "quality": {"raw": scores, "calibrated": {**scores, "nll": 0.18}, "calibration_temperature": 1.1},
        "flags": [],
        "reason_not_run": None,
    }


def bench(**times: float) -> dict[str, Any]:
    """A document of three rows at batch 1; `times` multiply them."""
    return {
        "schema_version": 2,
        "artifact": "digits",
        "deploy": "student",
        "ensemble_size": 4,
        "quick": True,
        "class_names": ["a", "b"],
        "num_test_images": 500,
        "plan": {"seconds_per_row": 0.6},
        "environment": {"cpu": "one", "threads": 2, "num_cpus": 2, "packages": {"torch": "2.14"}, "flags": []},
        "rows": [row(subject, 0.1 * times.get(subject.split(",")[0].split()[0], 1.0)) for subject in SUBJECTS],
    }


def verdicts(comparison: Comparison, figure: str = "p50_ms") -> list[str]:
    return [change.verdict for change in comparison.changes if change.figure == figure]


def test_nothing_changed():
    comparison = compare(bench(), bench())
    assert verdicts(comparison) == verdicts(comparison, "acc") == verdicts(comparison, "nll") == ["same"] * 3
    assert (comparison.exit_code, comparison.worse, comparison.warnings) == (0, (), ())
    assert comparison.common_factor == 1.0


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.1, "worse"), (1.04, "same"), (0.97, "same"), (1 / 1.1, "better"), (3.0, "worse")]
)
def test_a_row_is_judged_by_fail_on_and_its_interval(factor: float, expected: str):
    comparison = compare(bench(student=factor), bench())
    assert verdicts(comparison) == ["same", "same", expected]
    assert comparison.exit_code == (1 if expected == "worse" else 0)
    assert [change.name for change in comparison.worse] == (
        ["student on onnxruntime at batch 1"] if expected == "worse" else []
    )


def test_fail_on_moves_the_border():
    assert verdicts(compare(bench(student=1.1), bench(), fail_on=0.15)) == ["same"] * 3
    assert verdicts(compare(bench(student=1.03), bench(), fail_on=0.0)) == ["same", "same", "undecided"]


def test_a_change_is_judged_as_it_is_and_against_the_rest():
    """Rounds of the fixture do not differ; three rows, two ways: Bonferroni over six."""
    change = compare(bench(teacher=1.02, ensemble=1.02, student=1.122), bench()).changes[2]
    z, of_p50 = norm.ppf(1 - 0.05 / 2 / 6), norm.ppf(0.99)
    down, up = (abs(math.log(1 + sign * 0.06)) / of_p50 for sign in (-1, 1))
    for found, value, spread in (
        (change.change, 1.122, math.hypot(down, up)),
        (change.against_rest, 1.1, math.sqrt(2) * RATIO_SPREAD),
    ):
        assert found.value == pytest.approx(value)
        assert found.low == pytest.approx(value * math.exp(-z * spread), rel=1e-9)
        assert found.high == pytest.approx(value * math.exp(z * spread), rel=1e-9)


def test_the_rest_finds_what_a_restless_machine_hides_and_a_faster_one_covers():
    """Medians that are only known to 15 %: all rows 10 % faster, but one."""
    new, old = bench(teacher=0.9, ensemble=0.9, student=1.0), bench()
    for document in (new, old):
        for each in document["rows"]:
            each["p50_ms"] = p50(each["p50_ms"]["value"], share=0.15)
    found = compare(new, old)
    assert verdicts(found) == ["undecided", "undecided", "worse"]
    assert found.changes[2].against_rest.value == pytest.approx(1 / 0.9)
    faster = compare(bench(teacher=0.9, ensemble=0.9, student=0.9), bench())
    assert "worse" not in verdicts(faster)


def test_another_state_of_the_machine_leaves_only_the_rest_to_judge_by():
    """The probe takes half longer, and so does every row; then one row more than that."""
    new, old = bench(teacher=1.5, ensemble=1.5, student=1.5), bench()
    for document, probe_us in ((new, 150.0), (old, 100.0)):
        for each in document["rows"]:
            each["probe_us"] = probe_us
    found = compare(new, old)
    assert verdicts(found) == ["same"] * 3
    assert found.changes[0].reason == "the machine itself took +50% time for the same work"
    new["rows"][2]["p50_ms"] = p50(0.15 * 1.1)
    assert verdicts(compare(new, old)) == ["same", "same", "worse"]
    for each in new["rows"]:
        each["probe_us"] = 105.0
    assert verdicts(compare(new, old)) == ["worse"] * 3, "a slower program on the same machine"


def test_what_is_faster_on_the_clock_is_worse_only_where_the_machine_was_another_and_that_is_said():
    """All rows in half the time, but one in 0.9 of it."""
    new, old = bench(teacher=0.5, ensemble=0.5, student=0.9), bench()
    found = compare(new, old).changes[2]
    assert (found.verdict, "nothing says that the machine itself was faster" in found.reason) == ("undecided", True)
    for probe_us in (100.0, 50.0):
        for document, its_probe_us in ((new, probe_us), (old, 100.0)):
            for each in document["rows"]:
                each["probe_us"] = its_probe_us
        if probe_us == 100:
            found = compare(new, old).changes[2]
            assert found.verdict == "undecided"
            assert found.reason == (
                "-10.0% on the clock, +80.0% against the other rows; the machine itself was the same, so the clock is "
                "trusted"
            )
    found = compare(new, old).changes[2]
    assert found.verdict == "worse"
    assert found.reason == (
        "the machine itself took -50% time for the same work; -10.0% on the clock, +80.0% against the other rows, "
        "which are trusted"
    )


def test_the_rest_is_that_of_the_batch_size():
    """Everything at batch 1 is slower by half: no row of batch 64 is slower than the rest for it."""
    new, old = bench(teacher=1.5, ensemble=1.5, student=1.5), bench()
    for document in (new, old):
        document["rows"] += [dict(each, batch=64, p50_ms=p50(1.0)) for each in document["rows"]]
    changes = [change for change in compare(new, old).changes if change.figure == "p50_ms"]
    assert [round(change.against_rest.value, 6) for change in changes] == [1.0] * 6
    assert [change.verdict for change in changes] == ["worse"] * 3 + ["same"] * 3


def test_uncertain_medians_leave_a_change_undecided():
    new = bench(student=1.1)
    new["rows"][2]["p50_ms"] = p50(0.11, share=0.15)
    new["rows"][2]["round_medians_ms"] = {str(number): 0.11 * (1 + 0.2 * (-1) ** number) for number in range(12)}
    assert verdicts(compare(new, bench())) == ["same", "same", "undecided"]
    new["rows"][2]["p50_ms"] = {"value": 0.2, "low": None, "high": 0.21}
    assert verdicts(compare(new, bench())) == ["same", "same", "undecided"]
    new["rows"][2]["p50_ms"] = p50(0.2)
    old = bench()
    old["rows"][2]["p50_ms"]["high"] = None
    assert verdicts(compare(new, old)) == ["same", "same", "undecided"]
    new["rows"][2]["p50_ms"] = None
    comparison = compare(new, bench())
    assert verdicts(comparison) == ["same", "same", "undecided"]
    assert comparison.changes[2].reason == "too few samples for a median in this bench"


def test_a_row_that_drifted_must_change_by_more():
    new, old = bench(student=1.1), bench()
    new["rows"][2]["round_medians_ms"] = {str(r): 0.105 * (1 + 0.01 * r) for r in range(12)}
    drifted = compare(new, old)
    assert verdicts(drifted) == ["same", "same", "undecided"]
    assert drifted.changes[2].reason.startswith("drifted by")
    new["rows"][2]["p50_ms"] = p50(0.15)
    assert verdicts(compare(new, old)) == ["same", "same", "worse"]


def test_a_change_of_all_rows_is_worse_unless_it_is_divided_out():
    new = bench(teacher=1.2, ensemble=1.2, student=1.4)
    absolute, relative = compare(new, bench()), compare(new, bench(), relative=True)
    assert absolute.common_factor == pytest.approx(1.2)
    assert verdicts(absolute) == ["worse"] * 3
    assert verdicts(relative) == ["same", "same", "worse"]
    two = bench() | {"rows": bench()["rows"][:2]}
    with pytest.raises(RequestError, match="needs 3 rows, there are 2"):
        compare(two, two, relative=True)


def synthetic_p50(rng: np.random.Generator, factor: float) -> dict[str, Any]:
    """The median of 12 rounds of 60 samples, rounds 1 % apart, as a bench saves it."""
    rounds = {
        r: (1e5 * factor * math.exp(rng.normal(0, 0.01)) * rng.lognormal(0, 0.03, 60)).astype(np.int64)
        for r in range(12)
    }
    estimate = quantile(RowSamples(rounds), 0.5)
    assert estimate is not None
    return asdict(estimate.widened(MEDIAN_SPREAD, confidence=0.99))


def test_over_simulated_benches_ten_per_cent_is_found_and_none_is_not_reported():
    """Benches differ by what is assumed of them: the machine by MEDIAN_SPREAD, two rows of one by RATIO_SPREAD."""
    rng = np.random.default_rng(0)

    def simulated(factor: float) -> dict[str, Any]:
        document, machine = bench(), math.exp(rng.normal(0, MEDIAN_SPREAD))
        for number, each in enumerate(document["rows"]):
            own = math.exp(rng.normal(0, RATIO_SPREAD / math.sqrt(2)))
            each["p50_ms"] = synthetic_p50(rng, machine * own * (factor if number == 2 else 1.0))
        return document

    found = reported = 0
    for _ in range(100):
        old = simulated(1.0)
        found += [change.key for change in compare(simulated(1.1), old).worse] == ["student on onnxruntime"]
        reported += compare(simulated(1.0), old).exit_code
    assert found >= 90
    assert reported <= 5


def test_a_row_that_does_not_run_any_more_is_worse_and_an_absent_one_is_not():
    new, old = bench(), bench()
    new["rows"][0] |= {"reason_not_run": "the worker died", "p50_ms": None, "quality": None}
    del new["rows"][1]
    new["rows"].append(row("student", 0.4, batch=8))
    comparison = compare(new, old)
    of_runs = {change.name: (change.verdict, change.reason) for change in comparison.changes if change.figure == "runs"}
    assert of_runs == {
        "teacher 0 on onnxruntime at batch 1": ("worse", "ran before, and now: the worker died"),
        "ensemble, merged on onnxruntime at batch 1": ("missing", "not among this bench's rows"),
        "student on onnxruntime at batch 8": ("new", "not among the saved bench's rows"),
    }
    assert comparison.exit_code == 1
    assert compare(old, new).exit_code == 0


@pytest.mark.parametrize(("new", "expected"), [(0.90, "worse"), (0.94, "undecided"), (0.946, "same"), (0.98, "better")])
def test_accuracy_is_judged_by_an_interval_for_unpaired_images(new: float, expected: str):
    document = bench()
    document["rows"][2]["quality"]["raw"]["acc"] = new
    comparison = compare(document, bench())
    assert verdicts(comparison, "acc") == ["same", "same", expected]
    change = next(c for c in comparison.changes if c.figure == "acc" and c.key.startswith("student")).change
    assert change is not None
    assert change.low is not None
    assert change.high is not None
    # Wald's interval, which is near Agresti and Caffo's for 500 images
    z = 2.394  # two-sided, 0.05 / 3: three subjects share the confidence
    half = z * math.sqrt((new * (1 - new) + 0.95 * 0.05) / 500)
    assert change.low == pytest.approx(new - 0.95 - half, abs=0.003)
    assert change.high == pytest.approx(new - 0.95 + half, abs=0.003)


def test_accuracy_on_the_same_images_is_judged_in_pairs():
    """Eight of 500 images lost and none gained: two proportions could not tell, pairs do."""
    right = np.arange(500) >= 25
    fewer = right.copy()
    fewer[25:33] = False

    def with_answers(correct, digest):
        document = bench() | {"test_digest": digest}
        document["details"] = {"student on onnxruntime": {"correct": packed(correct)}}
        document["rows"][2]["quality"]["raw"]["acc"] = float(correct.mean())
        return document

    comparison = compare(with_answers(fewer, "a"), with_answers(right, "a"))
    assert verdicts(comparison, "acc") == ["same", "same", "worse"]
    change = next(c for c in comparison.changes if c.figure == "acc" and c.verdict == "worse").change
    wanted = compare_accuracy(right, fewer, seed=0, confidence=1 - 0.05 / 3).difference
    assert (change.value, change.low, change.high) == (wanted.value, wanted.low, wanted.high)
    without = with_answers(fewer, None)
    assert verdicts(compare(without, with_answers(right, "a")), "acc")[2] == "undecided"
    others = compare(with_answers(fewer, "b"), with_answers(right, "a"))
    assert verdicts(others, "acc") == []
    assert others.warnings == ("quality is not compared: other test images, or other labels",)


@pytest.mark.parametrize("num_images", [1, 7, 8, 9, 500])
def test_answers_survive_being_packed(num_images):
    correct = np.random.default_rng(num_images).random(num_images) < 0.5
    np.testing.assert_array_equal(unpacked(packed(correct), num_images=num_images), correct)


@pytest.mark.parametrize(("new", "expected"), [(0.18, "same"), (0.1895, "same"), (0.191, "worse"), (0.169, "better")])
def test_the_calibrated_nll_is_judged_by_a_margin(new: float, expected: str):
    document = bench()
    document["rows"][2]["quality"]["calibrated"]["nll"] = new
    assert verdicts(compare(document, bench()), "nll") == ["same", "same", expected]


def test_quality_on_another_number_of_images_is_not_compared():
    comparison = compare(bench() | {"num_test_images": 2000}, bench())
    assert verdicts(comparison, "acc") == verdicts(comparison, "nll") == []
    assert comparison.warnings == ("quality is not compared: 500 test images before, 2,000 now",)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cpu", "two", "ran with cpu one, this one with two.*save a bench of this machine"),
        ("threads", 1, "ran with threads 2, this one with 1.*give --threads 2"),
        ("gpu", "three", "ran with gpu None, this one with three"),
    ],
)
def test_another_machine_is_refused(name: str, value: Any, message: str):
    new = bench()
    new["environment"][name] = value
    with pytest.raises(RequestError, match=message) as caught:
        compare(new, bench())
    assert caught.value.exit_code == 2
    with pytest.raises(RequestError, match=message):
        require_comparable(*(whole_bench(each, name="it").environment for each in (new, bench())))


def test_another_task_or_no_common_row_is_refused():
    with pytest.raises(RequestError, match="other classes"):
        compare(bench() | {"class_names": ["a", "c"]}, bench())
    with pytest.raises(RequestError, match="no row in common"):
        compare(bench() | {"rows": [row("student", 1.0, backend="torch")]}, bench())


def test_what_differs_otherwise_is_said():
    new = bench() | {"artifact": "other", "deploy": "kd", "plan": {"seconds_per_row": 3.0}}
    new["environment"] |= {"packages": {"torch": "2.15", "openvino": "1"}, "flags": ["busy machine: 3.0"]}
    assert compare(new, bench()).warnings == (
        "another artifact: digits before, other now",
        "another student: student before, kd now",
        "another timing plan (--quick or not): one of the benches is less certain than the other",
        "another openvino: none before, 1 now",
        "another torch: 2.14 before, 2.15 now",
        "this bench: busy machine: 3.0",
    )


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (" 2.5 % ", 0.025), ("0", 0.0), ("0%", 0)])
def test_fail_on_is_a_percentage_or_a_share(text: str, share: float):
    assert parse_fail_on(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "100%", "-1%", "nan", "inf", "", "%", "five", "5%%"])
def test_any_other_fail_on_is_refused(text: str):
    with pytest.raises(RequestError, match=r"--fail-on: .* is not a share below 1; write 5% or 0.05"):
        parse_fail_on(text)


def changed(change) -> str:
    document = copy.deepcopy(bench())
    change(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "schema_version is None, this edc compares version 2"),
        (changed(lambda d: d.update(schema_version=1)), "schema_version is 1, this edc compares version 2"),
        (changed(lambda d: d.pop("rows")), "rows: Field required"),
        (changed(lambda d: d.update(rows=[])), "rows: Tuple should have at least 1 item"),
        (changed(lambda d: d["rows"][1].pop("p50_ms")), "rows.1.p50_ms: Field required"),
        (changed(lambda d: d["rows"][0]["p50_ms"].update(value="fast")), "rows.0.p50_ms.value: .*valid number"),
        (changed(lambda d: d["rows"][0]["p50_ms"].update(value=-1.0)), "rows.0.p50_ms.value: .*greater than 0"),
        (changed(lambda d: d["rows"][0]["p50_ms"].update(low=5.0)), "rows.0.p50_ms: .*not between"),
        (changed(lambda d: d["rows"][0]["p50_ms"].update(high=math.nan)), "rows.0.p50_ms.high: .*finite"),
        (changed(lambda d: d["rows"][0]["quality"]["raw"].update(acc=7)), "rows.0.quality.raw.acc"),
        (changed(lambda d: d["environment"].pop("cpu")), "environment.cpu: Field required"),
        (changed(lambda d: d["environment"].update(packages=[1])), "environment.packages: .*dictionary"),
        (changed(lambda d: d["environment"].update(flags=3)), "environment.flags: .*tuple"),
        (
            changed(lambda d: d.update(details={"a": {"correct": "AA=="}})),
            "details.a.correct: holds 8 answers, where 500",
        ),
        (changed(lambda d: d.update(details={"a": {"correct": "?"}})), "details.a.correct: "),
        (changed(lambda d: d["rows"].append(d["rows"][0])), "teacher 0 on onnxruntime at batch 1 is there twice"),
    ],
)
def test_a_damaged_saved_bench_is_one_message_that_names_the_file(tmp_path, text: str, message: str):
    path = tmp_path / "saved.json"
    path.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        load_saved(path)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_saved_bench_is_a_file_or_the_folder_it_is_in(tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(bench()))
    assert load_saved(tmp_path) == load_saved(tmp_path / "bench.json") == bench()
    with pytest.raises(RequestError, match="not found"):
        load_saved(tmp_path / "gone.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not JSON"):
        load_saved(tmp_path / "bytes.json")


def test_people_are_told_which_rows_got_worse():
    new = bench(student=1.1)
    new["rows"][0]["artifact"] = "[red] v2"
    stream = io.StringIO()
    print_comparison(compare(new, bench()), console=Console(file=stream, width=140))
    text = stream.getvalue()
    assert "got worse: student on onnxruntime at batch 1: ms 0.1000 -> 0.1100, +10.0% (" in text
    assert "[red] v2: teacher 0 on onnxruntime" in text
    assert "all rows together" not in text  # two common rows say nothing about the machine
    stream = io.StringIO()
    print_comparison(compare(bench(), bench()), console=Console(file=stream, width=140))
    assert stream.getvalue().rstrip().endswith("nothing got worse")


def test_the_json_of_a_comparison_names_the_worse_rows_and_is_json():
    document = json.loads(json.dumps(compare(bench(student=1.1), bench()).to_json(), allow_nan=False))
    assert document["worse"] == ["student on onnxruntime at batch 1"]
    assert document["exit_code"] == 1
    assert document["changes"][2]["change"]["value"] == pytest.approx(1.1)
