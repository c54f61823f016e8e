"""The result of a comparison of two benches: frozen records."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edc.benchmark.judge.statistics import Estimate

__all__ = ["CONFIDENCE", "Change", "ChangeVerdict", "Comparison", "Figure"]

ChangeVerdict = Literal["worse", "better", "same", "undecided", "missing", "new"]
Figure = Literal["p50_ms", "acc", "nll", "runs"]
CONFIDENCE = 0.95
"""With which the intervals of all times hold together."""


@dataclass(frozen=True)
class Change:
    """One figure of one row, in the saved bench and now.

    `change` is new / old for times and the NLL, new - old for accuracy (a share). `batch` is None for quality, which
    does not depend on it.
    """

    key: str
    batch: int | None
    figure: Figure
    verdict: ChangeVerdict
    old: float | None = None
    new: float | None = None
    change: Estimate | None = None
    against_rest: Estimate | None = None
    """For times: `change` divided by what all rows of the batch size changed by."""
    reason: str = ""

    @property
    def name(self) -> str:
        return self.key if self.batch is None else f"{self.key} at batch {self.batch}"


@dataclass(frozen=True)
class Comparison:
    """Every row of either bench, and warnings. `common_factor` is the median of new / old over rows."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    common_factor: float | None
    fail_on: float
    relative: bool
    confidence: float = CONFIDENCE

    @property
    def worse(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.verdict == "worse")

    @property
    def exit_code(self) -> int:
        """1 if a row got worse: the exit code of a CI job."""
        return 1 if self.worse else 0

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document |= {"changes": [asdict(change) for change in self.changes], "warnings": list(self.warnings)}
        return document | {"worse": [change.name for change in self.worse], "exit_code": self.exit_code}
