"""Imports point down: from a room only to rooms below it, lazy imports counted, so that no two rooms form a circle.

A room is a folder or a flat file of `edc/`; in `edc/deploy/` and `edc/benchmark/` each folder and flat file is one.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FROM_THE_BOTTOM = re.findall(
    r"\S+",
    """
errors console progress seeding subject system method recipe metrics architectures data networks train teachers
runs evidence
deploy.artifact deploy.ensemble deploy.onnx deploy.engine deploy.fuse deploy.gates deploy.onnx_files deploy.samples
deploy.engine_files
deploy.records deploy.card deploy.networks deploy.export deploy.verify deploy.transfer
benchmark.packed benchmark.keys benchmark.environment benchmark.saved
benchmark.backends benchmark.workers
benchmark.judge benchmark.measure benchmark.page benchmark.regression benchmark.specs
benchmark.teachers benchmark.options
benchmark.result benchmark.request benchmark.forecast benchmark.bench
predict proposal cli __init__ __main__
""",
)
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("edc/**/*.py")}
MOST_FILES, MOST_LINES = 13, 300


def room_of(module: str) -> str:
    parts = module.removesuffix(".__init__").split(".")[1:] or ["__init__"]
    return ".".join(parts[: 2 if parts[0] in ("deploy", "benchmark") else 1])


def imported_by(path: Path) -> set[str]:
    """Returns the modules of edc that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import, which this test does not read"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES or f"{name}.__init__" in MODULES}


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__init__")] or [None])
def test_imports_point_down(module: str) -> None:
    height = FROM_THE_BOTTOM.index(room_of(module))
    up = {name for name in imported_by(MODULES[module]) - {"edc"} if FROM_THE_BOTTOM.index(room_of(name)) > height}
    assert not up, f"{module} imports from above: {', '.join(sorted(up))}"


def test_rooms_and_files_stay_small() -> None:
    folders = {path.parent for path in MODULES.values()}
    crowded = [str(f) for f in folders if sum(p.name != "__init__.py" for p in f.glob("*.py")) > MOST_FILES]
    long = [module for module, path in MODULES.items() if path.read_text().count("\n") > MOST_LINES]
    assert (crowded, long) == ([], [])
