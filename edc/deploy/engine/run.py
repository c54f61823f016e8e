"""Run an engine on a GPU."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edc.deploy.artifact.feed import Fed
from edc.deploy.engine.description import Engine
from edc.deploy.engine.library import collecting_logger, generations, generations_by_default, import_tensorrt, made
from edc.errors import DiskError, EngineError, first_line
from edc.system.files import sha256_of, user_cache, write_atomically

__all__ = [
    "DEVICE",
    "EngineRunner",
    "engine_outputs",
    "load_engine",
    "local_generation",
    "require_batch",
    "why_not_here",
]

DEVICE = torch.device("cuda")
"""Where the buffers of engines are."""

MOST_KERNEL_BYTES = 1 << 30
"""A larger file is not what was written for an engine."""


def local_generation() -> int | None:
    """Returns the compute capability of the current GPU as a number (86 for 8.6); None: torch sees no GPU."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def why_not_here(engine: Engine) -> str | None:
    """Returns why the engine cannot run on the GPU of this machine; None: it can, as far as its description says."""
    local = local_generation()
    if local is None:
        return "torch sees no CUDA device here"
    if engine.library == "tensorrt":  # it is for the GPU that it was built on, which only loading it can tell
        return None
    targets = engine.compute_capabilities or generations_by_default(import_tensorrt("tensorrt_rtx"))
    if local in targets:
        return None
    return f"built for SM {', '.join(map(str, sorted(targets)))}, the GPU here is SM {local}"


def load_engine(path: Path, engine: Engine) -> tuple[Any, Any]:
    """Returns (runtime, engine) deserialised from `path`; keep the runtime for as long as the engine.

    Args:
        engine: its description, with the digest from the manifest: an engine can hold code, and only one's own is to
            be loaded.

    Raises:
        EngineError: the digest differs, or the engine is for another GPU or library version.
    """
    if sha256_of(path) != engine.sha256:
        raise EngineError(f"{path}: SHA-256 differs from the manifest's; an engine that was changed is not loaded")
    trt = import_tensorrt(engine.library)
    cannot = f"{path}: {engine.library} {trt.__version__} cannot load it"
    built_by = "" if engine.library_version == trt.__version__ else f" (it was built by {engine.library_version})"
    advice = "an engine is bound to a GPU and an exact version: build it again here with edc export --trt"
    log = collecting_logger(trt)
    try:
        runtime = made(trt.Runtime, log, what=cannot)
    except EngineError as error:
        raise EngineError(f"{error}; {advice}") from error
    loaded = runtime.deserialize_cuda_engine(path.read_bytes())
    if loaded is None:  # never raised, only logged
        raise EngineError(f"{cannot}: {log.reason()}{built_by}; {advice}")
    return runtime, loaded


class EngineRunner:
    """The engine at `path`, on the current GPU.

    Raises:
        EngineError: the engine was changed, is for another GPU or library version, or there is no GPU.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path, self.engine = path, engine
        local = local_generation()
        if local is not None and (reason := why_not_here(engine)):
            knows = local in generations(import_tensorrt("tensorrt_rtx"))
            how = f"--sm {local}" if knows else "--engine-library tensorrt"
            raise EngineError(f"{path}: {reason}; build it again with: edc export --trt {how}")
        self._runtime, self._loaded = load_engine(path, engine)
        if local is None:
            raise EngineError(f"{path}: torch {torch.__version__} sees no CUDA device, and its tensors are the buffers")
        self._cache: Any = None
        """TensorRT-RTX compiles kernels when a context first runs a shape; all contexts share what was compiled."""
        self._kept = b""
        """What of it is on disk."""

    @property
    def cache_path(self) -> Path:
        """Where TensorRT-RTX's compiled kernels are kept, for this engine alone, by its digest.

        Not in the artifact: they are of this machine, no manifest could list them, and code that came with an artifact
        without a digest must not be loaded.
        """
        return user_cache("kernels") / self.engine.sha256

    def keep_compiled(self) -> None:
        """Writes the kernels that TensorRT-RTX compiled for this engine, if there are new ones.

        Where nothing can be written, the next process compiles them again; nothing else is lost.
        """
        compiled = b"" if self._cache is None else bytes(self._cache.serialize() or b"")
        if compiled and compiled != self._kept:
            with suppress(OSError, DiskError), write_atomically(self.cache_path) as temporary:
                temporary.write_bytes(compiled)
                self._kept = compiled

    def bind(self, images: Tensor, *, cuda_graph: bool = False) -> tuple[Tensor, Callable[[], None]]:
        """Returns the tensor (N, K) that logits will be written to, and what asks for it on torch's current stream.

        A context of its own for each binding: a CUDA graph stays valid only as long as its context keeps its shape.
        What is returned keeps alive all that a graph captured from it refers to: context, its configuration, engine,
        runtime and tensors.

        Args:
            images: the GPU's tensor, as the engine takes it, that each run reads.
            cuda_graph: let TensorRT-RTX record a graph of its own, as it recommends: it knows when the kernels of a
                shape are compiled. TensorRT has no such option, so there the caller captures one.

        Raises:
            EngineError: the engine was built for other batches or inputs, or the GPU has no memory left.
        """
        require_batch(self.path, self.engine, len(images))
        self._require_tensors(images)
        context, config = self._context(cuda_graph=cuda_graph)
        stream = torch.cuda.current_stream()
        profile = self.engine.profile_for(len(images))
        if self.engine.num_profiles > 1:
            if not context.set_optimization_profile_async(profile, stream.cuda_stream):
                raise EngineError(f"{self.path}: has no optimisation profile {profile}; export again")
            stream.synchronize()  # the switch may copy, and a binding may be run on another stream
        if not context.set_input_shape(self.engine.input_name, tuple(images.shape)):
            raise EngineError(f"{self.path}: does not take images {tuple(images.shape)}")
        logits = torch.empty(tuple(context.get_tensor_shape(self.engine.output_name)), device=images.device)
        for name, tensor in ((self.engine.input_name, images), (self.engine.output_name, logits)):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f"{self.path}: does not take the address of {name}")

        def enqueue(_kept: Any = config) -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise EngineError(f"{self.path}: execution failed at batch {len(images)}")

        return logits, enqueue

    def _require_tensors(self, images: Tensor) -> None:
        """Raises `EngineError` unless the engine reads what `images` is, and writes logits (N, K) in float32."""
        names = [self._loaded.get_tensor_name(i) for i in range(self._loaded.num_io_tensors)]
        for kind, name in (("input", self.engine.input_name), ("output", self.engine.output_name)):
            if name not in names:
                raise EngineError(f"{self.path}: has no {kind} {name}, but {', '.join(names)}; export again")
        name, wanted = self.engine.input_name, _shape((-1, *images.shape[1:]))
        dtype = str(images.dtype).removeprefix("torch.")
        if (found := self._tensor(name)) != f"{dtype} {wanted}":
            raise EngineError(
                f"{self.path}: its input {name} is {found}, the manifest says {dtype} {wanted}; export again"
            )
        name = self.engine.output_name
        if not (found := self._tensor(name)).startswith("float32 (N, ") or found.count(",") != 1:
            raise EngineError(
                f"{self.path}: its output {name} is {found}, expected float32 logits (N, classes); export again"
            )

    def _tensor(self, name: str) -> str:
        """Returns the type and the shape of the engine's tensor `name` in words."""
        kind = self._loaded.get_tensor_dtype(name).name
        dtype = {"FLOAT": "float32", "HALF": "float16"}.get(kind, kind.lower())
        return f"{dtype} {_shape(self._loaded.get_tensor_shape(name))}"

    def _context(self, *, cuda_graph: bool) -> tuple[Any, Any]:
        """Returns an execution context and what it was made with, which has to live as long: nobody says otherwise."""
        config = self._runtime_config(cuda_graph=cuda_graph) if self.engine.library == "tensorrt_rtx" else None
        context = self._loaded.create_execution_context(*([] if config is None else [config]))
        if context is None:  # never raised
            raise EngineError(f"{self.path}: no execution context; {_free_memory()}")
        return context, config

    def _runtime_config(self, *, cuda_graph: bool) -> Any:
        config = self._loaded.create_runtime_config()
        # Left alone it runs slower kernels until those for a new shape are compiled, in the background.
        specialization = type(config.dynamic_shapes_kernel_specialization_strategy)
        config.dynamic_shapes_kernel_specialization_strategy = specialization.EAGER
        if cuda_graph:
            config.cuda_graph_strategy = type(config.cuda_graph_strategy).WHOLE_GRAPH_CAPTURE
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._cache is not None and (kept := self._kept_on_disk()) and self._cache.deserialize(kept):
                self._kept = kept  # else the library refused it (another GPU, driver or version), and compiles anew
        if self._cache is not None:
            config.set_runtime_cache(self._cache)
        return config

    def _kept_on_disk(self) -> bytes:
        with suppress(OSError):
            if 0 < self.cache_path.stat().st_size <= MOST_KERNEL_BYTES:
                return self.cache_path.read_bytes()
        return b""


def _shape(shape: Any) -> str:
    return f"({', '.join('N' if size == -1 else str(size) for size in tuple(shape))})"


def _free_memory() -> str:
    """Returns what the GPU has left, for a message."""
    free, total = torch.cuda.mem_get_info()
    return (
        f"the GPU has {free / 2**20:.0f} of {total / 2**20:.0f} MiB free: end other programs on it, or use a smaller "
        "--max-batch"
    )


def require_batch(path: Path, engine: Engine, batch: int) -> None:
    """Raises `EngineError` if the engine was not built for this batch size."""
    if not engine.min_batch <= batch <= engine.max_batch:
        raise EngineError(
            f"{path}: does not take batch {batch}, built for {engine.min_batch} to {engine.max_batch}; "
            f"export again with --max-batch {batch}"
        )


def engine_outputs(runner: EngineRunner, images: Fed, *, batch_size: int) -> NDArray[np.float32]:
    """Returns the logits (N, K) of images as the engine takes them (`as_fed`), computed on the current GPU.

    One binding for the batch size, and one more if the last batch is smaller.

    Raises:
        EngineError: the engine refuses a batch, does not take such images, or the GPU fails.
    """
    try:
        return _outputs(runner, images, batch_size=batch_size)
    except RuntimeError as error:  # torch's words for a GPU without memory, or with an error of its own
        raise EngineError(f"{runner.path}: cannot be run here: {first_line(error)}") from error


def _outputs(runner: EngineRunner, images: Fed, *, batch_size: int) -> NDArray[np.float32]:
    outputs = []
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        bound: tuple[Tensor, Tensor, Callable[[], None]] | None = None
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            if bound is None or len(bound[0]) != len(batch):
                on_device = torch.empty_like(batch, device=DEVICE)
                bound = (on_device, *runner.bind(on_device))
            on_device, logits, enqueue = bound
            on_device.copy_(batch)
            enqueue()
            outputs.append(logits.cpu().numpy().copy())  # waits for the stream
    return np.concatenate(outputs)
