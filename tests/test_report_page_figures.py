"""The parts of `report.html`: the Pareto front, intervals, ticks, figures as text, who is drawn how."""

import math

import pytest
from bench_document import STUDENT
from page_reader import MINUS

from edc.benchmark.page.charts.calibration import wilson
from edc.benchmark.page.charts.pareto import front
from edc.benchmark.page.charts.svg import Scale
from edc.benchmark.page.document import Bench
from edc.benchmark.page.numbers import interval, milliseconds, tick, typeset
from edc.benchmark.page.tables.sweep import capacity


def test_front_is_what_no_other_point_beats():
    points = [(3.0, 9.0), (1.0, 5.0), (2.0, 5.0), (2.0, 7.0), (4.0, 8.0), (1.0, 4.0), (3.0, 9.0)]
    beaten = [
        any(q[0] <= p[0] and q[1] >= p[1] and (q != p or m < n) for m, q in enumerate(points) if m != n)
        for n, p in enumerate(points)
    ]
    assert sorted(front(points)) == [n for n, is_beaten in enumerate(beaten) if not is_beaten]
    assert [points[n] for n in front(points)] == [(1.0, 5.0), (2.0, 7.0), (3.0, 9.0)]


def test_wilson_interval_is_that_of_the_textbook():
    # Solutions p of (share - p)^2 = z^2 p (1 - p) / n, found by another way: the roots of the quadratic.
    share, n, z = 0.9, 20, 1.96
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    assert wilson(share, n) == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)))
    assert wilson(1.0, 3)[1] == 1
    assert wilson(0.0, 3)[0] == 0


def test_networks_differ_in_colour_and_shape():
    subjects = [STUDENT, "teacher 0", "ensemble, in turn", "ensemble, merged", *(f"student {n}" for n in range(12))]
    rows = [{"subject": subject, "backend": "torch", "batch": 1} for subject in subjects]
    bench = Bench({"deploy": STUDENT, "rows": rows})
    series = [bench.series(f"{subject} on torch") for subject in subjects]
    assert len({(each.colour, each.shape) for each in series}) == len(subjects)
    assert len({each.shape for each in series[:8]}) == 8  # and not by colour alone


def test_network_is_hollow_where_it_ran_in_16_bits_or_fewer_whatever_its_name():
    precisions = {
        ("", "openvino"): "fp32", ("", "openvino-bf16"): "bf16", (" (int8)", "openvino"): "int8",
        (" (fp16)", "tensorrt"): "fp16", (" (tf32)", "tensorrt"): "tf32", ("", "tensorrt"): None,
        (" (int8) (CUDA graph)", "tensorrt"): "int8",
    }  # fmt: skip
    rows = [
        {"subject": STUDENT + suffix, "backend": backend, "batch": batch, "precision": ran}
        for (suffix, backend), precision in precisions.items()
        for batch, ran in ((1, None), (8, precision))  # the first did not run
    ]
    bench = Bench({"deploy": STUDENT, "rows": rows})
    drawn = {place: bench.series(f"{STUDENT}{place[0]} on {place[1]}") for place in precisions}
    assert {place: each.is_hollow for place, each in drawn.items()} == {
        place: precision in {"bf16", "int8", "fp16"} for place, precision in precisions.items()
    }
    plain = [each for place, each in drawn.items() if "CUDA" not in place[0]]
    assert {(each.colour, each.shape) for each in plain} == {(0, "circle")}
    assert all(bench.is_student(row) for row in bench.rows)


def test_figures_are_written_one_way():
    assert interval({"value": 4.031, "low": 3.949, "high": 4.14}, 2) == "4.03 (3.95\u20134.14)"
    assert interval({"value": -0.002, "low": -0.008, "high": 0.004}, 1, scale=100, sign=True) == (
        f"{MINUS}0.2 ({MINUS}0.8 to +0.4)"
    )
    assert interval({"value": 6.04, "low": 5.3, "high": None}, 2) == "6.04 (from 5.30)"
    assert interval({"value": 1.0, "low": None, "high": None}, 1) == "1.0"
    assert interval({"value": -1e-9, "low": -1e-9, "high": 1e-9}, 2, sign=True) == "0.00 (0.00 to 0.00)"
    assert [milliseconds(value) for value in (0.0245, 12.345, 123.45, 1234.5)] == ["0.025", "12.35", "123.5", "1,234"]
    assert [tick(value) for value in (0, 0.3, 0.30000000000000004, 1500, 20000, -0.05)] == [
        "0", "0.3", "0.3", "1500", "20,000", f"{MINUS}0.05",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("holds", "fails", "said"),
    [
        (700.0, 800.0, "up to 700 requests/s, and no longer at 800"),
        (None, 1200.0, "under 1,200 requests/s"),
        (700.0, None, "up to 700 requests/s and more"),
        (None, None, "not decided at the rates tried"),
    ],
)
def test_capacity_lies_between_the_rate_that_holds_and_the_one_that_fails(holds, fails, said):
    assert capacity({"highest_rate_per_second": holds, "lowest_failing_rate_per_second": fails}) == said


def test_sentences_of_the_terminal_get_the_signs_of_the_page_and_names_keep_theirs():
    said = (
        "wrn-28-4 is 3.91 (3.75-4.08) times as fast, -3.03 points (-3.60 to +2.47): bf-16, the 0.5-point margin, a(-1)"
    )
    assert typeset(said) == (
        f"wrn-28-4 is 3.91 (3.75\u20134.08) times as fast, {MINUS}3.03 points ({MINUS}3.60 to +2.47): bf-16, "
        f"the 0.5-point margin, a({MINUS}1)"
    )


@pytest.mark.parametrize("is_log", [False, True])
def test_ticks_are_few_round_and_inside(is_log):
    for low, high in ((0.018, 1.6), (3.0, 3.4), (0.9, 120_000.0), (0.0931, 0.131), (96.8, 98.0)):
        ticks = Scale(low, high, 0, 100, is_log=is_log).ticks(5)
        assert 2 <= len(ticks) <= 7, (low, high, ticks)
        assert low * 0.999 <= min(ticks)
        assert max(ticks) <= high * 1.001
        for value in ticks:
            assert float(f"{value:.3g}") == pytest.approx(value)


@pytest.mark.parametrize("is_log", [False, True])
def test_a_scale_that_is_upside_down_places_values_as_its_mirror_image_does(is_log):
    for value in (1.0, 1.2, 2.0):
        up, down = Scale(1, 2, 0, 100, is_log=is_log)(value), Scale(2, 1, 0, 100, is_log=is_log)(value)
        assert up + down == pytest.approx(100)
    assert Scale(2, 1, 0, 100)(1.2) == pytest.approx(80)


def test_networks_that_only_another_backend_runs_are_shown_with_the_others():
    def row(identity: dict[str, object], backend: str) -> dict[str, object]:
        return {"identity": identity, "backend": backend, "batch": 1}

    student = {"role": "student", "name": "kd"}
    ensemble = {"role": "ensemble", "ensemble_form": "in turn"}
    rows = [row(student, "onnxruntime"), row(student, "torch"), row(ensemble, "torch")]
    bench = Bench({"deploy": "kd", "rows": rows})
    keys = ["kd on onnxruntime", "ensemble, in turn on torch"]  # one row of each network was measured
    assert bench.protagonists("onnxruntime", keys) == ["kd on onnxruntime"]
    assert bench.protagonists_anywhere("onnxruntime", keys) == keys
    both = ["kd on onnxruntime", "kd on torch", "ensemble, in turn on torch"]
    assert bench.protagonists_anywhere("torch", both) == ["kd on torch", "ensemble, in turn on torch"]
