"""Tables of results/ are what edc makes, now and here, of the figures that lie beside them."""

import re
import shlex

import pytest
from command_line import edc
from conftest import TESTS

ROOT = TESTS.parent
# A block that begins with what was typed; the rest of it is what was printed.
PRINTED = re.compile(r"^```console\n\$ edc (show results/[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TABLES = [
    pytest.param(typed, printed, id=f"{page.name}: {typed}")
    for page in sorted((ROOT / "results").glob("*.md"))
    for typed, printed in PRINTED.findall(page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("typed", "printed"), TABLES)
def test_table_of_a_page_is_what_show_prints(typed, printed):
    words = [
        str(path)
        for word in shlex.split(typed)
        for path in (sorted(found.relative_to(ROOT) for found in ROOT.glob(word)) if "*" in word else [word])
    ]
    called = edc(*words, cwd=ROOT)
    assert called.exit_code == 0, called.stderr
    assert [line.rstrip() for line in called.stdout.splitlines()] == printed.splitlines()


def test_there_are_such_tables():
    assert TABLES, "no page of results/ has a table that can be printed again"
