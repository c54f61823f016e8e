"""Which engine library to use, and engines for the files of one network.

With TensorRT and a GPU, the engine is run and checked against the network. Otherwise TensorRT-RTX builds ahead of time
for GPUs elsewhere; such an engine is built and not run, and the manifest says so.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from edc.deploy.artifact.manifest import ParityFigures
from edc.deploy.engine.from_onnx import Engine, Library, engine_from_onnx, import_tensorrt, sidecar_path
from edc.deploy.engine.run import engine_outputs
from edc.deploy.onnx.parity import batch_sizes_for, check_parity, compare_outputs, network_outputs
from edc.deploy.onnx.precision import Precision
from edc.deploy.onnx_files import Judged, Written
from edc.errors import EngineError, NotInstalledError

__all__ = ["Built", "EngineChoice", "build_engines", "choose_library"]

SUFFIXES = {"tensorrt": ".plan", "tensorrt_rtx": ".rtx"}
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class EngineChoice:
    """The library that builds engines, and the GPUs they are for."""

    library: Library
    compute_capabilities: tuple[int, ...] = ()
    strict_fp32: bool = True
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """An engine on disk; `parity` is None if it was built and not run."""

    path: Path
    role: str
    precision: Precision
    engine: Engine
    parity: ParityFigures | None
    notes: dict[str, str]


def choose_library() -> Library:
    """Returns the library that can build engines here: TensorRT with a GPU, else TensorRT-RTX.

    Raises:
        NotInstalledError: neither can, with the lines that install them.
    """
    if torch.cuda.is_available():
        try:
            import_tensorrt("tensorrt")
        except (NotInstalledError, EngineError):
            pass
        else:
            return "tensorrt"
    try:
        import_tensorrt("tensorrt_rtx")
    except NotInstalledError:
        raise NotInstalledError(
            "--trt: no engine library here. For engines ahead of time, without a GPU: pip install 'edc[rtx]'. "
            "For this machine's own GPU: pip install 'edc[trt]'"
        ) from None
    return "tensorrt_rtx"


def build_engines(
    written: list[Written],
    role: str,
    choice: EngineChoice,
    *,
    reference: nn.Module,
    images: Floats,
    max_batch: int,
    judged: Judged,
) -> list[Built]:
    """Builds an engine beside each file that TensorRT reads (int8-cpu is not for it), each in a block of `judged`.

    On a machine with a GPU each one is run on `images` and compared with `reference`. Returns those that passed.
    """
    built = []
    for file in written:
        if file.precision == "int8-cpu":
            continue
        path = file.path.with_suffix(SUFFIXES[choice.library])
        with judged(path, file.precision):
            built.append(_built(file, path, role, choice, reference=reference, images=images, max_batch=max_batch))
    return built


def _built(
    file: Written,
    path: Path,
    role: str,
    choice: EngineChoice,
    *,
    reference: nn.Module,
    images: Floats,
    max_batch: int,
) -> Built:
    """Builds one engine, and runs it where there is a GPU."""
    engine = engine_from_onnx(
        file.path,
        path,
        library=choice.library,
        max_batch=max_batch,
        compute_capabilities=choice.compute_capabilities,
        strict_fp32=choice.strict_fp32,
        timing_cache=choice.timing_cache,
    )
    parity = None
    if torch.cuda.is_available():
        parity = _parity_on_gpu(path, engine, file.precision, reference, images)
    notes = {
        "library": f"{engine.library} {engine.library_version}",
        "built_from": file.path.name,
        "run": "run here" if parity else "built and not run here: no parity figures",
        "sidecar": sidecar_path(path).name,
        "build_seconds": f"{engine.build_seconds:.2f}",
    }
    return Built(path, role, file.precision, engine, parity, notes)


def _parity_on_gpu(
    path: Path, engine: Engine, precision: Precision, reference: nn.Module, images: Floats
) -> ParityFigures:
    """Runs the engine at batch 1, an odd size and the maximum; raises `ParityError` if it is out of tolerance."""
    wanted = network_outputs(reference, images, batch_size=engine.max_batch)
    sizes = batch_sizes_for(engine.max_batch)
    for size in sizes[:-1]:
        few = images[: 8 * size]
        got = engine_outputs(path, engine, few, batch_size=size)
        check_parity(
            compare_outputs(wanted[: len(few)], got, tie=2e-3), precision=_gate(engine, precision), what=str(path)
        )
    got = engine_outputs(path, engine, images, batch_size=engine.max_batch)
    parity = compare_outputs(wanted, got, tie=2e-3, batch_sizes=sizes)
    check_parity(parity, precision=_gate(engine, precision), what=str(path))
    return ParityFigures(**asdict(parity))


def _gate(engine: Engine, precision: Precision) -> Precision:
    """Returns by which rule an engine is judged: TF32 has the ten bits of mantissa that fp16 has."""
    return "fp16" if precision == "fp32" and engine.tf32 else precision
