"""A section with drawings before the template writes it: panels, switches, legends."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from markupsafe import Markup

from edc.benchmark.page.charts.svg import Drawing
from edc.benchmark.page.document import Bench, Series

__all__ = ["Figure", "Panel", "Switch", "legend_mark", "series_of"]


@dataclass(frozen=True)
class Panel:
    """Drawings to be seen together, for one choice of every switch; `narrow` replaces them on a phone, in pairs."""

    choice: tuple[int, ...]
    caption: str
    drawings: tuple[Drawing, ...] = ()
    narrow: tuple[Drawing, ...] = ()
    titles: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    """For a legend of its own, where panels show different networks."""
    beneath: tuple[tuple[str, ...], ...] = ()
    """Lines of words under each drawing."""


@dataclass(frozen=True)
class Switch:
    """Radio buttons: `options` to choose from, the first of them chosen unless `chosen` says otherwise."""

    name: str
    options: tuple[str, ...]
    chosen: int = 0


@dataclass(frozen=True)
class Figure:
    """A section with drawings; where `panels` is empty, `missing` says so in a line."""

    name: str
    title: str
    short: str
    """For the navigation."""
    lead: str
    missing: str
    switches: tuple[Switch, ...] = ()
    panels: tuple[Panel, ...] = ()
    series: tuple[Series, ...] = ()
    note: str = ""
    hint: str = ""
    """What to do with the pointer: not on paper."""

    @property
    def rules(self) -> Markup:
        """The style rules that show the panel of the chosen buttons; no script needed."""
        rules = []
        for panel in self.panels if self.switches else ():
            checked = "".join(f":has(#{self.name}-{n}-{at}:checked)" for n, at in enumerate(panel.choice))
            rules.append(f"#{self.name}{checked} .panel-{'-'.join(map(str, panel.choice))}{{display:block}}")
        return Markup("".join(rules))  # numbers and the names of sections, none of it from the document


def legend_mark(series: Series) -> Markup:
    """Returns the sample of line and marker that stands in legends and tables."""
    dash = f' stroke-dasharray="{series.dash}"' if series.dash else ""
    return Markup(  # shapes and dashes are ours
        f'<svg class="mark" viewBox="0 0 26 14" aria-hidden="true"><path class="s c{series.colour}" d="M0 7H26"{dash}/>'
        f'<use class="m {series.css}" href="#m-{series.shape}-small" x="13" y="7"/></svg>'
    )


def series_of(bench: Bench, keys: Iterable[str]) -> tuple[Series, ...]:
    """Returns the networks of the keys, the student first, then ensembles; the last says what hollow is."""
    series = [bench.series(key) for key in keys]
    filled = {each.network: replace(each, name=each.network, is_hollow=False) for each in series}
    hollow = [replace(each, name="hollow: 16 bits or fewer") for each in series if each.is_hollow]
    return (*sorted(filled.values(), key=lambda each: each.colour), *hollow[:1])
