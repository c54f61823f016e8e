"""Run an engine on a GPU. Kept thin: it is the one part of edc that a machine without a GPU cannot test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edc.deploy.engine.from_onnx import Engine, load_engine
from edc.errors import EngineError

__all__ = ["EngineRunner", "engine_outputs", "require_batch"]


class EngineRunner:
    """The engine at `path`, on the current GPU.

    Raises:
        EngineError: the engine was changed, is for another GPU or library version, or there is no GPU.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        self.path, self.engine = path, engine
        self._runtime, self._loaded = load_engine(path, sha256=engine.sha256, library=engine.library)
        if not torch.cuda.is_available():
            raise EngineError(f"{path}: torch {torch.__version__} sees no CUDA device, and its tensors are the buffers")

    def bind(self, images: Tensor) -> tuple[Tensor, Callable[[], None]]:
        """Returns the tensor (N, K) that logits will be written to, and what asks for it on torch's current stream.

        A context of its own for each binding: a CUDA graph stays valid only as long as its context keeps its shape.

        Args:
            images: the GPU's tensor (N, C, H, W) that each run reads; the caller keeps both tensors until it is done.

        Raises:
            EngineError: the engine was built for other batches or shapes, or the GPU has no memory left.
        """
        require_batch(self.path, self.engine, len(images))
        context = self._context()
        if not context.set_input_shape(self.engine.input_name, tuple(images.shape)):
            raise EngineError(f"{self.path}: does not take images {tuple(images.shape)}")
        logits = torch.empty(tuple(context.get_tensor_shape(self.engine.output_name)), device=images.device)
        context.set_tensor_address(self.engine.input_name, images.data_ptr())
        context.set_tensor_address(self.engine.output_name, logits.data_ptr())

        def enqueue() -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise EngineError(f"{self.path}: execution failed at batch {len(images)}")

        return logits, enqueue

    def _context(self) -> Any:
        config = self._loaded.create_runtime_config() if self.engine.library == "tensorrt_rtx" else None
        if config is None:
            context = self._loaded.create_execution_context()
        else:
            # Left alone it runs slower kernels until those for a new shape are compiled, in the background.
            strategies = type(config.dynamic_shapes_kernel_specialization_strategy)
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            context = self._loaded.create_execution_context(config)
        if context is None:  # never raised
            raise EngineError(f"{self.path}: no execution context; is there enough GPU memory?")
        return context


def require_batch(path: Path, engine: Engine, batch: int) -> None:
    """Raises `EngineError` if the engine was not built for this batch size."""
    if not engine.min_batch <= batch <= engine.max_batch:
        raise EngineError(
            f"{path}: does not take batch {batch}, built for {engine.min_batch} to {engine.max_batch}; "
            f"export again with --max-batch {batch}"
        )


def engine_outputs(path: Path, engine: Engine, images: NDArray[np.float32], *, batch_size: int) -> NDArray[np.float32]:
    """Returns the logits (N, K) of images (N, C, H, W), computed by the engine at `path` on the current GPU.

    Raises:
        EngineError: the engine is for another GPU or library version, or refuses a batch.
    """
    runner = EngineRunner(path, engine)
    outputs = []
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).cuda()
            logits, enqueue = runner.bind(batch)
            enqueue()
            outputs.append(logits.cpu().numpy())  # waits for the stream
    return np.concatenate(outputs)
