"""`report.html` taken apart, and opened in a browser, for tests."""

import re
from html.parser import HTMLParser

from browser import Browser

MINUS = "\u2212"


class Page(HTMLParser):
    """The page taken apart: tables as {name: [[cell]]}, sections' text, titles in drawings, what is missing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self.titles: list[str] = []
        self.missing: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._table = self._section = ""
        self._cell = self._title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "details":
            self._table = (attributes["id"] or "").removeprefix("table-")
            self.tables[self._table] = []
        elif tag == "section":
            self._section = attributes["id"] or ""
            self.text[self._section] = ""
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in {"td", "th"}:
            self._cell = True
            self.tables[self._table][-1].append("")
        elif attributes.get("class") == "missing":
            self.missing.append(self._section)
        elif tag == "title":
            self._title = True
            self.titles.append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell &= tag not in {"td", "th"}
        self._title &= tag != "title"
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._title:
            self.titles[-1] += data
        elif self._cell:
            self.tables[self._table][-1][-1] += data
        if self._section and not self._title:
            self.text[self._section] += data


def number(text: str) -> float:
    return float(text.replace(",", "").replace(MINUS, "-"))


def lines_of(page: Page, table: str) -> list[list[str]]:
    """Returns the lines of a table under their group's heading, which is put in front."""
    heading, found = "", []
    for cells in page.tables[table][1:]:
        if len(cells) == 1:
            heading = cells[0]
        else:
            found.append([heading, *cells])
    return found


def bounds(text: str) -> list[float]:
    return [number(part) for part in re.findall(rf"[+{MINUS}]?[\d,.]*\d", text)]


def show(browser: Browser, url: str, *, width: int, scheme: str = "light", media: str = "screen") -> None:
    """Opens a page on a screen so wide, or on paper."""
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", media=media, features=features)
    browser.open(url)


def wider_than_the_screen(browser: Browser) -> list[str]:
    """Returns which sections of the page are, or `page` if it can be scrolled sideways for another reason."""
    sections = "[...document.querySelectorAll('main > section')].filter((e) => e.scrollWidth > innerWidth)"
    found: list[str] = browser.evaluate(f"{sections}.map((e) => e.id)")
    return found or ["page"] * browser.evaluate("document.documentElement.scrollWidth > innerWidth")
