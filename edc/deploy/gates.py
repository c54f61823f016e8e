"""The gates that files pass one by one: a file that fails is not written, and the manifest says which and why."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edc.deploy.artifact.manifest import FilePrecision, MissingFile
from edc.deploy.engine.description import sidecar_path
from edc.errors import DiskError, FailedError
from edc.subject import Subject

__all__ = ["Gates"]


_TEMPORARY = re.compile(r"\.+([^/\s]*?)(?:\.[0-9a-f]{12}\.tmp)+")
"""The name that a file has while it is written, which means nothing to anybody afterwards."""


@dataclass
class Gates:
    """The files of one export that did not pass."""

    folder: Path
    all_or_nothing: bool
    missing: list[MissingFile] = field(default_factory=list)

    @contextmanager
    def judged(self, subject: Subject, path: Path, precision: FilePrecision) -> Iterator[None]:
        """Removes the file that the block writes to `path` if the block fails, and notes the reason.

        Raises:
            FailedError: the disk failed and not the file; or one file is to end it all; or it is the student in
                float32, of which every other file of the student is made.
        """
        try:
            yield
        except DiskError:
            raise
        except FailedError as error:
            if self.all_or_nothing or (subject.role == "student" and precision == "fp32" and path.suffix == ".onnx"):
                raise
            for left in (path, sidecar_path(path)):
                left.unlink(missing_ok=True)
            name = path.relative_to(self.folder).as_posix()
            reason = _TEMPORARY.sub(r"\1", str(error).replace(f"{self.folder}/", ""))
            self.missing.append(
                MissingFile(
                    path=name,
                    role=subject.role,
                    member=subject.member,
                    precision=precision,
                    reason=reason.removeprefix(f"{name}: "),
                )
            )
