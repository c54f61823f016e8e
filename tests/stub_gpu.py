"""A GPU that is not there: TensorRT and torch.cuda by their own names; engines compute in ONNX Runtime on the CPU.

It knows what can be known without a device: which calls the libraries have, in which order they must come, what they
return when they fail (None or False, and the reason in the log), and that a CUDA graph holds addresses and no
references. It shows nothing about speed or rounding.
"""

import contextlib
import ctypes
import enum
import json
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edc.deploy.engine.library import generations
from edc.deploy.engine.run import local_generation

DTYPES = {1: "FLOAT", 2: "UINT8", 10: "HALF"}
NUMPY = {"FLOAT": np.float32, "UINT8": np.uint8, "HALF": np.float16}
Generations = enum.Enum("ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"])


class ILogger:
    Severity = enum.Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING"])

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class StubGpu:
    """The GPU, what was asked of it, and the ways in which it can fail."""

    def __init__(self, generation: int, version: str) -> None:
        self.generation, self.version = generation, version
        self.wrong: Callable[[np.ndarray], np.ndarray] = lambda logits: logits
        """What an engine makes of the right answer."""
        self.null = ""
        """What the library cannot make: Builder or Runtime; the binding raises TypeError on its null pointer."""
        self.no_context = False
        self.sticky: str | None = None
        """After an error of this kind every call to the device fails with it."""
        self.contexts: list[weakref.ref[Any]] = []
        self.caches: list[bytes] = []
        self.refused_caches: tuple[bytes, ...] = ()
        self.capturing: list[weakref.ref[Any]] | None = None
        self.profiles_run: list[int] = []
        self.num_compiled = 0
        """Shapes for which TensorRT-RTX found no kernels in its cache."""

    def check(self) -> None:
        if self.sticky:
            raise torch.AcceleratorError(f"CUDA error: {self.sticky}\nCUDA kernel errors might be asynchronous")


def install(monkeypatch: pytest.MonkeyPatch, *libraries: str, generation: int = 86, version: str = "10.9.0") -> StubGpu:
    """Puts the GPU and the libraries in place for a test; a library that is not named is not installed."""
    gpu = StubGpu(generation, version)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(__import__("sys").modules, name, _module(gpu, name) if name in libraries else None)
    for name, value in _torch_cuda(gpu).items():
        monkeypatch.setattr(torch.cuda, name, value)
    for module in ("edc.deploy.engine.run", "edc.benchmark.backends.on_cuda"):
        monkeypatch.setattr(f"{module}.DEVICE", torch.device("cpu"))
    return gpu


def require_engines_of(library: str) -> None:
    """Skips a test of a real GPU whose engines `library` cannot build here."""
    trt = pytest.importorskip(library, reason=f"{library} is not installed")
    known, local = generations(trt), local_generation()
    if known and local not in known:
        pytest.skip(f"{library} knows SM {', '.join(map(str, sorted(known)))} and not SM {local}, the GPU here")


class Stream:
    cuda_stream = 0

    def synchronize(self) -> None:
        return None


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, _stream: Any = None) -> None:
        return None

    def elapsed_time(self, _end: "Event") -> float:
        return 0.001


def _torch_cuda(gpu: StubGpu) -> dict[str, Any]:
    class CudaGraph:
        def __init__(self) -> None:
            self.recorded: list[weakref.ref[Any]] = []

        def replay(self) -> None:
            for reference in self.recorded:
                context = reference()
                if context is None:
                    raise RuntimeError("CUDA error: an illegal memory access was encountered")
                context.run()

    @contextlib.contextmanager
    def graph(captured: CudaGraph, stream: Any = None) -> Iterator[None]:
        gpu.capturing = captured.recorded
        try:
            yield
        finally:
            gpu.capturing = None

    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_capability": lambda device=None: divmod(gpu.generation, 10),
        "get_device_name": lambda device=None: "stub GPU",
        "mem_get_info": lambda device=None: (12 << 20, 8192 << 20),
        "current_stream": lambda device=None: Stream(),
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: gpu.check(),
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": CudaGraph,
        "graph": graph,
    }


class Network:
    def __init__(self) -> None:
        self.content = b""

    def load(self, content: bytes) -> None:
        self.content, graph = content, onnx.load_from_string(content).graph
        self.input, self.output = graph.input[0], graph.output[0]

    def get_input(self, _number: int) -> Any:
        shape = [dim.dim_value or -1 for dim in self.input.type.tensor_type.shape.dim]
        return types.SimpleNamespace(name=self.input.name, shape=shape)

    def get_output(self, _number: int) -> Any:
        return types.SimpleNamespace(name=self.output.name)


class Profile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.batches = [shape[0] for shape in shapes]


class Config:
    def __init__(self, gpu: StubGpu) -> None:
        self.gpu, self.profiles, self.targets, self.tf32 = gpu, [], [], True
        self.num_compute_capabilities = 0

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile.batches)
        return len(self.profiles) - 1

    def clear_flag(self, _flag: Any) -> None:
        self.tf32 = False

    def set_flag(self, _flag: Any) -> None:
        self.tf32 = True

    def set_compute_capability(self, value: Any, _number: int) -> bool:
        self.targets.append(int(value.name.removeprefix("SM")))
        return True

    def create_timing_cache(self, content: bytes) -> Any:
        self.gpu.caches.append(content)
        if content in self.gpu.refused_caches[:1]:
            return None  # damaged
        return types.SimpleNamespace(content=content, serialize=lambda: b"timings of this GPU")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        return cache.content not in self.gpu.refused_caches


class Builder:
    gpu: StubGpu

    def __init__(self, log: Any) -> None:
        if self.gpu.null == "Builder":
            log.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, _flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config(self.gpu)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        header = {
            "version": self.gpu.version,
            "generations": config.targets or [self.gpu.generation],
            "profiles": config.profiles,
        }
        return json.dumps(header).encode() + b"\n" + network.content


class Parser:
    def __init__(self, network: Network, log: Any) -> None:
        self.network, self.num_errors = network, 0

    def parse_from_file(self, path: str) -> bool:
        with open(path, "rb") as file:  # noqa: PTH123
            self.network.load(file.read())
        return True


class Runtime:
    gpu: StubGpu

    def __init__(self, log: Any) -> None:
        if self.gpu.null == "Runtime":
            log.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.log = log

    def deserialize_cuda_engine(self, plan: bytes) -> "CudaEngine | None":
        header, _, content = plan.partition(b"\n")
        said = json.loads(header)
        reason = ""
        if said["version"] != self.gpu.version:
            reason = f"The engine plan file is not compatible with this version: {said['version']}"
        elif self.gpu.generation not in said["generations"]:
            reason = f"The engine plan file is generated on an incompatible device, compute {said['generations']}"
        if reason:
            self.log.log(ILogger.Severity.ERROR, reason)
            return None
        return CudaEngine(self.gpu, content, said["profiles"])


class CudaEngine:
    num_io_tensors = 2

    def __init__(self, gpu: StubGpu, content: bytes, profiles: list[list[int]]) -> None:
        self.gpu, self.content, self.profiles = gpu, content, profiles
        self.session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(content).graph
        self.tensors = {each.name: each.type.tensor_type for each in (graph.input[0], graph.output[0])}

    def get_tensor_name(self, number: int) -> str:
        return list(self.tensors)[number]

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=DTYPES[self.tensors[name].elem_type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim.dim_value or -1 for dim in self.tensors[name].shape.dim)

    def create_runtime_config(self) -> Any:
        config = RuntimeConfig(self.gpu)
        config.cuda_graph_strategy = GraphStrategy.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        return config

    def create_execution_context(self, config: Any = None) -> "Context | None":
        if self.gpu.no_context:
            return None
        context = Context(self, config)
        self.gpu.contexts.append(weakref.ref(context))
        return context


GraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
Specialization = enum.Enum("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER", "NONE"])


class RuntimeCache:
    """Holds the shapes that kernels were compiled for; refuses what another version wrote."""

    def __init__(self, gpu: StubGpu) -> None:
        self.gpu, self.shapes = gpu, list[list[int]]()

    def deserialize(self, blob: bytes) -> bool:
        version, _, shapes = blob.partition(b" ")
        if version != self.gpu.version.encode():
            return False
        self.shapes = json.loads(shapes)
        return True

    def serialize(self) -> bytes:
        return f"{self.gpu.version} {json.dumps(self.shapes)}".encode()


class RuntimeConfig:
    cache: Any = None

    def __init__(self, gpu: StubGpu) -> None:
        self.gpu = gpu

    def create_runtime_cache(self) -> Any:
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True


class Context:
    def __init__(self, engine: CudaEngine, config: Any) -> None:
        self.engine, self.profile = engine, 0
        self._config = weakref.ref(config) if config is not None else lambda: None
        self.is_configured = config is not None
        self.addresses: dict[str, int] = {}

    @property
    def config(self) -> Any:
        """The address of its configuration, as far as anybody knows; TensorRT's own contexts have none."""
        config = self._config()
        if self.is_configured and config is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return config

    def set_optimization_profile_async(self, number: int, _stream: int) -> bool:
        self.profile = number
        return 0 <= number < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.profiles[self.profile]
        self.shape = shape
        return smallest <= shape[0] <= largest and tuple(shape[1:]) == self.engine.get_tensor_shape(name)[1:]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.shape[0], *self.engine.get_tensor_shape(name)[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _stream: int) -> bool:
        gpu = self.engine.gpu
        if gpu.capturing is not None:
            gpu.capturing.append(weakref.ref(self))
        gpu.profiles_run.append(self.profile)
        if isinstance(cache := getattr(self.config, "cache", None), RuntimeCache) and [*self.shape] not in cache.shapes:
            gpu.num_compiled += 1
            cache.shapes.append([*self.shape])
        gpu.check()
        self.run()
        return True

    def run(self) -> None:
        name, output = self.engine.tensors
        images = _at(self.addresses[name], self.shape, NUMPY[self.engine.get_tensor_dtype(name).name])
        logits = self.engine.session.run(None, {name: images.copy()})[0]
        _at(self.addresses[output], logits.shape, logits.dtype)[:] = self.engine.gpu.wrong(logits)


def _at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns the array that lies at an address."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * num_bytes).from_address(address), dtype).reshape(shape)


def _module(gpu: StubGpu, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    members = {
        "__version__": gpu.version,
        "ILogger": ILogger,
        "BuilderFlag": types.SimpleNamespace(TF32="TF32"),
        "NetworkDefinitionCreationFlag": types.SimpleNamespace(),
        "OnnxParser": Parser,
        "Builder": type("Builder", (Builder,), {"gpu": gpu}),
        "Runtime": type("Runtime", (Runtime,), {"gpu": gpu}),
    }
    if name == "tensorrt_rtx":
        members["ComputeCapability"] = Generations
    else:
        members["NetworkDefinitionCreationFlag"] = types.SimpleNamespace(STRONGLY_TYPED=0)
    vars(module).update(members)
    return module
