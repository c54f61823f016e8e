"""`report.html`: what it says, against bench.json."""

import base64
import copy
import html
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from bench_document import NO_GPU, STUDENT, bench_document, key_of, small_document
from page_reader import Page, bounds, lines_of, number

from edc.benchmark.page import page_from_bench, write_page
from edc.benchmark.page.charts.calibration import ece_of
from edc.benchmark.page.charts.pareto import MEASURES
from edc.benchmark.page.numbers import interval, milliseconds, typeset

SECTIONS = (
    "verdict", "pareto", "calibration", "latency", "throughput", "server", "robustness", "disagreements", "training",
    "tables", "flags", "environment",
)  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bench_document()


@pytest.fixture(scope="module")
def page(document: dict[str, Any]) -> Page:
    return Page(page_from_bench(document))


def name_of(row: dict[str, Any]) -> str:
    return key_of(row).rpartition(" on ")[0]


def by_line(rows: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[str, Any]]:
    return {(row["backend"], name_of(row), f"{row['batch']}"): row for row in rows}


def test_page_is_written_whole_and_the_same_each_time(document, tmp_path):
    path = tmp_path / "artifact" / "report.html"
    before = copy.deepcopy(document)
    write_page(document, path)
    first = path.read_bytes()
    write_page(json.loads(json.dumps(document)), path)
    assert path.read_bytes() == first
    assert document == before
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert len(first) < 1_000_000


def test_quality_table_holds_every_loaded_row_with_its_figures(document, page):
    rows = by_line(document["rows"])
    lines = lines_of(page, "quality")
    expected = {(row["backend"], name_of(row)) for row in document["rows"] if row["quality"]}
    assert {(line[0], line[1]) for line in lines} == expected
    assert len(lines) == len(expected)
    for line in lines:
        row = next(row for key, row in rows.items() if key[:2] == (line[0], line[1]) and row["quality"])
        quality = row["quality"]
        assert number(line[2]) == pytest.approx(100 * quality["raw"]["acc"], abs=0.005)
        for cell, name in zip(line[3:6], ("nll", "ece", "brier"), strict=True):
            assert number(cell) == pytest.approx(quality["raw"][name], abs=0.000501)
        for cell, name in zip(line[6:9], ("nll", "ece", "brier"), strict=True):
            assert number(cell) == pytest.approx(quality["calibrated"][name], abs=0.000501)
        assert number(line[9]) == pytest.approx(quality["calibration_temperature"], abs=0.000501)
        assert number(line[10]) == pytest.approx(100 * quality["agreement"], abs=0.05)
        at_least = "\u2013" if row["dee_at_least"] is None else f">{row['dee_at_least']}"
        assert line[11] == (at_least if row["dee"] is None else f"{row['dee']:.2f}")
        assert number(line[13]) == pytest.approx(row["file_bytes"] / 1e6, abs=0.005)


def test_student_better_than_the_whole_ensemble_is_said_to_be_worth_more_than_its_teachers(document, page):
    lines = lines_of(page, "quality")
    assert {line[11] for line in lines if line[1] == f"{STUDENT} (members)"} == {">4"}
    assert {line[11] for line in lines if line[1].startswith("ensemble")} == {"\u2013"}


def test_speed_table_holds_every_row_with_its_intervals_and_those_that_did_not_run(document, page):
    rows = by_line(document["rows"])
    lines = lines_of(page, "speed")
    assert {tuple(line[:3]) for line in lines} == set(rows)
    for line in lines:
        row = rows[tuple(line[:3])]
        if row["reason_not_run"]:
            assert line[3] == "did not run"
            continue
        for cell, name in zip(line[3:6], ("p50_ms", "p90_ms", "p99_ms"), strict=True):
            expected = [value for value in row[name].values() if value is not None]
            assert bounds(cell) == pytest.approx(expected, rel=0.03)
            assert ("from" in cell) == (row[name]["high"] is None)
        assert number(line[6]) == pytest.approx(row["images_per_second"], abs=0.5)
        assert number(line[8]) == row["num_samples"]
        assert line[10] == (str(len(row["flags"])) if row["flags"] else "")


def test_comparisons_hold_every_ratio_and_difference(document, page):
    lines = lines_of(page, "comparisons")
    expected = [(row, against) for row in document["rows"] for against in row["against"]]
    assert len(lines) == len(expected) > 20
    found = {(line[0], line[1], line[2], line[3]): line for line in lines}
    for row, against in expected:
        line = found[f"against {against['baseline']}", name_of(row), row["backend"], f"{row['batch']}"]
        speedup, accuracy = against["speedup"], against["accuracy"]
        in_doubt = " ?" if against["doubts"] else ""
        assert line[4] == f"{speedup['value']:.2f} ({speedup['low']:.2f}\u2013{speedup['high']:.2f}){in_doubt}"
        assert line[5] == ("\u2013" if (ratio := against["throughput_ratio"]) is None else f"{ratio:.2f}")
        assert line[6] == f"{against['flops_ratio']:.2f}"
        assert bounds(line[7]) == pytest.approx([100 * value for value in accuracy["difference"].values()], abs=0.005)
        assert line[8] == {"undecided": "not decided", "worse": "worse"}[accuracy["verdict"]]
        assert line[9:11] == ["4", str(accuracy["paired"]["num_gained"])]
        assert line[11:] == ["0.754", "1.000"]


def test_comparisons_of_a_bench_without_flops_have_no_columns_for_them(document):
    document = copy.deepcopy(document)
    for row in document["rows"]:
        for against in row["against"]:
            for name in ("flops_ratio", "throughput_ratio", "doubts"):
                del against[name]
    page = Page(page_from_bench(document))
    assert page.tables["comparisons"][0][3:5] == ["times as fast", "accuracy, points"]
    assert "FLOPs" not in "".join(page.text.values())


def test_throughput_load_and_robustness_tables_hold_every_point(document, page):
    lines = lines_of(page, "throughput")
    for line, entry in zip(lines, document["throughput"], strict=True):
        assert line[1] == entry["key"]
        assert [number(cell) for cell in line[2:-2]] == [round(p["images_per_second"]) for p in entry["points"]]
        assert line[-2:] == [str(entry["best_batch"]), "yes" if entry["saturated"] else "no"]
    points = [(entry, point) for entry in document["server"] for point in entry["points"]]
    for line, (entry, point) in zip(lines_of(page, "server"), points, strict=True):
        highest, lowest_failing = entry["highest_rate_per_second"], entry["lowest_failing_rate_per_second"]
        upto = f"up to {highest:,.0f} requests/s, and no longer at {lowest_failing:,.0f}" if highest else ""
        assert line[0] == f"{entry['key']}: p99 within 10 ms: {upto or f'under {lowest_failing:,.0f} requests/s'}"
        assert line[0].partition(": p99 within 10 ms: ")[2] in page.text["server"]
        assert number(line[1]) == round(point["offered_per_second"])
        assert (line[6] == "\u2013") == (point["p99_ms"] is None)
    records = [(key, r) for key, details in document["details"].items() for r in details["robustness"]]
    for line, (key, record) in zip(lines_of(page, "corruptions"), records, strict=True):
        assert line[:3] == [key, record["corruption"].replace("_", " "), str(record["severity"])]
        assert number(line[3]) == pytest.approx(100 * record["acc"], abs=0.005)
        assert number(line[8]) == pytest.approx(record["calibrated_ece"], abs=0.000501)
        assert number(line[9]) == pytest.approx(100 * record["agreement"], abs=0.0501)
        if record["acc_difference"] is None:
            assert line[10] == "\u2013"
        else:
            expected = [100 * value for value in record["acc_difference"].values()]
            assert bounds(line[10]) == pytest.approx(expected, abs=0.00501)
        assert line[11] == "400"
    assert "400 of the 500 test images, with corruptions" in page.text["robustness"]


def test_robustness_of_an_older_bench_has_no_columns_for_what_it_did_not_measure(document):
    document = copy.deepcopy(document)
    for record in (each for details in document["details"].values() for each in details["robustness"]):
        for name in ("num_images", "agreement", "acc_difference"):
            del record[name]
    for entry in document["server"]:
        del entry["lowest_failing_rate_per_second"]
    page = Page(page_from_bench(document))
    assert page.tables["corruptions"][0][-1] == "cECE"
    assert "agreement" not in page.text["robustness"]
    assert "at no rate tried" in page.text["server"]
    highest = document["server"][-1]["highest_rate_per_second"]
    assert f"up to {highest:,.0f} requests/s\n" in page.text["server"].replace("<", "\n") + "\n"


@pytest.mark.parametrize("measure", ["agreement with the ensemble", "against the ensemble"])
def test_robustness_beside_the_ensemble_is_drawn_for_the_student_in_8_bits_too(document, measure):
    text = page_from_bench(document)
    section = re.search(r'<section id="robustness">.*?</section>', text, re.DOTALL).group()
    at = re.search(rf'id="robustness-0-(\d)"[^>]*><span>{measure}</span>', section).group(1)
    panel = re.search(rf'<figure class="panel panel-{at}">(.*?)</figure>', section, re.DOTALL).group(1)
    for key in (f"{STUDENT} on onnxruntime", f"{STUDENT} (int8) on onnxruntime"):
        records = {(r["corruption"], r["severity"]): r for r in document["details"][key]["robustness"]}
        record = records["blur", 3]
        value = record["agreement"] if measure.startswith("agreement") else record["acc_difference"]["value"]
        tip = next(t for t in re.findall(r"<title>(.*?)</title>", panel, re.DOTALL) if t.startswith(f"{key}, blur"))
        line = next(line for line in tip.splitlines() if line.startswith("severity 3: "))
        assert number(line.rpartition(" ")[2]) == pytest.approx(100 * value, abs=0.000501)


def test_verdict_flags_and_command_are_said_in_full(document, page):
    for sentence in document["verdict"]["sentences"]:
        assert typeset(sentence) in page.text["verdict"]
    row = next(row for row in document["rows"] if key_of(row) == document["verdict"]["row"] and row["batch"] == 1)
    assert interval(row["against"][0]["speedup"], 2) in page.text["verdict"]
    accuracy = row["against"][0]["accuracy"]
    points = interval(accuracy["difference"], 2, scale=100, sign=True)
    said = "not decided at the 0.5-point margin, against ensemble, merged on onnxruntime"
    assert f"accuracy, points{points}{said}" in page.text["verdict"]
    teacher = row["against"][1]
    points = interval(teacher["accuracy"]["difference"], 2, scale=100, sign=True)
    times = interval(teacher["speedup"], 2)
    assert f"against one teacher{points}points of accuracy, not decided; {times} times as fast" in page.text["verdict"]
    assert f"3 of {len(document['rows'])} rows flagged; 2 did not run; speed-ups in doubt: 3." in page.text["verdict"]
    flags = page.text["flags"]
    assert flags.count("noise: the coefficient of variation is 30%") == 3
    assert f"batch 8, 64 did not run: {NO_GPU}" in flags
    assert document["environment"]["flags"][0] in flags
    environment = page.text["environment"]
    assert document["command"] in environment
    assert "25.3 GB" in environment
    assert "torch 2.14.1" in environment


def test_disagreements_show_sixteen_images_with_both_answers(document, page):
    part = document["disagreements"]
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert pictures == [f"data:image/png;base64,{image['png_base64']}" for image in part["images"]]
    assert "on 23 of 500 test images (4.6 %)" in page.text["disagreements"]
    right = [sum(image[who]["class"] == image["label"] for image in part["images"]) for who in ("student", "ensemble")]
    assert (
        f"the student is right on {right[0]}, the ensemble on {right[1]}, neither on {16 - sum(right)}"
        in (page.text["disagreements"])
    )
    assert page.text["disagreements"].count("✓") - 1 == sum(right)  # one more in the note


def test_every_row_that_ran_is_a_marker_in_each_pareto_picture(document):
    text = page_from_bench(document)
    pareto = re.search(r'<section id="pareto">.*?</section>', text, re.DOTALL).group()
    panels = re.findall(r'<figure class="panel panel-(\d)-(\d)">(.*?)</figure>', pareto, re.DOTALL)
    assert len(panels) == 3 * len(MEASURES)
    for batch_number, _, panel in panels:
        batch = (1, 8, 64)[int(batch_number)]
        ran = [(n, r) for n, r in enumerate(document["rows"]) if r["batch"] == batch and r["p50_ms"]]
        for width in ("wide", "narrow"):
            drawing = re.search(rf'<div class="{width}">(.*?)</div>', panel, re.DOTALL).group(1)
            assert sorted(re.findall(r'href="#(row-\d+)"', drawing)) == sorted(f"row-{n}" for n, _ in ran)
            titles = html.unescape(" ".join(re.findall(r"<title>(.*?)</title>", drawing, re.DOTALL)))
            for _, row in ran:
                assert f"{key_of(row)}, batch {batch}" in titles
                assert f"p50 {milliseconds(row['p50_ms'])} ms" in titles


def test_reliability_says_the_calibration_error_of_its_bins(document, page):
    details = document["details"][f"{STUDENT} on onnxruntime"]["reliability"]
    for kind in ("raw", "calibrated"):
        total = sum(each["count"] for each in details[kind])
        filled = [each for each in details[kind] if each["count"]]
        expected = sum(each["count"] / total * abs(each["accuracy"] - each["confidence"]) for each in filled)
        assert ece_of(details[kind]) == pytest.approx(expected)
        assert f"ECE {expected:.3f}" in page.text["calibration"]
    assert ece_of([{"low": 0, "high": 1, "count": 0, "confidence": None, "accuracy": None}]) is None


def test_doubts_and_flags_of_the_rows_of_the_verdict_stand_beside_it(document):
    document = copy.deepcopy(document)
    verdict = document["verdict"]
    doubt = "The speed-up against ensemble, merged on onnxruntime is in doubt: 3.37 times as fast, by FLOPs 2.00"
    page = Page(page_from_bench(document))
    assert doubt in page.text["verdict"]
    assert "is flagged" not in page.text["verdict"]
    for row in document["rows"]:
        if key_of(row) in (verdict["row"], verdict["baseline"]):
            row["flags"] = [f"drift of {row['subject']}"]
    verdict["sentences"].append("Doubts about the speed: 3.37 times as fast, by FLOPs 2.00.")
    page = Page(page_from_bench(document))
    assert doubt not in page.text["verdict"]  # said already
    for key in (verdict["row"], verdict["baseline"]):
        assert f"{key}, batch 1, is flagged: drift of {key.rpartition(' on ')[0]}" in page.text["verdict"]
    targets = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a" and "href" in attributes]
    assert [link for link in links if link not in targets] == []
    assert sum(link.startswith("doubt-") for link in links) == 3


EVIL = "<script>alert(1)</script>\"'&{{7*7}}</style>"


def test_names_cannot_become_markup(document):
    text = json.dumps(document)
    evil = json.loads(text.replace(STUDENT, json.dumps(EVIL)[1:-1]))
    for path in ("artifact", "command"):
        evil[path] = EVIL
    evil["class_names"] = [EVIL] * 10
    evil["environment"].update(cpu=EVIL, packages={EVIL: EVIL}, flags=[EVIL], started=EVIL)
    evil["verdict"]["sentences"] = [EVIL, EVIL]
    evil["rows"][0].update(flags=[EVIL], reason_not_run=EVIL)
    evil["rows"][0]["what_ran"]["notes"] = [EVIL]
    evil["disagreements"]["images"][0]["png_base64"] = '"><script>alert(1)</script>'
    evil["disagreements"]["images"][1]["png_base64"] = base64.b64encode(b"<svg onload='alert(1)'/>").decode()
    for robustness in (details["robustness"] for details in evil["details"].values()):
        robustness[1]["corruption"] = EVIL
    page = Page(page_from_bench(evil))
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert "<script>alert(1)" not in page_from_bench(evil)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert EVIL in page.text["verdict"]
    assert [line[1] for line in lines_of(page, "quality") if EVIL in line[1]]
    assert any(EVIL in title for title in page.titles)
    assert page.text["disagreements"].count("no picture") == 2
    assert "49" not in page.text["verdict"].replace(f"of {len(evil['rows'])} rows", "")


PARTS = {
    "verdict": ["verdict"], "details": ["calibration", "robustness"], "throughput": ["throughput"],
    "server": ["server"], "disagreements": ["disagreements"], "curves": ["training"], "environment": ["environment"],
    "plan": [], "command": ["environment"], "rows": ["pareto", "latency"], "class_names": [],
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["missing", "null", "empty"])
def test_part_that_is_not_there_leaves_a_line_instead(part, how):
    small = small_document()
    changed = {name: value for name, value in small.items() if name != part}
    if how != "missing":
        changed[part] = None if how == "null" else type(small[part])()
    page = Page(page_from_bench(changed))
    assert tuple(page.text) == SECTIONS
    assert page.missing == PARTS[part]


def test_page_of_a_whole_bench_misses_nothing(page):
    assert page.missing == []


def test_empty_document_is_a_page_of_lines():
    page = Page(page_from_bench({}))
    assert tuple(page.text) == SECTIONS
    assert page.tables == {}


def test_figures_that_could_not_be_taken_are_dashes(document):
    document = copy.deepcopy(document)
    for row in document["rows"]:
        row.update(p90_ms=None, p99_ms=None, images_per_second=None, peak_memory_bytes=None, latency_quantiles_ms=None)
        row.update(round_medians_ms={}, load_ms=None, parameters=None, file_bytes=None, dee=0, what_ran=None)
        if row["quality"]:
            row["quality"].update(calibrated=None, calibration_temperature=None, agreement=None)
        if row["p50_ms"]:
            row["p50_ms"].update(low=None, high=None)
        for against in row["against"]:
            against.update(accuracy=None, speedup=None, flops_ratio=None, throughput_ratio=None, doubts=[])
    for details in document["details"].values():
        details["reliability"]["calibrated"] = None
        details["robustness"] = [{**r, "calibrated_nll": None, "calibrated_ece": None} for r in details["robustness"]]
    page = Page(page_from_bench(document))
    assert lines_of(page, "quality")[0][6:11] == ["\u2013"] * 5
    assert lines_of(page, "quality")[0][11] == "<1"
    assert lines_of(page, "speed")[0][4:8] == ["\u2013"] * 4
    assert lines_of(page, "comparisons")[0][4:] == ["\u2013"] * 7
    assert "this bench holds none" in page.text["latency"]
    assert "cNLL against latency, batch 1: no row ran" in page.text["pareto"]


def test_wheel_holds_template_style_and_script(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling is not installed: pip install hatchling")
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(Path(__file__).parents[1])).build(directory=str(tmp_path))))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"edc/benchmark/page/template/page.{suffix}" for suffix in ("html", "css", "js")} <= names


def test_calibrated_nll_of_the_verdict_is_beside_the_ensembles_in_fp32(document):
    """Also where the speed is against one in 8 bits, whose NLL is another."""
    document = copy.deepcopy(document)
    verdict = document["verdict"]
    full = next(
        row for row in document["rows"] if key_of(row) == "ensemble, in turn on onnxruntime" and row["batch"] == 1
    )
    full["quality"]["calibrated"]["nll"] = 0.0777
    row = next(row for row in document["rows"] if key_of(row) == verdict["row"] and row["batch"] == verdict["batch"])
    against = next(each for each in row["against"] if each["baseline"] == verdict["baseline"])
    against["accuracy_baseline"] = key_of(full)
    text = re.sub(r"<[^>]+>|\s+", " ", page_from_bench(document))
    assert re.search(rf"calibrated NLL\s+{row['quality']['calibrated']['nll']:.3f}\s+ensemble 0\.078", text)
