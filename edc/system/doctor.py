"""What this machine can train, build and run, found out by trying, and how to get what is missing.

Libraries are imported in one child process, one after another: an installed library can still fail to load, and some
failures end the process. One that failed there is tried once more alone, because another may have been in its way.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from edc.system.gpu import gpus_or_reason
from edc.system.machine import cpu_flags, memory_bytes, num_cpus

__all__ = ["LIBRARIES", "Check", "Library", "diagnose"]

Status = Literal["ok", "note", "missing", "slow", "broken"]

LIMIT_S = 180.0
"""How long a child process may take. Whatever has not answered by then is slow, as on a busy machine, not broken."""


@dataclass(frozen=True)
class Check:
    """One fact about the machine.

    `missing`: optional and absent; `broken`: required and absent, or does not work; `slow`: not known for lack of time.
    """

    name: str
    status: Status
    found: str
    fix: str | None = None


@dataclass(frozen=True)
class Library:
    """A package, what edc uses it for, how to get it, and Python code that prints facts about it."""

    module: str
    purpose: str
    fix: str
    required: bool = True
    details: str = ""


_TORCH_DETAILS = """
import warnings
from edc.system.gpu import gpus_now, supports
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")  # why there is no GPU: a driver that is too old, for example
    usable = m.cuda.is_available()
if not usable and gpus_now():
    why = str(said[0].message) if said else f"built for CUDA {m.version.cuda}"
    raise RuntimeError(f"cannot use the GPU: {why}")
print("CUDA", m.version.cuda if usable else "not usable", end="")
for i in range(m.cuda.device_count() if usable else 0):
    major, minor = m.cuda.get_device_capability(i)
    if not supports(m.cuda.get_arch_list(), 10 * major + minor):
        built = ", ".join(m.cuda.get_arch_list())
        raise RuntimeError(f"has no kernels for {m.cuda.get_device_name(i)} (SM {major}{minor}), only {built}")
    m.ones(8, 8, device=i).mm(m.ones(8, 8, device=i)).sum().item()
    print(f", {m.cuda.get_device_name(i)} (SM {major}{minor}) computes", end="")
"""
_OPENVINO_DETAILS = 'print("devices:", ", ".join(m.Core().available_devices), end="")'
_ORT_DETAILS = """
from edc.system.gpu import gpus_now
providers = m.get_available_providers()
print("built with", ", ".join(p.removesuffix("ExecutionProvider") for p in providers), end="")
if gpus_now() and "CUDAExecutionProvider" in providers:
    import torch, onnx.helper as h
    shape = h.make_tensor_value_info("x", 1, [1]), h.make_tensor_value_info("y", 1, [1])
    graph = h.make_graph([h.make_node("Relu", ["x"], ["y"])], "relu", shape[:1], shape[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    session = m.InferenceSession(model.SerializeToString(), providers=["CUDAExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise RuntimeError("its CUDA provider does not open here, and it computes on the CPU")
    print("; a CUDA session opens", end="")
"""
_TRT_DETAILS = """
from edc.system.gpu import generations_here
if m.Builder(m.Logger(m.Logger.INTERNAL_ERROR)) is None:
    raise RuntimeError("cannot build engines")
print("builds engines", end="")
if hasattr(m, "ComputeCapability"):
    known = [int(name[2:]) for name in m.ComputeCapability.__members__ if name[2:].isdigit()]
    print(" for SM", ", ".join(map(str, known)), end="")
    for missing in [sm for sm in generations_here() if sm not in known]:
        print(f", not for SM {missing}, the GPU here, which needs TensorRT", end="")
"""
_REINSTALL = "pip install --upgrade --force-reinstall edc"

LIBRARIES = (
    Library("torch", "training, export", _REINSTALL, details=_TORCH_DETAILS),
    Library("torchvision", "data, networks", _REINSTALL),
    Library("timm", "networks", _REINSTALL),
    Library("accelerate", "training on several devices", _REINSTALL),
    Library("pynvml", "clocks of GPUs", _REINSTALL),
    Library("onnx", "export", _REINSTALL),
    Library("onnxscript", "export", _REINSTALL),
    Library("onnxruntime", "parity, bench, INT8", _REINSTALL, details=_ORT_DETAILS),
    Library("openvino", "bench on Intel and AMD CPUs", "pip install 'edc[openvino]'", False, _OPENVINO_DETAILS),
    Library(
        "tensorrt",
        "engines for this GPU",
        "pip install 'edc[trt]' (needs an NVIDIA GPU and the vendor's index)",
        required=False,
        details=_TRT_DETAILS,
    ),
    Library("tensorrt_rtx", "engines, also for GPUs elsewhere", "pip install 'edc[rtx]'", False, _TRT_DETAILS),
    Library("datasets", "recipes on the Hugging Face hub", "pip install 'edc[hf]'", required=False),
    Library("pyarrow", "parquet data", "pip install 'edc[hf]'", required=False),
)


def diagnose(libraries: Sequence[Library] = LIBRARIES) -> list[Check]:
    """Returns every check, machine first."""
    return [_python(), *_cpu(), _memory(), _gpu(), *_check_libraries(libraries), *_conflicts()]


def _python() -> Check:
    return Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _cpu() -> list[Check]:
    checks = [Check("CPU cores", "ok", f"{num_cpus()} of {os.cpu_count()} usable")]
    flags = cpu_flags()
    if flags is None:
        return checks
    wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp")
    found = ", ".join(flag for flag in wanted if flag in flags) or "none of " + ", ".join(wanted)
    checks.append(Check("CPU features", "ok", found))
    if not flags & {"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"}:
        text = "no 8-bit dot product (VNNI): int8-cpu files run, but may be slower than fp32 and saturate"
        checks.append(Check("INT8 on this CPU", "note", text, "deploy fp32 here; measure with `edc bench`"))
    if flags & {"avx512_bf16", "amx_bf16"}:
        text = "has bfloat16, which OpenVINO uses for fp32 files unless told not to; edc pins float32"
        checks.append(Check("bfloat16 on this CPU", "note", text, "in your own code: INFERENCE_PRECISION_HINT=f32"))
    return checks


def _memory() -> Check:
    return Check("Memory", "ok", f"{memory_bytes() / 2**30:.1f} GiB")


def _gpu() -> Check:
    gpus = gpus_or_reason()
    if isinstance(gpus, str):
        return Check("GPU", "broken", gpus, "reinstall NVIDIA's driver and reboot")
    if not gpus:
        return Check(
            "GPU", "missing", "no NVIDIA driver, or no GPU under it", "install NVIDIA's driver, or use the CPU"
        )
    sizes = ("memory unknown" if gpu.memory_mib is None else f"{gpu.memory_mib:.0f} MiB" for gpu in gpus)
    found = "; ".join(f"{gpu.name}, driver {gpu.driver}, {size}" for gpu, size in zip(gpus, sizes, strict=True))
    return Check("GPU", "ok", found)


_CHILD = """
import contextlib, importlib, importlib.util, io, json, sys
sys.modules["openvino_telemetry"] = None  # importing OpenVINO would send an event
for name, details in json.loads(sys.argv[1]):
    said, stage = io.StringIO(), "does not load"
    try:
        with contextlib.redirect_stdout(said):
            if importlib.util.find_spec(name) is None:
                stage = "absent"
                raise ImportError(name)
            m = importlib.import_module(name)
            print(getattr(m, "__version__", "version unknown"), end=" ")
            stage = "loads, but"
            exec(details, {"m": m})
        answer = ["ok", " ".join(said.getvalue().split())]
    except Exception as error:
        answer = [stage, (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]]
    print("\\n" + sys.argv[2] + json.dumps(answer), flush=True)
"""
_MARK = "edc doctor: "
_Answer = tuple[str, str]
"""(ok, absent, slow, or in which way it is broken; and what was found)."""


def _check_libraries(libraries: Sequence[Library]) -> list[Check]:
    """Returns the version of each library that loads and what it can do here, or why it does not load."""
    answers: list[_Answer] = []
    while len(answers) < len(libraries):
        answers += _asked(libraries[len(answers) :])
    for number, (library, (found, _)) in enumerate(zip(libraries, answers, strict=True)):
        if found not in ("ok", "absent", "slow") and len(libraries) > 1:
            answers[number] = _asked([library])[0]
    return [_check(library, *answer) for library, answer in zip(libraries, answers, strict=True)]


def _check(library: Library, found: str, text: str) -> Check:
    name = f"{library.module} ({library.purpose})"
    if found == "ok":
        return Check(name, "ok", text)
    if found == "absent":
        return Check(name, "broken" if library.required else "missing", "not installed", library.fix)
    if found == "slow":
        return Check(name, "slow", text, "run `edc doctor` again when the machine is less busy")
    return Check(name, "broken", f"installed, {found}: {text}", library.fix)


def _asked(libraries: Sequence[Library]) -> list[_Answer]:
    """Returns the answers of one child process, at least one: the last is of the library that it ended at."""
    asked = json.dumps([(library.module, library.details) for library in libraries])
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, asked, _MARK]
    last: _Answer | None = None
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_S, check=False, env=environment)
        output = done.stdout
        if done.returncode:
            last = ("does not load", f"died with exit code {done.returncode}")
    except subprocess.TimeoutExpired as expired:
        output, last = expired.stdout or b"", ("slow", f"no answer within {LIMIT_S:g} s")
    except OSError as error:
        output, last = b"", ("does not load", str(error))
    lines = [line for line in output.decode(errors="replace").splitlines() if line.startswith(_MARK)]
    answers: list[_Answer] = [(found, text) for found, text in (json.loads(line.removeprefix(_MARK)) for line in lines)]
    if len(answers) < len(libraries):
        answers.append(last or ("does not load", "its process ended without a word"))
    return answers


def _conflicts() -> list[Check]:
    """Returns what is installed that must not be installed together."""
    names = {distribution.name.lower() for distribution in metadata.distributions() if distribution.name}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        fix = "pip uninstall onnxruntime onnxruntime-gpu, then pip install one of them"
        text = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        return [Check("ONNX Runtime wheels", "broken", text, fix)]
    return []
