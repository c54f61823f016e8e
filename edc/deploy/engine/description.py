"""What an engine was built from and for: the JSON beside it."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from edc.deploy.engine.library import Library
from edc.errors import ArtifactError
from edc.system.files import write_atomically
from edc.system.saved import read_saved

__all__ = ["Engine", "read_engine", "sidecar_path", "write_description"]


Count = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Engine:
    """What an engine was built from and for; the sidecar JSON beside it says the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    library: Library
    library_version: str
    onnx_sha256: str
    sha256: str
    bytes: Count
    input_name: str
    output_name: str
    min_batch: Count
    opt_batch: Count
    max_batch: Count
    compute_capabilities: tuple[int, ...]  # empty: the library's own choice
    tf32: bool
    build_seconds: float
    num_profiles: Count = 1
    """2: the first is for batch 1 alone, the second for all batches. 1: one for all, as an older edc built."""

    def profile_for(self, batch: int) -> int:
        """Returns the number of the optimisation profile whose kernels were chosen for this batch size."""
        return 0 if batch == 1 else self.num_profiles - 1

    @property
    def tuned_for(self) -> tuple[int, ...]:
        """The batch sizes that kernels were chosen for."""
        return (self.opt_batch,) if self.num_profiles == 1 else (1, self.opt_batch)


def sidecar_path(path: Path) -> Path:
    """Returns where an engine's description is. It is a file of its own so that the engine loads in any other tool."""
    return path.with_name(path.name + ".json")


def write_description(engine: Engine, path: Path) -> None:
    """Writes the description of the engine at `path` beside it."""
    with write_atomically(sidecar_path(path)) as temporary:
        temporary.write_text(json.dumps(asdict(engine), indent=2) + "\n", encoding="utf-8")


def read_engine(path: Path, library: Library, *, sha256: str) -> Engine:
    """Returns what the description beside the engine at `path` says of it, with the digest that the manifest gives.

    Raises:
        ArtifactError: one of the two is missing, or the description is not one, or of another library's engine.
    """
    description = sidecar_path(path)
    for each in (path, description):
        if not each.is_file():
            raise ArtifactError(f"{each}: no such file; export again with: edc export --trt")
    advice = "not the description of an engine: export again"
    held = read_saved(Engine, description, advice=advice, raises=ArtifactError)[0]
    engine = replace(held, sha256=sha256)
    if engine.library != library:
        raise ArtifactError(f"{path}: is an engine for {engine.library}, not for {library}")
    return engine
