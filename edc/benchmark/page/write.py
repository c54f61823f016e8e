"""Assembles the page: one file, which loads nothing from a network."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from edc.benchmark.page import words
from edc.benchmark.page.charts.all_charts import sections
from edc.benchmark.page.charts.figure import legend_mark
from edc.benchmark.page.charts.svg import marker_definitions
from edc.benchmark.page.document import Bench
from edc.benchmark.page.tables.all_tables import tables
from edc.benchmark.page.tables.table import with_breaks, with_quiet_interval
from edc.system.files import write_atomically

__all__ = ["page_from_bench", "write_page"]

SAID_AS_IT_IS = ("artifact", "command", "quick", "seed", "schema_version")
"""Fields of the document that the template shows without further ado."""


def write_page(document: dict[str, Any], path: Path) -> None:
    """Writes the page of a bench, whole or not at all.

    Args:
        document: bench.json, schema version 2. Parts that are missing or null leave a line that says so.
    """
    text = page_from_bench(document)
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page_from_bench(document: dict[str, Any]) -> str:
    """Returns the page of a bench: HTML with style, script and pictures in it, everything of the document escaped."""
    bench = Bench(document)
    said, images = words.disagreements(bench)
    figures = sections(bench)
    return _template().render(
        bench=bench,
        document={name: getattr(bench.document, name) for name in SAID_AS_IT_IS},
        machine_flags=bench.environment.flags,
        subtitle=words.subtitle(bench),
        sentences=words.sentences(bench),
        reservations=words.reservations(bench),
        facts=words.facts(bench),
        doubted=words.doubted(bench),
        flagged=words.flagged(bench),
        not_run=words.not_run(bench),
        figures={figure.name: figure for figure in figures},
        rules=Markup("").join(figure.rules for figure in figures),
        tables=tables(bench),
        said=said,
        images=images,
        machine=words.environment(bench.environment.model_dump(exclude_unset=True)),
        plan=words.environment(bench.document.plan),
        mark=legend_mark,
        markers=marker_definitions(),
        num_not_run=sum(bool(row.reason_not_run) for row in bench.rows),
        with_breaks=with_breaks,
        with_quiet_interval=with_quiet_interval,
    )


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("edc.benchmark.page", "template")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )

    def included(name: str) -> Markup:  # style and script are ours, and must not be escaped
        return Markup(loader.get_source(environment, name)[0])

    environment.globals["included"] = included
    return environment.get_template("page.html")
