"""The backends by name. Each is imported only where it runs: in its own worker process."""

from importlib.util import find_spec
from typing import Literal, get_args

from edc.bench.backends.contract import Backend
from edc.errors import NotInstalledError

__all__ = ["BACKENDS", "BackendName", "is_installed", "open_backend", "require_installed"]

BackendName = Literal["torch", "onnxruntime", "openvino"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)

_INSTALL = {"openvino": "pip install 'edc[openvino]'"}


def is_installed(name: BackendName) -> bool:
    """Returns whether the backend's library can be found, without importing it."""
    return find_spec(name) is not None


def require_installed(name: BackendName) -> None:
    """Raises `NotInstalledError` with the line that installs the backend, if it is absent."""
    if not is_installed(name):
        raise not_installed(name)


def not_installed(name: BackendName) -> NotInstalledError:
    """Returns the error that says how to install a backend."""
    return NotInstalledError(
        f"backend {name}: is not installed; install it with: {_INSTALL.get(name, f'pip install {name}')}"
    )


def open_backend(name: BackendName, *, threads: int) -> Backend:
    """Returns the backend with its library imported and set to `threads`; raises `NotInstalledError` if absent."""
    try:
        match name:
            case "torch":
                from edc.bench.backends.torch_eager import TorchEager

                return TorchEager(threads=threads)
            case "onnxruntime":
                from edc.bench.backends.onnxruntime_cpu import OnnxRuntimeCpu

                return OnnxRuntimeCpu(threads=threads)
            case "openvino":
                from edc.bench.backends.openvino_cpu import OpenVinoCpu

                return OpenVinoCpu(threads=threads)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise not_installed(name) from None
