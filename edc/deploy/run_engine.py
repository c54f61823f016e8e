"""Run an engine on a GPU. Kept thin: it is the one part of edc that a machine without a GPU cannot test."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edc.deploy.engine_from_onnx import Engine, load_engine
from edc.errors import EngineError

__all__ = ["engine_outputs"]


def engine_outputs(path: Path, engine: Engine, images: NDArray[np.float32], *, batch_size: int) -> NDArray[np.float32]:
    """Returns the logits (N, K) of images (N, C, H, W), computed by the engine at `path` on the current GPU.

    Raises:
        EngineError: the engine is for another GPU or library version, or refuses a batch.
    """
    _runtime, loaded = load_engine(path, sha256=engine.sha256, library=engine.library)
    context = loaded.create_execution_context()
    if context is None:  # never raised
        raise EngineError(f"{path}: no execution context; is there enough GPU memory?")
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    outputs = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).cuda()
        if not context.set_input_shape(engine.input_name, tuple(batch.shape)):
            raise EngineError(f"{path}: refuses batch {len(batch)}, built for {engine.min_batch} to {engine.max_batch}")
        result = torch.empty(tuple(context.get_tensor_shape(engine.output_name)), device=batch.device)
        context.set_tensor_address(engine.input_name, batch.data_ptr())
        context.set_tensor_address(engine.output_name, result.data_ptr())
        torch.cuda.current_stream().synchronize()  # the copy in is on torch's stream, the engine on another
        if not context.execute_async_v3(stream.cuda_stream):
            raise EngineError(f"{path}: execution failed at batch {len(batch)}")
        stream.synchronize()
        outputs.append(result.cpu().numpy())
    return np.concatenate(outputs)
