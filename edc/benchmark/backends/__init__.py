"""The backends by name. Each is imported only where it runs: in its own worker process."""

import os
import shutil
from importlib.util import find_spec
from typing import Literal, get_args

from edc.benchmark.backends.contract import Backend
from edc.errors import NotInstalledError
from edc.subject import PrecisionClass
from edc.system.gpu import gpus_now, has_gpu_file
from edc.system.machine import cpu_has_bfloat16

__all__ = [
    "BACKENDS",
    "ON_GPU",
    "BackendName",
    "available_backends",
    "computes_in",
    "in_fp32",
    "is_installed",
    "needs_run",
    "open_backend",
    "require_installed",
]

BackendName = Literal[
    "torch",
    "torch-compile",
    "onnxruntime",
    "openvino",
    "openvino-bf16",
    "torch-cuda",
    "torch-cuda-tf32",
    "onnxruntime-cuda",
    "tensorrt",
    "tensorrt-rtx",
]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

_MODULES: dict[BackendName, str] = {
    "torch": "torch",
    "torch-compile": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
    "torch-cuda": "torch",
    "torch-cuda-tf32": "torch",
    "onnxruntime-cuda": "onnxruntime",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
}
_PINNED: dict[BackendName, tuple[PrecisionClass, BackendName]] = {
    "openvino-bf16": ("bf16", "openvino"),
    "torch-cuda-tf32": ("tf32", "torch-cuda"),
}
"""Backends with a precision of their own whatever the file says, and the one that keeps the file's precision."""
_INSTALL = {
    "onnxruntime": "pip install onnxruntime-gpu",  # the wheel for both: it needs no GPU for the CPU provider
    "openvino": "pip install 'edc[openvino]'",
    "tensorrt": "pip install 'edc[trt]' (needs an NVIDIA GPU and the vendor's package index)",
    "tensorrt_rtx": "pip install 'edc[rtx]'",
}
ON_GPU = ("torch-cuda", "torch-cuda-tf32", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def available_backends(*, quick: bool = False) -> tuple[BackendName, ...]:
    """Returns every backend that is installed and that this machine can run, as far as is known without importing it.

    Args:
        quick: leave out torch.compile, which takes minutes before it runs.
    """
    has_gpu = bool(gpus_now()) or has_gpu_file()
    fits = {
        "torch-compile": not quick and _has_compiler(),
        "openvino-bf16": _has_bfloat16(),
        **dict.fromkeys(ON_GPU, has_gpu),
        "torch-cuda-tf32": False,  # where somebody names it
    }
    return tuple(name for name in BACKENDS if fits.get(name, True) and is_installed(name))


def needs_run(name: BackendName) -> bool:
    """Returns whether the backend takes networks of a run, rather than files of an artifact."""
    return _MODULES[name] == "torch"


def computes_in(name: BackendName, precision: PrecisionClass) -> PrecisionClass:
    """Returns in which precision the backend runs a file of `precision`."""
    return _PINNED[name][0] if name in _PINNED else precision


def in_fp32(name: BackendName) -> BackendName:
    """Returns the backend that runs the same files in fp32."""
    return _PINNED[name][1] if name in _PINNED else name


def is_installed(name: BackendName) -> bool:
    """Returns whether the backend's library can be found, without importing it."""
    try:
        return find_spec(_MODULES[name]) is not None
    except ValueError:  # somebody put None where the module would be
        return False


def require_installed(name: BackendName) -> None:
    """Raises `NotInstalledError` with the line that installs the backend, if it is absent."""
    if not is_installed(name):
        raise not_installed(name)


def not_installed(name: BackendName) -> NotInstalledError:
    """Returns the error that says how to install a backend."""
    module = _MODULES[name]
    return NotInstalledError(
        f"backend {name}: is not installed; install it with: {_INSTALL.get(module, f'pip install {module}')}"
    )


def open_backend(name: BackendName, *, threads: int) -> Backend:
    """Returns the backend with its library imported and set to `threads`.

    Raises:
        NotInstalledError: it is absent.
        EngineError: it is an engine library that does not load.
    """
    try:
        return _opened(name, threads)
    except ModuleNotFoundError as error:
        if error.name != _MODULES[name]:
            raise
        raise not_installed(name) from None


def _opened(name: BackendName, threads: int) -> Backend:  # noqa: PLR0911 - a table with imports
    match name:
        case "torch":
            from edc.benchmark.backends.torch_eager import TorchEager

            return TorchEager(threads=threads)
        case "torch-compile":
            from edc.benchmark.backends.torch_compiled import TorchCompiled

            return TorchCompiled(threads=threads)
        case "torch-cuda":
            from edc.benchmark.backends.torch_cuda import TorchCuda

            return TorchCuda(threads=threads)
        case "torch-cuda-tf32":
            from edc.benchmark.backends.torch_cuda import TorchCuda

            return TorchCuda(threads=threads, float32="tf32")
        case "onnxruntime":
            from edc.benchmark.backends.onnxruntime_cpu import OnnxRuntimeCpu

            return OnnxRuntimeCpu(threads=threads)
        case "onnxruntime-cuda":
            from edc.benchmark.backends.onnxruntime_cuda import OnnxRuntimeCuda

            return OnnxRuntimeCuda(threads=threads)
        case "openvino":
            from edc.benchmark.backends.openvino_cpu import OpenVinoCpu

            return OpenVinoCpu(threads=threads)
        case "openvino-bf16":
            from edc.benchmark.backends.openvino_bf16 import OpenVinoBf16

            return OpenVinoBf16(threads=threads)
        case "tensorrt":
            from edc.benchmark.backends.tensorrt_engines import TensorRtEngines

            return TensorRtEngines(threads=threads, library="tensorrt")
        case "tensorrt-rtx":
            from edc.benchmark.backends.tensorrt_engines import TensorRtEngines

            return TensorRtEngines(threads=threads, library="tensorrt_rtx")


def _has_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "g++", "clang++"))


def _has_bfloat16() -> bool:
    """Returns whether the CPU computes in bfloat16, where the system says so; OpenVINO is asked again when it loads."""
    return cpu_has_bfloat16() is True
