"""`report.html` in headless Chromium: screens, paper, dark mode, switches, tooltips."""

import base64
import json
import re
from typing import Any

import pytest
from bench_document import STUDENT, bench_document, key_of, small_document
from page_reader import bounds, show, wider_than_the_screen
from test_export_web import Browser

from edc.benchmark.page import write_page
from edc.benchmark.page.numbers import milliseconds


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return bench_document()


@pytest.fixture(scope="module")
def url(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(document, path)
    return path.as_uri()


def colour(browser: Browser, selector: str, name: str = "backgroundColor") -> str:
    return browser.evaluate(f"getComputedStyle(document.querySelector({json.dumps(selector)})).{name}")


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_asks_no_network_complains_of_nothing_and_is_no_wider_than_the_screen(browser, url, width):
    show(browser, url, width=width)
    assert browser.problems() == []
    assert {address for address in browser.urls() if not address.startswith("data:")} == {url}
    assert wider_than_the_screen(browser) == []
    shown = "[...document.querySelectorAll('figure')].filter((e) => e.getBoundingClientRect().height > 100).length"
    assert browser.evaluate(shown) >= 8
    smallest = "Math.min(...[...document.querySelectorAll('figure svg text')].filter((e) => e.checkVisibility())"
    assert browser.evaluate(f"{smallest}.map((e) => e.getBoundingClientRect().height))") >= 9


def test_page_without_most_of_a_bench_complains_of_nothing_either(browser, tmp_path):
    write_page({"schema_version": 2, "artifact": "a < b", "rows": []}, tmp_path / "report.html")
    show(browser, (tmp_path / "report.html").as_uri(), width=360)
    assert browser.problems() == []
    assert browser.text("h1") == "a < b"


def test_dark_mode_is_dark_and_paper_is_white(browser, url):
    show(browser, url, width=1280)
    light = colour(browser, "body")
    show(browser, url, width=1280, scheme="dark")
    dark = colour(browser, "body")
    assert light == "rgb(255, 255, 255)"
    assert sum(bounds(dark)) < 100
    assert sum(bounds(colour(browser, "body", "color"))) > 600
    assert colour(browser, ".m.c0", "fill") != "rgb(0, 114, 178)"
    show(browser, url, width=700, scheme="dark", media="print")
    assert colour(browser, "body") == "rgb(255, 255, 255)"


def visible_panels(browser: Browser, section: str) -> list[str]:
    panels = f"[...document.querySelectorAll('#{section} .panel')].filter((e) => e.checkVisibility())"
    return browser.evaluate(f"{panels}.map((e) => e.querySelector('figcaption').textContent)")


def test_switches_show_the_panel_that_was_chosen(browser, url):
    show(browser, url, width=1280)
    assert visible_panels(browser, "pareto") == ["accuracy against latency, batch 1"]
    browser.evaluate("document.querySelector('#pareto-0-2').click(), document.querySelector('#pareto-1-1').click()")
    assert visible_panels(browser, "pareto") == ["NLL against latency, batch 64"]
    assert visible_panels(browser, "latency") == ["onnxruntime, batch 1"]
    browser.evaluate("document.querySelector('#latency-0-2').click()")
    assert visible_panels(browser, "latency") == ["openvino, batch 1"]
    assert visible_panels(browser, "robustness") == ["accuracy, %, on onnxruntime"]


def test_hovering_over_a_marker_shows_its_row(browser, url, document):
    show(browser, url, width=1280)
    number, row = next((n, r) for n, r in enumerate(document["rows"]) if key_of(r) == "kd on torch" and r["batch"] == 1)
    target = f"document.querySelector('#pareto .panel-0-0 .wide a[href=\"#row-{number}\"] use')"
    browser.evaluate(f"{target}.scrollIntoView({{block: 'center'}})")
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    browser.evaluate(frames)  # until the page has heard of the scrolling, which hides tooltips
    box = browser.evaluate(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({target}.getBoundingClientRect())"
    )
    assert browser.evaluate("document.getElementById('tip').hidden")
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    browser.wait_for("!document.getElementById('tip').hidden")
    tip = browser.text("#tip")
    assert tip.startswith("kd on torch, batch 1, fp32\n")
    assert f"p50 {milliseconds(row['p50_ms'])} ms" in tip
    assert "accuracy 97.00 %" in tip
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    browser.wait_for("document.getElementById('tip').hidden")
    assert browser.problems() == []


def test_first_tap_shows_the_row_of_a_marker_and_the_second_goes_there(browser, url, document):
    show(browser, url, width=390)
    number, row = next((n, r) for n, r in enumerate(document["rows"]) if key_of(r) == "kd on torch" and r["batch"] == 1)
    marker = f"document.querySelector('#pareto .panel-0-0 .narrow a[href=\"#row-{number}\"] use')"
    tap(browser, marker)
    assert browser.text("#tip").startswith("kd on torch, batch 1, fp32\n")
    assert f"p50 {milliseconds(row['p50_ms'])} ms" in browser.text("#tip")
    assert browser.evaluate("location.hash") == ""
    tap(browser, "document.querySelector('#pareto .lead')")
    assert browser.evaluate("document.getElementById('tip').hidden")
    tap(browser, marker)
    assert browser.evaluate("[document.getElementById('tip').hidden, location.hash]") == [False, ""]
    tap(browser, marker)
    assert browser.evaluate("location.hash") == f"#row-{number}"
    assert browser.problems() == []


def tap(browser: Browser, target: str) -> None:
    """Puts a finger on the middle of an element, which is scrolled to, and waits for the page to hear of it."""
    frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    # Where it is in sight already nothing scrolls, which would hide the tooltip.
    browser.evaluate(f"{target}.scrollIntoView({{block: 'nearest'}}), {frames}")
    x, y = browser.evaluate(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({target}.getBoundingClientRect())"
    )
    browser.evaluate(
        "heard = new Promise((done) => addEventListener('click', () => setTimeout(done), {once: true})), 0"
    )
    browser.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.evaluate("heard")


@pytest.mark.parametrize("kind", [0, 1])
def test_calibration_of_student_and_ensemble_is_seen_together_on_a_phone(browser, url, kind):
    show(browser, url, width=360)
    boxes = browser.evaluate(
        f"[...document.querySelectorAll('#calibration .panel-{kind} h3, #calibration .panel-{kind} svg')]"
        ".filter((e) => e.checkVisibility()).map((e) => e.getBoundingClientRect())"
        ".map(({left, right, top, bottom}) => [left, right, top, bottom])"
    )
    names = browser.evaluate(
        f"[...document.querySelectorAll('#calibration .panel-{kind} h3')].filter((e) => e.checkVisibility())"
        ".map((e) => e.textContent)"
    )
    assert names == [STUDENT, "ensemble, merged", "teacher 0", f"{STUDENT} (int8)"]
    (left, right, top, bottom), (left_of_second, right_of_second, top_of_second, _) = boxes[1], boxes[3]
    assert 0 <= left < right <= left_of_second < right_of_second <= 360
    assert abs(top - top_of_second) < 1
    assert bottom - top < 400


def test_names_in_tables_are_read_to_their_end_on_a_phone(browser, url):
    show(browser, url, width=360)
    cells = "[...document.querySelectorAll('#table-quality tbody th[scope=row]')]"
    assert browser.evaluate(f"{cells}.length") > 10
    assert browser.evaluate(f"{cells}.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent)") == []
    widest, narrowest = browser.evaluate(
        f"[Math.max, Math.min].map((f) => f(...{cells}.map((e) => e.getBoundingClientRect().width)))"
    )
    assert 100 < narrowest <= widest <= 0.5 * 360


@pytest.mark.parametrize("width", [390, 1280])
def test_no_label_of_the_pareto_picture_is_crossed_by_a_bar_or_the_front(browser, url, width):
    show(browser, url, width=width)
    crossed = """(() => {
        const svg = [...document.querySelectorAll('#pareto svg')].filter((e) => e.checkVisibility({}))
            .find((e) => e.querySelector('.front'));
        const strokes = [...svg.querySelectorAll('path.e, path.front')].flatMap((path) =>
            path.getAttribute('d').slice(1).split('L').map((at) => at.split(' ').map(Number))
                .map((at, n, all) => [at, all[n + 1]]).filter(([, end]) => end));
        const labels = [...svg.querySelectorAll('text.t')].filter((e) => !/^[\\d.]/.test(e.textContent));
        const meets = (box, [[x, y], [right, bottom]]) =>
            Math.min(x, right) < box.x + box.width && Math.max(x, right) > box.x &&
            Math.min(y, bottom) < box.y + box.height - 3 && Math.max(y, bottom) > box.y + 3;
        return [labels.length, strokes.length,
            labels.filter((e) => strokes.some((stroke) => meets(e.getBBox(), stroke))).map((e) => e.textContent)];
    })()"""
    num_labels, num_strokes, found = browser.evaluate(crossed)
    assert num_labels > 5
    assert num_strokes > 15
    assert found == []


def test_page_without_script_keeps_switches_and_tooltips(browser, url):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.call("Emulation.setEmulatedMedia", media="screen", features=[])
        browser.open_without_script(url)
        root = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        found = browser.call("DOM.querySelectorAll", nodeId=root, selector="#pareto .wide use > title")
        assert len(found["nodeIds"]) > 100
        assert browser.call("DOM.querySelector", nodeId=root, selector="#copy[hidden]")["nodeId"] != 0
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_page_prints(browser, tmp_path):
    write_page(small_document(), tmp_path / "report.html")
    show(browser, (tmp_path / "report.html").as_uri(), width=700, media="print")
    assert wider_than_the_screen(browser) == []
    assert browser.evaluate("document.querySelector('#pareto .panel-0-0 .wide svg').checkVisibility()")
    assert not browser.evaluate("document.querySelector('nav').checkVisibility()")
    browser.call("Emulation.setEmulatedMedia", media="", features=[])
    pdf = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF-")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
