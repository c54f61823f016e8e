"""TensorRT and TensorRT-RTX engines from ONNX files, through the parts of their API that are the same.

Both take the precision from the graph, so there is nothing to choose here but the batch sizes, the target GPUs and
whether float32 means float32: both compute it in TF32 (ten bits of mantissa) unless told not to. TensorRT builds for
the GPU it runs on; TensorRT-RTX builds for any list of GPU generations, without a GPU.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edc.deploy.engine.description import Engine, write_description
from edc.deploy.engine.library import Library, collecting_logger, generations, import_tensorrt, is_rtx, made
from edc.errors import EngineError
from edc.system.files import sha256_of, write_atomically

__all__ = ["engine_from_onnx"]

Batches = tuple[int, int, int]
"""The smallest, the one that kernels are chosen for, and the largest."""


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

    It has two optimisation profiles: kernels are chosen for batch 1, and again for the larger batches.

    Args:
        opt_batch: the batch size that kernels for more than one image are chosen for; by default the largest.
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
    profiles: list[Batches] = [(min_batch, opt_batch, max_batch)]
    if min_batch == 1 < opt_batch:
        profiles.insert(0, (1, 1, 1))
    plan, input_name, output_name = _build(
        trt,
        source,
        profiles=profiles,
        compute_capabilities=compute_capabilities,
        strict_fp32=strict_fp32,
        timing_cache=None if is_rtx(trt) else timing_cache,
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
        num_profiles=len(profiles),
    )
    write_description(engine, path)
    return engine


def _build(
    trt: Any,
    source: Path,
    *,
    profiles: Sequence[Batches],
    compute_capabilities: Sequence[int],
    strict_fp32: bool,
    timing_cache: Path | None,
) -> tuple[bytes, str, str]:
    """Returns the engine's bytes and the names of its input and its output."""
    log = collecting_logger(trt)
    builder = made(trt.Builder, log, what=f"{source}: {trt.__name__} {trt.__version__} has no builder here")
    network, _parser = _parse(trt, builder, source, log)
    config = builder.create_builder_config()
    for batches in profiles:
        _add_profile(builder, config, network, batches)
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


def _add_profile(builder: Any, config: Any, network: Any, batches: Batches) -> None:
    profile = builder.create_optimization_profile()
    image = network.get_input(0)
    shape = tuple(image.shape)[1:]
    profile.set_shape(image.name, *((batch, *shape) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"batch sizes: {batches} were not accepted for images {shape}")


def _set_targets(trt: Any, config: Any, compute_capabilities: Sequence[int]) -> None:
    if not compute_capabilities:
        return
    if not is_rtx(trt):
        raise EngineError("compute_capabilities: TensorRT builds for the GPU it runs on; use tensorrt_rtx to choose")
    known = generations(trt)
    unknown = [number for number in compute_capabilities if number not in known]
    if unknown:
        raise EngineError(f"compute_capabilities: {unknown[0]} is not one of {', '.join(map(str, sorted(known)))}")
    config.num_compute_capabilities = len(compute_capabilities)
    for i, number in enumerate(compute_capabilities):
        if not config.set_compute_capability(known[number], i):
            raise EngineError(f"compute_capabilities: {number} was not accepted by {trt.__name__} {trt.__version__}")


def _use_timing_cache(config: Any, path: Path) -> Any:
    """Returns the timing cache that the build will use, or None if the library makes none.

    A file that is damaged, or was written on another GPU or by another version, is not used and is written anew.
    """
    for content in (path.read_bytes() if path.is_file() else b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None
