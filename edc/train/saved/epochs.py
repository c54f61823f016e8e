"""metrics.jsonl: a line of JSON for each epoch of a training."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from edc.console import console
from edc.system.documents import json_from_text
from edc.system.files import write_atomically
from edc.system.saved import fault_of

__all__ = ["append_metrics", "read_metrics"]


def append_metrics(path: Path, record: dict[str, Any]) -> None:
    """Appends one line of JSON; lines of this epoch or later, left by a run that was cut off, are dropped first."""
    kept = [json.dumps(line) for line in read_metrics(path) if line["epoch"] < record["epoch"]]
    with write_atomically(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in [*kept, json.dumps(record)]))


class _Epoch(BaseModel):
    """The fields of a line of metrics.jsonl that are read back."""

    epoch: Annotated[int, Field(ge=0)]
    loss: float | None = None
    validation_acc: float | None = None
    seconds: float | None = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the epochs of a training, in their order; lines that are none are left out, which is said."""
    epochs, unread = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            document = json_from_text(line)
            _Epoch.model_validate(document)
        except ValueError as error:
            unread.append(f"line {number}: {fault_of(error)}")
            continue
        epochs.append(document)
    if unread:
        more = f"; and {len(unread) - 1} more" if len(unread) > 1 else ""
        console.print(
            f"warning: {path}: left out {len(unread)} of {len(lines)} lines, which are no epochs of a training "
            f"({unread[0]}{more})",
            highlight=False,
            markup=False,
        )
    return epochs
