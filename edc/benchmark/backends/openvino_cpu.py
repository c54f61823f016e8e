"""OpenVINO on the CPU, on the same ONNX files, pinned to float32 or, as a backend of its own, to bfloat16."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from edc.benchmark.backends.contract import Backend, Floats, Loaded, OnnxSource, Source, WhatRan
from edc.benchmark.backends.onnxruntime_cpu import member_temperature_of, onnx_files
from edc.deploy.artifact.feed import Fed
from edc.deploy.onnx.openvino import import_openvino, openvino_core, reason_of
from edc.errors import FailedError
from edc.metrics.ensemble import ensemble_log_probs

__all__ = ["OpenVinoCpu", "OpenVinoLoaded"]

_HEAVY_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")  # in OpenVINO's own words
Hint = Literal["f32", "bf16"]
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}


class OpenVinoCpu(Backend):
    """OpenVINO compiled for one request at a time.

    By default it runs float32 files in bfloat16 on CPUs that support it (differences of 1e-2). So the precision is
    pinned, and the compiled graph's precision is checked.
    """

    def __init__(self, *, threads: int, precision: Hint = "f32") -> None:
        self.threads, self.precision = threads, precision
        openvino = import_openvino()
        self.version = str(openvino.__version__).split("-", maxsplit=1)[0]
        self.core = openvino_core()

    def prepare(self, source: Source) -> None:
        """Nothing: a file is all that loading needs."""

    def load(self, source: Source) -> "OpenVinoLoaded":
        files = onnx_files(source)
        if isinstance(source, OnnxSource) and source.not_for_openvino:
            raise FailedError(f"not for OpenVINO: {source.not_for_openvino}")
        if self.precision == "bf16" and "BF16" not in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise FailedError("openvino-bf16: OpenVINO finds no bfloat16 in this CPU and would run float32")
        compiled = [self._compile(path) for path in files]
        file_bytes = sum(path.stat().st_size for path in files)
        return OpenVinoLoaded(
            compiled,
            hint=self.precision,
            version=self.version,
            file_bytes=file_bytes,
            member_temperature=member_temperature_of(source),
        )

    def _compile(self, path: Path) -> Any:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
            "INFERENCE_NUM_THREADS": self.threads,
        }
        try:
            return self.core.compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            raise FailedError(f"{path}: OpenVINO cannot load it: {reason_of(error)}") from error


class OpenVinoLoaded(Loaded):
    """One request per file; several files are averaged as probabilities."""

    def __init__(
        self, compiled: list[Any], *, hint: Hint, version: str, file_bytes: int, member_temperature: float
    ) -> None:
        self.file_bytes, self._temperature = file_bytes, member_temperature
        counts = sum((_precisions_of(model) for model in compiled), Counter[str]())
        self.what_ran = WhatRan(
            provider="OpenVINO " + ", ".join(compiled[0].get_property("EXECUTION_DEVICES")),
            precision=_pinned(hint, counts),
            version=version,
            threads=compiled[0].get_property("INFERENCE_NUM_THREADS"),
            notes=(f"INFERENCE_PRECISION_HINT={hint}", "PERFORMANCE_HINT=LATENCY", *_mixture(hint, counts)),
        )
        shape = compiled[0].inputs[0].partial_shape[1:]
        self._image_shape = tuple(shape.to_shape()) if shape.is_static else None
        self._requests = [model.create_infer_request() for model in compiled]

    def infer(self, batch: Fed, /) -> Floats:
        if self._image_shape is not None and batch.shape[1:] != self._image_shape:
            # OpenVINO itself would read the numbers as if they had its shape, and return garbage.
            raise FailedError(
                f"OpenVINO cannot run batch {len(batch)}: images {batch.shape[1:]}, not {self._image_shape}"
            )
        try:
            # By index, not by name: asking the request for its names costs more than a small network.
            outputs: list[Floats] = [request.infer({0: batch})[0] for request in self._requests]
        except RuntimeError as error:
            raise FailedError(f"OpenVINO cannot run batch {len(batch)}: {reason_of(error)}") from error
        return outputs[0] if len(outputs) == 1 else ensemble_log_probs(outputs, temperature=self._temperature)


def _precisions_of(compiled: Any) -> Counter[str]:
    """Returns how many of the compiled graph's convolutions and matrix products run in which precision."""
    infos = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    types = [(info["layerType"].value, info["runtimePrecision"].value) for info in infos]
    heavy = [precision for layer, precision in types if layer in _HEAVY_LAYERS]
    return Counter(_PRECISIONS.get(name, name) for name in heavy or {precision for _, precision in types})


def _pinned(hint: Hint, counts: Counter[str]) -> str:
    """Returns the precision that was pinned, or raises if the compiled graph runs in another one.

    In bfloat16 OpenVINO leaves some layers in float32; with more than half of them it raises.
    """
    if hint == "f32":
        if wrong := set(counts) - {"fp32", "int8"}:
            raise FailedError(f"openvino: pinned to f32, but its compiled graph runs {', '.join(sorted(wrong))}")
        return "int8" if counts["int8"] else "fp32"
    if 2 * counts["bf16"] < counts.total() or set(counts) - {"bf16", "fp32"}:
        found = ", ".join(f"{number} in {name}" for name, number in sorted(counts.items()))
        raise FailedError(f"openvino-bf16: pinned to bf16, but of its convolutions and matrix products are {found}")
    return "bf16"


def _mixture(hint: Hint, counts: Counter[str]) -> tuple[str, ...]:
    if hint == "f32" or not counts["fp32"]:
        return ()
    return (f"{counts['fp32']} of {counts.total()} convolutions and matrix products left in fp32",)
