"""The identity of a network: a frozen value. It has a label for people, which is never parsed."""

from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["EnsembleForm", "PrecisionClass", "Role", "Subject"]

Role = Literal["teacher", "ensemble", "members", "student"]
"""One teacher; all of them; a student with its members, before the fold; a student as it is deployed."""
EnsembleForm = Literal["in turn", "merged"]
PrecisionClass = Literal["fp32", "tf32", "fp16", "bf16", "int8"]

RESERVED = ("teacher", "ensemble", "members")
"""Words of labels. A student may have such a name; its label then begins with the word student."""


@dataclass(frozen=True)
class Subject:
    """A network of a run or of an artifact, and how it runs.

    Two subjects that differ have two labels: a student's name holds no space, no comma and no parenthesis.
    """

    role: Role
    name: str | None = None
    """The student's name, for a student and for its members."""
    member: int | None = None
    """The number of the teacher, from 0."""
    precision: PrecisionClass = "fp32"
    """The file's precision; a backend may compute in another one."""
    ensemble_form: EnsembleForm | None = None
    """None: not specified."""
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        of_student, of_teacher = self.role in ("student", "members"), self.role == "teacher"
        if (self.name is not None, self.member is not None) != (of_student, of_teacher):
            raise ValueError(f"{self.role}: a student has a name, a teacher has a number, and nothing else has one")
        if self.ensemble_form is not None and self.role != "ensemble":
            raise ValueError(f"{self.role}: only an ensemble has a form")

    @property
    def label(self) -> str:
        """What tables show: `teacher 0`, `ensemble, merged (int8)`, `kd (members)`, `kd (fp16) (CUDA graph)`."""
        return f"{self._network_label}{self.how_it_runs}"

    @property
    def how_it_runs(self) -> str:
        """The end of the label: all that differs from plain fp32."""
        precision = "" if self.precision == "fp32" else f" ({self.precision})"
        return f"{precision} (CUDA graph)" if self.cuda_graph else precision

    @property
    def _network_label(self) -> str:
        if self.role == "teacher":
            return f"teacher {self.member}"
        if self.role == "ensemble":
            return f"ensemble, {self.ensemble_form}" if self.ensemble_form else "ensemble"
        student = f"student {self.name}" if self.name in RESERVED else str(self.name)
        return f"{student} (members)" if self.role == "members" else student

    @property
    def is_ensemble(self) -> bool:
        return self.role == "ensemble"

    @property
    def is_student(self) -> bool:
        """Whether it is a student, folded or with its members."""
        return self.role in ("student", "members")

    @property
    def base(self) -> "Subject":
        """The same subject in fp32, without a CUDA graph."""
        return replace(self, precision="fp32", cuda_graph=False)

    @property
    def network(self) -> "Subject":
        """The network of the run, without how it runs."""
        return replace(self.base, ensemble_form=None)
