"""`edc show RUN --page FILE.html`: the figures of a run's metrics.jsonl, in words, charts and a table."""

import json
import shutil
from pathlib import Path

import pytest
from browser import Browser
from command_line import edc
from conftest import Workshop
from page_reader import Page, number, show, wider_than_the_screen

from edc.cli.page.curves import epoch_lines
from edc.cli.page.write import page_of_run
from edc.runs.folder import RunFolder


@pytest.fixture(scope="module")
def path(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.html"
    called = edc("show", workshop.run, "--page", path, "--json", cwd=workshop.folder)
    assert called.exit_code == 0, called.stderr
    assert f"page: {path}" in called.stderr
    assert called.document["name"] == "tiny"
    return path


def last_observed(run: Path, student: str) -> dict[str, float]:
    return json.loads((run / f"students/{student}/metrics.jsonl").read_text().splitlines()[-1])["observed"]


def test_table_and_words_have_the_figures_of_the_last_epoch(workshop, path):
    page = Page(path.read_text())
    columns, *rows = page.tables["observed"]
    assert [row[:2] for row in rows] == [["kd", "2"], ["latent_be", "2"]]
    of_be = last_observed(workshop.run, "latent_be")
    found = dict(zip(columns[2:8], map(number, rows[1][2:8]), strict=True))
    assert found == {
        "agree, training %": pytest.approx(100 * of_be["agreement_train"], abs=0.05),
        "agree, validation %": pytest.approx(100 * of_be["agreement_validation"], abs=0.05),
        "KL, training": pytest.approx(of_be["kl_train"], abs=5e-5),
        "KL, validation": pytest.approx(of_be["kl_validation"], abs=5e-5),
        "teachers disagree, clean %": pytest.approx(100 * of_be["teachers_disagree_clean"], abs=0.05),
        "moved %": pytest.approx(100 * of_be["teachers_disagree_moved"], abs=0.05),
    }
    moved, clean = (f"{100 * of_be[f'teachers_disagree_{kind}']:.1f} %" for kind in ("moved", "clean"))
    assert f"teachers disagree on {moved} of moved and {clean} of clean ones" in page.text["verdict"]
    assert rows[0][-1] == "\u2013", "kd has no members"


def test_every_curve_ends_in_its_figure(workshop, path):
    titles = Page(path.read_text()).titles
    for student in ("kd", "latent_be"):
        for figure, label, factor, digits in (("agreement_train", "images, %", 100, 1), ("kl_train", "KL, nats", 1, 4)):
            value = factor * last_observed(workshop.run, student)[figure]
            assert f"{student}\nepoch 2: {label} {value:.{digits}f}" in titles
    moved = 100 * last_observed(workshop.run, "latent_be")["teachers_disagree_moved"]
    assert f"moved images\nepoch 2: images, % {moved:.1f}" in titles


def test_page_loads_nothing_and_fits_the_screen_in_light_and_dark(browser: Browser, path):
    for scheme, width in (("light", 1280), ("dark", 360)):
        show(browser, path.as_uri(), width=width, scheme=scheme)
        assert browser.problems() == []
        assert {address for address in browser.urls() if not address.startswith("data:")} == {path.as_uri()}
        assert wider_than_the_screen(browser) == []
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(17, 20, 24)"
        )


@pytest.fixture
def old_run(workshop: Workshop, tmp_path: Path) -> Path:
    """As an edc that did not observe left it, its last line cut off by a crash."""
    shutil.copytree(workshop.run, tmp_path / "old")
    for file in tmp_path.glob("old/students/*/metrics.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [json.dumps({key: line[key] for key in line if key != "observed"}) for line in lines]
        file.write_text("\n".join([*kept, '{"epoch": 2, "lo']))
    return tmp_path / "old"


def test_run_of_an_earlier_edc_has_a_page_that_says_what_is_not_there(old_run):
    page = Page(page_of_run(RunFolder(old_run)))
    assert page.missing == ["verdict", "agreement", "kl", "disagreement", "diversity", "figures"]
    assert "trained by an earlier edc" in page.text["verdict"]
    assert [line["epoch"] for line in epoch_lines(old_run / "students/kd/metrics.jsonl")] == [0, 1]
    assert sum("loss" in title for title in page.titles) == 4  # line and marker of two students


def test_names_are_escaped(old_run):
    summary = json.loads((old_run / "summary.json").read_text())
    (old_run / "summary.json").write_text(json.dumps(summary | {"name": "<script>alert(1)</script>"}))
    assert "<script>alert" not in page_of_run(RunFolder(old_run))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--page", "run.htm"], "--page: found run.htm, expected a file that ends in .html"),
        (["runs/tiny", "runs/tiny", "--page", "run.html"], "--page: found 2 runs; a page shows one, so name one"),
    ],
)
def test_bad_requests_for_a_page_write_nothing(workshop, tmp_path, arguments, said):
    called = edc("show", *arguments, "--runs", workshop.folder / "runs", cwd=tmp_path)
    assert called.exit_code == 2
    assert said in called.stderr
    assert list(tmp_path.iterdir()) == []
