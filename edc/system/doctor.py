"""What this machine can train, build and run, found out by trying, and how to get what is missing.

Every library is imported in its own process: an installed library can still fail to load, and some failures end the
process.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from edc.system.gpu import gpus_or_reason
from edc.system.machine import cpu_flags, memory_bytes, num_cpus

__all__ = ["LIBRARIES", "Check", "Library", "diagnose"]

Status = Literal["ok", "note", "missing", "broken"]


@dataclass(frozen=True)
class Check:
    """One fact about the machine. `missing`: optional and absent; `broken`: required and absent, or does not work."""

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
print("CUDA", m.version.cuda if m.cuda.is_available() else "not usable", end="")
for i in range(m.cuda.device_count()):
    major, minor = m.cuda.get_device_capability(i)
    print(f", {m.cuda.get_device_name(i)} (SM{major}{minor})", end="")
"""
_OPENVINO_DETAILS = 'print("devices:", ", ".join(m.Core().available_devices), end="")'
_ORT_DETAILS = (
    'print("built with", ", ".join(p.removesuffix("ExecutionProvider") for p in m.get_available_providers()))'
)
_RTX_DETAILS = """
log = m.Logger(m.Logger.INTERNAL_ERROR)
print("builds engines" if m.Builder(log) is not None else "cannot build engines", end="")
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
        details=_RTX_DETAILS,
    ),
    Library("tensorrt_rtx", "engines, also for GPUs elsewhere", "pip install 'edc[rtx]'", False, _RTX_DETAILS),
    Library("datasets", "recipes on the Hugging Face hub", "pip install 'edc[hf]'", required=False),
    Library("pyarrow", "parquet data", "pip install 'edc[hf]'", required=False),
)


def diagnose(libraries: Sequence[Library] = LIBRARIES) -> list[Check]:
    """Returns every check, machine first."""
    with ThreadPoolExecutor(max_workers=num_cpus()) as pool:
        loaded = pool.map(_check_library, libraries)
        return [_python(), *_cpu(), _memory(), _gpu(), *loaded, *_conflicts()]


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


def _check_library(library: Library) -> Check:
    """Returns the version of a library that loads, or why it does not."""
    name = f"{library.module} ({library.purpose})"
    absent: Status = "broken" if library.required else "missing"
    script = (
        "import importlib, importlib.util, sys\n"
        "sys.modules['openvino_telemetry'] = None\n"  # importing OpenVINO would send an event
        f"sys.exit(3) if importlib.util.find_spec({library.module!r}) is None else None\n"
        f"m = importlib.import_module({library.module!r})\n"
        "print(getattr(m, '__version__', 'version unknown'), end=' ')\n"
    )
    code, output = _run([sys.executable, "-W", "ignore", "-c", script + library.details])
    if code == 3:
        return Check(name, absent, "not installed", library.fix)
    if code != 0:
        reason = output.splitlines()[-1] if output else f"died with exit code {code}"
        return Check(name, "broken", f"installed, does not load: {reason[:200]}", library.fix)
    return Check(name, "ok", " ".join(output.split()))


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Returns a command's exit code and its output, or its errors when it failed."""
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return 1, "no answer within 120 s"
    except OSError as error:
        return 1, str(error)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()


def _conflicts() -> list[Check]:
    """Returns what is installed that must not be installed together."""
    names = {distribution.name.lower() for distribution in metadata.distributions() if distribution.name}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        fix = "pip uninstall onnxruntime onnxruntime-gpu, then pip install one of them"
        text = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        return [Check("ONNX Runtime wheels", "broken", text, fix)]
    return []
