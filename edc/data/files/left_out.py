"""What lies beside the images of a data set and is not used: counted by kind, and named."""

import os
from dataclasses import dataclass, field

from edc.console import console

__all__ = ["LeftOut", "is_folder", "is_hidden", "kind_of"]

_BY_MACHINES = (
    *("__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    "lost+found",
)
"""What macOS, Synology, Windows and Linux leave in folders, in lower case; other such names begin with a dot."""
_MOST_KINDS = 8


@dataclass
class LeftOut:
    """Kinds of files that were left out, in the order in which they were met: how many, and one of them."""

    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)

    def add(self, kind: str, name: str, *, num: int = 1) -> None:
        known, first = self.kinds.get(kind, (0, name))
        self.kinds[kind] = (known + num, first)

    def update(self, other: "LeftOut") -> None:
        for kind, (num, name) in other.kinds.items():
            self.add(kind, name, num=num)

    def report(self, where: str) -> None:
        """Prints one line, if anything was left out."""
        if not self.kinds:
            return
        most = sorted(self.kinds.items(), key=lambda item: -item[1][0])
        listed = ", ".join(f"{num:,} {kind} ({name})" for kind, (num, name) in most[:_MOST_KINDS])
        more = f" and {len(most) - _MOST_KINDS} more kinds" if len(most) > _MOST_KINDS else ""
        console.print(f"data: {where}: left out {listed}{more}", highlight=False, markup=False)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is a machine's own: `.ipynb_checkpoints`, `._photo.jpg`, `__MACOSX`."""
    return name.startswith(".") or name.lower() in _BY_MACHINES


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link to itself is a file that cannot be read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def kind_of(name: str, where: str = "") -> str:
    """Returns the kind of a file or folder that is left out."""
    if is_hidden(name.rpartition("/")[2]):
        return "hidden"
    suffix = os.path.splitext(name)[1].lower() or "without a suffix"  # noqa: PTH122 - a Path costs as much as the rest
    return f"{suffix} {where}".strip()
