"""What "one teacher" is in a bench: the best on validation images runs beside the student, and the mean is said.

Test images choose nothing, so the teacher that runs may be below the mean of all on them.
"""

import statistics
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edc.deploy.artifact.manifest import Manifest
from edc.errors import RunError
from edc.runs.folder import RunFolder
from edc.runs.rows import best_teacher, rows_by_subject

__all__ = ["Teachers", "teachers_of"]


@dataclass(frozen=True)
class Teachers:
    """`best` is the number of the teacher that runs; `test_acc` is of all, by number, on all test images of the run."""

    best: int = 0
    is_chosen: bool = False
    """Whether it is the best on validation images; an artifact of an older edc without its run does not say."""
    test_acc: tuple[float, ...] = ()

    def words_where(self, *, drawn: bool) -> str:
        """Returns who it is among the others, for people; "" if that is not known.

        Args:
            drawn: whether the bench may have looked at some test images only: the mean is of all.
        """
        if not self.is_chosen or len(self.test_acc) < 2:
            return ""
        mean, spread = 100 * statistics.fmean(self.test_acc), 100 * statistics.stdev(self.test_acc)
        of = ", on all its test images," if drawn else ""
        best = f"teacher {self.best}, the best of {len(self.test_acc)} on validation"
        return f"{best}; their mean in the run{of} is {mean:.2f} ±{spread:.2f} %"


def teachers_of(manifest: Manifest, run: Path) -> Teachers:
    """Returns the teachers by the artifact's manifest, or by its run if an older edc wrote the manifest."""
    in_fp32 = [file for file in manifest.files if (file.role, file.precision) == ("teacher", "fp32")]
    files = {file.member: file.metrics for file in in_fp32 if file.member is not None}
    numbers = sorted(files)
    if numbers and numbers == list(range(manifest.num_teachers)):
        known = [files[number] for number in numbers]
        if all({"acc", "validation_acc"} <= metrics.keys() for metrics in known):
            best = max(numbers, key=lambda number: known[number]["validation_acc"])
            return Teachers(best, is_chosen=True, test_acc=tuple(metrics["acc"] for metrics in known))
    with suppress(RunError):
        folder = RunFolder(run)
        if folder.recipe().digest() == manifest.recipe_sha256:
            rows = rows_by_subject(folder.summary())
            accuracies = tuple(row["raw"]["acc"] for subject, row in rows.items() if subject.role == "teacher")
            subject = best_teacher(rows)
            return Teachers((subject and subject.member) or 0, is_chosen=subject is not None, test_acc=accuracies)
    return Teachers()
