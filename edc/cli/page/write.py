"""Assembles the page of a run: one file, which loads nothing from a network."""

from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from edc.benchmark.page.charts.figure import legend_mark
from edc.benchmark.page.charts.svg import marker_definitions
from edc.benchmark.page.tables.table import with_breaks
from edc.cli.page import words
from edc.cli.page.curves import epoch_lines
from edc.cli.page.sections import sections
from edc.errors import RequestError
from edc.runs.folder import RunFolder
from edc.system.files import write_atomically

__all__ = ["page_of_run", "write_run_page"]


def write_run_page(path: Path, run: RunFolder) -> None:
    """Writes the page of a finished run, whole or not at all.

    Raises:
        RequestError: `path` is not called .html.
        RunError: the run is not finished.
    """
    if path.suffix != ".html":
        raise RequestError(f"--page: found {path}, expected a file that ends in .html")
    text = page_of_run(run)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_of_run(run: RunFolder) -> str:
    """Returns the page of a finished run: HTML with style, script and pictures in it, all names in it escaped."""
    summary = run.summary()
    lines = {name: epoch_lines(run.student_path(name) / "metrics.jsonl") for name in run.recipe().students}
    said = words.sentences(lines)
    return _template().render(
        name=summary["name"],
        run=summary["run"],
        subtitle=words.subtitle(summary),
        sentences=said,
        note=words.note_on_samples(summary),
        figures=sections(lines),
        quality_tables=[*words.quality(summary), *words.classes(summary)],
        figures_table=words.last_figures(lines),
        notes=words.notes(summary),
        versions=summary["versions"] | summary["machine"],
        mark=legend_mark,
        markers=marker_definitions(),
        with_breaks=with_breaks,
    )


@cache
def _template() -> jinja2.Template:
    page, style = (jinja2.PackageLoader(f"edc.{room}.page", "template") for room in ("cli", "benchmark"))
    environment = jinja2.Environment(
        loader=page, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def included(name: str) -> Markup:  # style and script are ours, and those of the bench's page
        return Markup(style.get_source(environment, name)[0])

    environment.globals["included"] = included
    return environment.get_template("run.html")
