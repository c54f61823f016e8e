"""TensorRT and TensorRT-RTX engines from ONNX files, through the parts of their API that are the same.

Both take the precision from the graph, so there is nothing to choose here but the batch sizes, the target GPUs and
whether float32 means float32: both compute it in TF32 (ten bits of mantissa) unless told not to. TensorRT builds for
the GPU it runs on; TensorRT-RTX builds for any list of GPU generations, without a GPU.
"""

import dataclasses
import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edc.errors import EngineError, NotInstalledError
from edc.system.files import sha256_of, write_atomically

__all__ = ["Engine", "Library", "engine_from_onnx", "import_tensorrt", "load_engine", "require_targets", "sidecar_path"]

Library = Literal["tensorrt", "tensorrt_rtx"]

_INSTALL = {
    "tensorrt": "pip install 'edc[trt]' (needs the vendor's package index)",
    "tensorrt_rtx": "pip install 'edc[rtx]'",
}


@dataclass(frozen=True)
class Engine:
    """What an engine was built from and for; the sidecar JSON beside it says the same."""

    library: Library
    library_version: str
    onnx_sha256: str
    sha256: str
    bytes: int
    input_name: str
    output_name: str
    min_batch: int
    opt_batch: int
    max_batch: int
    compute_capabilities: tuple[int, ...]  # empty: the library's own choice
    tf32: bool
    build_seconds: float


def import_tensorrt(library: Library) -> Any:
    """Returns the module.

    Raises:
        NotInstalledError: with the line that installs it.
        EngineError: it is installed and does not load (a missing driver or shared library).
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{library} is not installed: {_INSTALL[library]}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{library} is installed but does not load: {error}") from error


def engine_from_onnx(
    source: Path,
    path: Path,
    *,
    library: Library,
    max_batch: int,
    opt_batch: int | None = None,
    min_batch: int = 1,
    compute_capabilities: Sequence[int] = (),
    strict_fp32: bool = True,
    timing_cache: Path | None = None,
) -> Engine:
    """Writes an engine built from the ONNX file `source` to `path`, its description beside it, and return that.

    Args:
        opt_batch: the batch size that kernels are chosen for; by default the largest.
        compute_capabilities: GPU generations by number (75, 86, 120); TensorRT-RTX only. Empty: the library's
            own choice, which for TensorRT is the GPU here.
        strict_fp32: compute float32 parts of the graph in float32 rather than TF32.
        timing_cache: a file that makes the next build of a similar network faster; TensorRT only.

    Raises:
        NotInstalledError: the library is not installed.
        EngineError: with the library's own reason.
    """
    opt_batch = max_batch if opt_batch is None else opt_batch
    if not 1 <= min_batch <= opt_batch <= max_batch:
        raise EngineError(f"batch sizes: {min_batch} <= {opt_batch} <= {max_batch} does not hold")
    trt = import_tensorrt(library)
    started = time.perf_counter()
    plan, input_name, output_name = _build(
        trt,
        source,
        batches=(min_batch, opt_batch, max_batch),
        compute_capabilities=compute_capabilities,
        strict_fp32=strict_fp32,
        timing_cache=None if _is_rtx(trt) else timing_cache,
    )
    with write_atomically(path) as temporary:
        temporary.write_bytes(plan)
    engine = Engine(
        library=library,
        library_version=trt.__version__,
        onnx_sha256=sha256_of(source),
        sha256=sha256_of(path),
        bytes=path.stat().st_size,
        input_name=input_name,
        output_name=output_name,
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        compute_capabilities=tuple(compute_capabilities),
        tf32=not strict_fp32,
        build_seconds=time.perf_counter() - started,
    )
    with write_atomically(sidecar_path(path)) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(engine), indent=2) + "\n", encoding="utf-8")
    return engine


def require_targets(library: Library, compute_capabilities: Sequence[int]) -> None:
    """Raises `EngineError` if engines cannot be built for these GPUs; asked before anything is written."""
    if compute_capabilities:
        _known_targets(import_tensorrt(library), compute_capabilities)


def sidecar_path(path: Path) -> Path:
    """Returns where an engine's description is. It is a file of its own so that the engine loads in any other tool."""
    return path.with_name(path.name + ".json")


def load_engine(path: Path, *, sha256: str, library: Library) -> tuple[Any, Any]:
    """Returns (runtime, engine) deserialised from `path`; keep the runtime for as long as the engine.

    Args:
        sha256: of the file, from the manifest: an engine can hold code, and only one's own is to be loaded.

    Raises:
        EngineError: the digest differs, or the engine is for another GPU or library version.
    """
    if sha256_of(path) != sha256:
        raise EngineError(f"{path}: SHA-256 differs from the manifest's; an engine that was changed is not loaded")
    trt = import_tensorrt(library)
    log = _collecting_logger(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(path.read_bytes()) if runtime is not None else None
    if engine is None:  # never raised, only logged
        raise EngineError(
            f"{path}: {library} {trt.__version__} cannot load it: {log.reason()}; "
            "an engine is bound to a GPU and an exact version: build it again here"
        )
    return runtime, engine


def _build(
    trt: Any,
    source: Path,
    *,
    batches: tuple[int, int, int],
    compute_capabilities: Sequence[int],
    strict_fp32: bool,
    timing_cache: Path | None,
) -> tuple[bytes, str, str]:
    """Returns the engine's bytes and the names of its input and its output."""
    log = _collecting_logger(trt)
    builder = trt.Builder(log)
    if builder is None:
        raise EngineError(f"{trt.__name__}: no builder: {log.reason()}")
    network, _parser = _parse(trt, builder, source, log)
    config = builder.create_builder_config()
    _set_profile(builder, config, network, batches)
    _set_targets(trt, config, compute_capabilities)
    if strict_fp32:
        config.clear_flag(trt.BuilderFlag.TF32)
    else:
        config.set_flag(trt.BuilderFlag.TF32)
    cache = None if timing_cache is None else _use_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # never raised, only logged
        raise EngineError(f"{source}: {trt.__name__} {trt.__version__} cannot build an engine: {log.reason()}")
    if cache is not None and timing_cache is not None:
        with write_atomically(timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return bytes(plan), network.get_input(0).name, network.get_output(0).name


def _is_rtx(trt: Any) -> bool:
    return hasattr(trt, "ComputeCapability")


def _collecting_logger(trt: Any) -> Any:
    """Returns a logger that keeps warnings and errors: the library returns None on failure and says why only here."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split())[:300])

        def reason(self) -> str:
            return " | ".join(self.errors[:3]) or "no reason given"

    return Collector()


def _parse(trt: Any, builder: Any, source: Path, log: Any) -> tuple[Any, Any]:
    """Returns the network that the ONNX file describes, and the parser, which owns the weights that it refers to."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(source)):
        reasons = [" ".join(parser.get_error(i).desc().split()) for i in range(parser.num_errors)] or [log.reason()]
        raise EngineError(
            f"{source}: {trt.__name__} {trt.__version__} cannot read the graph: {' | '.join(reasons[:3])}"
        )
    return network, parser


def _set_profile(builder: Any, config: Any, network: Any, batches: tuple[int, int, int]) -> None:
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    shape = tuple(image.shape)[1:]
    profile.set_shape(image.name, *((batch, *shape) for batch in batches))
    config.add_optimization_profile(profile)


def _set_targets(trt: Any, config: Any, compute_capabilities: Sequence[int]) -> None:
    if not compute_capabilities:
        return
    known = _known_targets(trt, compute_capabilities)
    config.num_compute_capabilities = len(compute_capabilities)
    for i, number in enumerate(compute_capabilities):
        config.set_compute_capability(known[str(number)], i)


def _known_targets(trt: Any, compute_capabilities: Sequence[int]) -> dict[str, Any]:
    """Returns the library's GPU generations by number; raises `EngineError` if one that is asked for is not there."""
    if not _is_rtx(trt):
        raise EngineError("compute_capabilities: TensorRT builds for the GPU it runs on; use tensorrt_rtx to choose")
    known = {name.removeprefix("SM"): value for name, value in trt.ComputeCapability.__members__.items()}
    unknown = [number for number in compute_capabilities if str(number) not in known]
    if unknown:
        choices = ", ".join(sorted((name for name in known if name.isdigit()), key=int))
        raise EngineError(f"compute_capabilities: {unknown[0]} is not one of {choices}")
    return known


def _use_timing_cache(config: Any, path: Path) -> Any:
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, False)
    return cache
