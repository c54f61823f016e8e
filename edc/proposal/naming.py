"""What a proposed recipe is called; apart, so that the command need not load torch to say that the file is there."""

import re
from pathlib import Path

__all__ = ["name_of"]


def name_of(path: Path) -> str:
    """Returns the name of a recipe from that of its file or its folder of images, in letters that a recipe may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.resolve().name).lstrip("._-") or "mine"
