"""TensorRT and TensorRT-RTX as modules: which is which, what they can build for, and how they say why they failed.

Both have the same Python API, less a few parts. TensorRT-RTX is the one with a list of compute capabilities.
"""

import importlib
from collections.abc import Callable
from typing import Any, Literal, get_args

from edc.errors import EngineError, NotInstalledError

__all__ = [
    "INSTALL",
    "LIBRARIES",
    "Library",
    "collecting_logger",
    "generations",
    "generations_by_default",
    "import_tensorrt",
    "is_rtx",
    "made",
]

Library = Literal["tensorrt", "tensorrt_rtx"]
LIBRARIES: tuple[Library, ...] = get_args(Library)

INSTALL = {
    "tensorrt": "pip install 'edc[trt]' (needs the vendor's package index)",
    "tensorrt_rtx": "pip install 'edc[rtx]'",
}


def import_tensorrt(library: Library) -> Any:
    """Returns the module.

    Raises:
        NotInstalledError: with the line that installs it.
        EngineError: it is installed and does not load (a missing driver or shared library).
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"{library} is not installed: {INSTALL[library]}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"{library} is installed but does not load: {error}") from error


def is_rtx(trt: Any) -> bool:
    """Returns whether the module is TensorRT-RTX."""
    return hasattr(trt, "ComputeCapability")


def generations(trt: Any) -> dict[int, Any]:
    """Returns the GPU generations that the library can be told to build for, by number; none for TensorRT."""
    known = trt.ComputeCapability.__members__ if is_rtx(trt) else {}
    numbers = {name.removeprefix("SM"): value for name, value in known.items()}
    return {int(name): value for name, value in numbers.items() if name.isdigit()}


def generations_by_default(trt: Any) -> list[int]:
    """Returns the GPU generations that TensorRT-RTX builds for if it is told none: Ampere and later."""
    return [number for number in generations(trt) if number >= 80]


def made(make: Callable[..., Any], log: Any, *, what: str) -> Any:
    """Returns `make(log)`, a builder or a runtime of the library.

    Without a working driver the library hands its Python binding a null pointer. Some versions return None for that,
    others raise TypeError("factory function returned nullptr"); the reason is in the log alone.

    Raises:
        EngineError: `what` cannot be had, with the reason.
    """
    try:
        found = make(log)
    except TypeError as error:
        raise EngineError(f"{what}: {log.reason()} ({error})") from error
    if found is None:
        raise EngineError(f"{what}: {log.reason()}")
    return found


def collecting_logger(trt: Any) -> Any:
    """Returns a logger that keeps errors: the library returns None on failure and says why only here."""

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
