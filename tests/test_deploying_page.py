"""docs/deploying.md: its Python is run on an artifact as it stands there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TESTS, Workshop
from PIL import Image


def test_python_of_the_page_answers_as_classify_py(workshop: Workshop, tmp_path: Path):
    """The page's image is black; the probabilities are those of a black file."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (TESTS.parent / "docs/deploying.md").read_text(), re.M | re.S)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/digits").symlink_to(workshop.artifact)
    how = json.loads((workshop.artifact / "manifest.json").read_text())["preprocessing"]
    height, width = how["image_size"]
    Image.new(how["color"], (width, height)).save(tmp_path / "black.png")

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    logits, answer = json.loads(run("-W", "error", "-c", f"{block}\nprint(json.dumps([logits[0].tolist(), answer]))"))
    script = str(TESTS.parent / "export/classify.py")
    top = json.loads(run(script, "export/digits", "black.png", "--top", "99", "--json"))["top"]
    expected = np.empty(len(top))
    expected[[row["index"] for row in top]] = [row["probability"] for row in top]
    probabilities = np.exp(np.array(logits) - max(logits))
    assert probabilities / probabilities.sum() == pytest.approx(expected, abs=1e-6)
    assert (answer, len(expected)) == (top[0]["label"], 4)
