"""Which engine library to use, and engines for the files of one network.

An engine is run, and checked against the network, where it was built for the GPU of this machine. Otherwise it is
built ahead of time, for GPUs elsewhere, and the manifest says that it was not run.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edc.deploy.artifact.feed import as_fed
from edc.deploy.artifact.manifest import ParityFigures, Preprocessing
from edc.deploy.engine.description import Engine, sidecar_path
from edc.deploy.engine.from_onnx import engine_from_onnx
from edc.deploy.engine.library import INSTALL, Library, generations, generations_by_default, import_tensorrt
from edc.deploy.engine.run import EngineRunner, engine_outputs, local_generation, why_not_here
from edc.deploy.onnx.parity import (
    batch_sizes_for,
    check_parity,
    compare_outputs,
    network_outputs,
    onnx_outputs,
    paired_accuracy_drop,
)
from edc.deploy.onnx.precision import Precision
from edc.deploy.onnx.session import ort_session
from edc.deploy.onnx_files import Judged, Samples, Written
from edc.errors import EngineError, NotInstalledError, ParityError, RequestError

__all__ = ["Built", "EngineChoice", "build_engines", "choose_library", "targets_of"]

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


def choose_library(wanted: Library | None = None, *, compute_capabilities: tuple[int, ...] = ()) -> Library:
    """Returns the library that builds the engines that are asked for.

    TensorRT builds for the GPU here alone. So GPU generations, or a machine without a GPU, take TensorRT-RTX.

    Args:
        wanted: what the user named; it is checked and not replaced.
        compute_capabilities: GPU generations that the user named.

    Raises:
        NotInstalledError: it is not installed, with the line that installs it.
        RequestError: the two do not go together, or the library knows nothing of the GPU here.
    """
    if wanted == "tensorrt" and compute_capabilities:
        raise RequestError(
            "--sm: TensorRT builds for the GPU of this machine alone; leave --sm out, "
            "or name --engine-library tensorrt_rtx"
        )
    local = local_generation()
    library = wanted or _library_for(local, compute_capabilities)
    if library == "tensorrt" and local is None:
        raise RequestError("--engine-library: tensorrt builds for the GPU of this machine, and torch sees none here")
    known = generations(import_tensorrt(library))
    if unknown := [number for number in compute_capabilities if number not in known]:
        raise RequestError(
            f"--sm: {unknown[0]} is not one of {', '.join(map(str, sorted(known)))}, which TensorRT-RTX knows. "
            f"On a machine with such a GPU TensorRT builds for it, without --sm: {INSTALL['tensorrt']}"
        )
    if library == "tensorrt_rtx" and local is not None and not compute_capabilities and local not in known:
        choices = ", ".join(map(str, sorted(known)))
        raise RequestError(
            f"--trt: TensorRT-RTX knows SM {choices} and not SM {local}, the GPU of this machine. "
            f"For this GPU, TensorRT: {INSTALL['tensorrt']}. For GPUs elsewhere, name them: --sm {max(known)}"
        )
    return library


def targets_of(library: Library, named: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the GPU generations to build for: those named, or the GPU here where the library would leave it out."""
    local = local_generation()
    if named or library == "tensorrt" or local is None or local in generations_by_default(import_tensorrt(library)):
        return named
    return (local,)


def _library_for(local: int | None, compute_capabilities: tuple[int, ...]) -> Library:
    """Returns TensorRT if the GPU here is what to build for and TensorRT loads, else TensorRT-RTX if that is there."""
    if local is not None and not compute_capabilities and _loads("tensorrt"):
        return "tensorrt"
    if not _loads("tensorrt_rtx"):
        raise NotInstalledError(
            "--trt: no engine library here. For engines ahead of time, without a GPU: pip install 'edc[rtx]'. "
            "For this machine's own GPU: pip install 'edc[trt]'"
        )
    return "tensorrt_rtx"


def _loads(library: Library) -> bool:
    try:
        import_tensorrt(library)
    except NotInstalledError:
        return False
    except EngineError:
        return library == "tensorrt_rtx"  # there is nothing else to turn to, so its reason is to be seen
    return True


def build_engines(
    written: list[Written],
    role: str,
    choice: EngineChoice,
    *,
    reference: nn.Module,
    samples: Samples,
    how: Preprocessing,
    max_batch: int,
    max_drop: float,
    judged: Judged,
) -> list[Built]:
    """Builds an engine beside each file that TensorRT reads (int8-cpu is not for it), each in a block of `judged`.

    An engine for the GPU here is run on real images and compared with `reference`. Returns those that passed: one fails
    that cannot be built or run, that does not compute what the network computes, or loses more than `max_drop`.

    Args:
        how: the input that the files take, and the engines with them.
        max_drop: accuracy that an int8 engine may lose on validation images, as a share of 1.
    """
    built = []
    for file in written:
        if file.precision == "int8-cpu":
            continue
        path = file.path.with_suffix(SUFFIXES[choice.library])
        with judged(path, file.precision):
            built.append(
                _built(
                    file,
                    path,
                    role,
                    choice,
                    float_file=written[0].path,
                    reference=reference,
                    samples=samples,
                    how=how,
                    max_drop=max_drop,
                    max_batch=max_batch,
                )
            )
    return built


def _built(
    file: Written,
    path: Path,
    role: str,
    choice: EngineChoice,
    *,
    float_file: Path,
    reference: nn.Module,
    samples: Samples,
    how: Preprocessing,
    max_batch: int,
    max_drop: float,
) -> Built:
    """Builds the engine of one file, and runs it if it is for the GPU here."""
    engine = engine_from_onnx(
        file.path,
        path,
        library=choice.library,
        max_batch=max_batch,
        compute_capabilities=choice.compute_capabilities,
        strict_fp32=choice.strict_fp32,
        timing_cache=choice.timing_cache,
    )
    notes = {
        "library": f"{engine.library} {engine.library_version}",
        "built_from": file.path.name,
        "run": "run here",
        "sidecar": sidecar_path(path).name,
        "build_seconds": f"{engine.build_seconds:.2f}",
    }
    parity = None
    if reason := why_not_here(engine):
        notes["run"] = f"built and not run here: no parity figures ({reason})"
    else:
        runner = EngineRunner(path, engine)
        parity = _parity_on_gpu(runner, file.precision, reference, samples.parity, how)
        if file.precision == "int8-trt":
            notes["validation"] = _accuracy_on_gpu(runner, float_file, samples, how, max_drop=max_drop)
        runner.keep_compiled()
    return Built(path, role, file.precision, engine, parity, notes)


def _parity_on_gpu(
    runner: EngineRunner, precision: Precision, reference: nn.Module, images: Floats, how: Preprocessing
) -> ParityFigures:
    """Runs the engine at batch 1, an odd size and the maximum; raises `ParityError` if it is out of tolerance."""
    engine, fed = runner.engine, as_fed(images, how)
    gate, what = _gate(engine, precision), str(runner.path)
    wanted = network_outputs(reference, images, batch_size=engine.max_batch)
    sizes = batch_sizes_for(engine.max_batch)
    for size in sizes[:-1]:
        few = 8 * size
        got = engine_outputs(runner, fed[:few], batch_size=size)
        check_parity(compare_outputs(wanted[:few], got, tie=2e-3), precision=gate, what=what)
    got = engine_outputs(runner, fed, batch_size=engine.max_batch)
    parity = compare_outputs(wanted, got, tie=2e-3, batch_sizes=sizes)
    check_parity(parity, precision=gate, what=what)
    return ParityFigures(**asdict(parity))


def _accuracy_on_gpu(
    runner: EngineRunner, source: Path, samples: Samples, how: Preprocessing, *, max_drop: float
) -> str:
    """Returns what the engine loses on validation images against the fp32 file `source`, in words.

    Raises:
        ParityError: more than `max_drop`.
    """
    images, labels = as_fed(samples.validation, how), samples.validation_labels
    reference = onnx_outputs(ort_session(source), images, batch_size=64).argmax(1) == labels
    got = engine_outputs(runner, images, batch_size=runner.engine.max_batch).argmax(1) == labels
    accuracy = paired_accuracy_drop(reference, got)
    said = (
        f"drop {100 * accuracy.drop:.2f} points on {accuracy.num_images} images "
        f"(lost {accuracy.num_lost}, gained {accuracy.num_gained}, McNemar p {accuracy.p_value:.3g})"
    )
    if not accuracy.within(max_drop):
        raise ParityError(f"{runner.path}: {said}, more than the {100 * max_drop:g} that --max-drop allows")
    return said


def _gate(engine: Engine, precision: Precision) -> Precision:
    """Returns by which rule an engine is judged: TF32 has the ten bits of mantissa that fp16 has."""
    return "fp16" if precision == "fp32" and engine.tf32 else precision
