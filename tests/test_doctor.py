"""The doctor tells what loads from what is only installed, and how to mend it."""

import os
import sys
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from edc.benchmark.backends.on_cuda import require_cuda
from edc.cli.options import accelerator_on
from edc.errors import FailedError
from edc.system import doctor
from edc.system.doctor import LIBRARIES, Library, diagnose
from edc.system.gpu import Gpu, supports, without_gpu


def found(*libraries: Library) -> dict[str, doctor.Check]:
    return {check.name.split(" (")[0]: check for check in diagnose(libraries)}


def test_loading_library_shows_its_version_and_details():
    checks = found(Library("yaml", "recipes", "pip install PyYAML", details="print('as', m.__name__)"))
    assert checks["yaml"].status == "ok"
    assert checks["yaml"].found == f"{metadata.version('PyYAML')} as yaml"
    assert checks["yaml"].fix is None


def test_absent_library_comes_with_its_install_line():
    checks = found(
        Library("edc_has_no_such_module", "nothing", "pip install nothing", required=False),
        Library("edc_has_no_such_module_either", "nothing", "pip install nothing"),
    )
    assert [checks[name].status for name in list(checks)[-2:]] == ["missing", "broken"]
    assert checks["edc_has_no_such_module"].found == "not installed"
    assert checks["edc_has_no_such_module"].fix == "pip install nothing"


def test_library_that_is_installed_and_does_not_load_is_broken(tmp_path: Path, monkeypatch):
    (tmp_path / "raises_on_import.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    (tmp_path / "kills_the_process.py").write_text("import os; os._exit(139)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    checks = found(Library("raises_on_import", "x", "mend it"), Library("kills_the_process", "x", "mend it"))
    assert checks["raises_on_import"].status == "broken"
    assert "libnvinfer.so.10" in checks["raises_on_import"].found
    assert checks["kills_the_process"].found == "installed, does not load: died with exit code 139"
    assert checks["kills_the_process"].fix == "mend it"


def test_machine_is_described():
    checks = found()
    assert checks["Python"].found.startswith(".".join(map(str, sys.version_info[:3])))
    assert {"CPU cores", "Memory", "GPU"} <= checks.keys()
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert checks["Memory"].found == f"{installed / 2**30:.1f} GiB"
    assert checks["GPU"].status in ("ok", "missing", "broken")


def test_machine_without_a_driver_or_vector_instructions_gets_advice(monkeypatch):
    monkeypatch.setattr(doctor, "gpus_or_reason", lambda: ())
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"sse2"})
    checks = found()
    assert (checks["GPU"].status, checks["INT8 on this CPU"].status) == ("missing", "note")
    assert "none of avx2" in checks["CPU features"].found


def test_gpus_are_named_and_a_driver_that_fails_says_why(monkeypatch):
    a100 = Gpu("NVIDIA A100-SXM4-40GB", "535.104.05", 40960.0, 1155, 1410, 1215, 34, 56.21)
    monkeypatch.setattr(doctor, "gpus_or_reason", lambda: (a100, replace(a100, name="NVIDIA GB10", memory_mib=None)))
    gpu = found()["GPU"]
    assert (gpu.status, gpu.fix) == ("ok", None)
    assert gpu.found == (
        "NVIDIA A100-SXM4-40GB, driver 535.104.05, 40960 MiB; NVIDIA GB10, driver 535.104.05, memory unknown"
    )
    monkeypatch.setattr(doctor, "gpus_or_reason", lambda: "Driver Not Loaded")
    gpu = found()["GPU"]
    assert (gpu.status, gpu.found) == ("broken", "Driver Not Loaded")


def test_both_runtimes_installed_at_once_is_a_conflict(monkeypatch):
    class Distribution:
        def __init__(self, name: str) -> None:
            self.name = name

    both = [Distribution("onnxruntime"), Distribution("onnxruntime-gpu")]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: both)
    assert found()["ONNX Runtime wheels"].status == "broken"


def test_nothing_is_printed(capfd):
    diagnose(())
    assert capfd.readouterr() == ("", "")


def test_a_library_that_is_slow_to_load_is_slow_and_those_behind_it_are_still_tried(tmp_path: Path, monkeypatch):
    """On a busy machine, not a broken one: reinstalling would not help."""
    (tmp_path / "sleeps_on_import.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(doctor, "LIMIT_S", 3.0)
    checks = found(Library("sleeps_on_import", "x", "mend it"), Library("colorsys", "x", "mend it"))
    assert checks["colorsys"].status == "ok"
    slow = checks["sleeps_on_import"]
    assert (slow.status, slow.found) == ("slow", "no answer within 3 s")
    assert "again" in slow.fix
    assert "mend it" not in slow.fix


def test_all_libraries_are_tried_in_one_process_and_one_that_fails_there_once_more_alone(tmp_path: Path, monkeypatch):
    (tmp_path / "pid_of.py").write_text("import os; __version__ = f'pid {os.getpid()}'")
    (tmp_path / "needs_room.py").write_text("import sys; assert 'pid_of' not in sys.modules, 'no room'")
    (tmp_path / "has_no_gpu.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    of_process = "import os; print(os.getpid(), end='')"
    libraries = [
        Library("pid_of", "x", "mend it"),
        Library("needs_room", "x", "mend it"),
        Library("colorsys", "x", "mend it", details=of_process),
        Library("has_no_gpu", "x", "mend it", details="raise RuntimeError('cannot use the GPU: old driver')"),
    ]
    checks = found(*libraries)
    assert checks["pid_of"].found.split()[-1] == checks["colorsys"].found.split()[-1]
    assert (checks["needs_room"].status, checks["needs_room"].found) == ("ok", "version unknown")
    assert (checks["has_no_gpu"].status, checks["has_no_gpu"].fix) == ("broken", "mend it")
    assert checks["has_no_gpu"].found == "installed, loads, but: cannot use the GPU: old driver"


def test_architectures_that_a_library_is_built_for_are_those_that_the_gpu_can_run():
    torch_2_9 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert {sm: supports(torch_2_9, sm) for sm in (70, 75, 86, 87, 89, 90, 103, 120, 121)} == {
        70: False, 75: True, 86: True, 87: True, 89: True, 90: True, 103: True, 120: True, 121: True
    }  # fmt: skip
    assert not supports(["sm_80", "sm_86"], 90)  # another major number, and nothing that the driver could compile
    assert supports(["sm_80", "compute_80"], 90)
    assert (supports(["sm_90a"], 90), supports(["sm_90a"], 100), supports(["compute_90a"], 120)) == (True, False, False)


def test_torch_that_does_not_compute_on_the_gpu_that_is_there_is_broken(monkeypatch, tmp_path):
    """A driver that is too old: NVIDIA's library names the GPU, and torch does not see it."""
    (tmp_path / "old_torch.py").write_text(
        "import types, warnings\n"
        "def is_available():\n"
        "    warnings.warn('The NVIDIA driver on your system is too old (found version 11040).')\n"
        "cuda = types.SimpleNamespace(is_available=is_available)\n"
        "import edc.system.gpu\n"
        "edc.system.gpu.gpus_now = lambda: ('a GPU',)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    library = next(library for library in LIBRARIES if library.module == "torch")
    check = found(replace(library, module="old_torch"))["old_torch"]
    assert check.status == "broken"
    assert "loads, but: cannot use the GPU: The NVIDIA driver on your system is too old" in check.found


def test_torch_row_on_a_machine_with_an_old_driver_says_so(monkeypatch):
    def is_available() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old (found version 11040).", stacklevel=1)
        return False

    monkeypatch.setattr("torch.cuda.is_available", is_available)
    with pytest.raises(FailedError, match=r"torch-cuda: no CUDA device .*: The NVIDIA driver on your sys"):
        require_cuda("torch-cuda")


def test_a_gpu_that_torch_cannot_use_is_no_reason_to_train_for_days_on_the_cpu(monkeypatch):
    """`--device auto` did, after one line of a warning."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 11040).", stacklevel=1)
        return False

    monkeypatch.setattr("torch.cuda.is_available", is_available)
    for device in ("auto", "cuda"):
        wanted = rf"--device {device}: no CUDA device .* driver on your system is too old .*--device cpu does without"
        with pytest.raises(FailedError, match=wanted):
            accelerator_on(device, None)
    assert accelerator_on("cpu", None).device.type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # torch says why once a process
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("edc.system.gpu.gpus_now", lambda: ())
    assert not without_gpu().is_fault
    monkeypatch.setattr("edc.system.gpu.gpus_now", lambda: ("a GPU",))
    assert without_gpu().is_fault
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # somebody wants the CPU
    assert not without_gpu().is_fault
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.version.cuda", None)  # so does who installed it without CUDA
    assert not without_gpu().is_fault


def test_onnxruntime_that_is_built_for_cuda_and_opens_no_session_on_the_gpu_is_broken(monkeypatch, capsys):
    """What it is built with says nothing: here it has the provider, and no driver is under it."""
    ort = pytest.importorskip("onnxruntime")
    library = next(library for library in LIBRARIES if library.module == "onnxruntime")
    monkeypatch.setattr("edc.system.gpu.gpus_now", lambda: ("a GPU",))
    if torch.cuda.is_available() or "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("there is a GPU, or this ONNX Runtime is not built for CUDA")
    with pytest.raises(RuntimeError, match="its CUDA provider does not open here, and it computes on the CPU"):
        exec(library.details, {"m": ort})
    opens = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: opens)
    exec(library.details, {"m": ort})
    assert capsys.readouterr().out.endswith("; a CUDA session opens")


def test_a_gpu_that_torch_has_no_kernels_for_is_refused_before_anything_is_computed(monkeypatch):
    """torch says that it is available, and fails at the first product."""
    for name, value in {"is_available": True, "get_arch_list": ["sm_75", "sm_80", "sm_90"]}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA GeForce MX150")
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (6, 1))
    wanted = r"torch .* has no kernels for NVIDIA GeForce MX150 \(SM 61\), only for sm_75, sm_80, sm_90"
    for device in ("auto", "cuda"):
        with pytest.raises(FailedError, match=f"--device {device}: {wanted}; `edc doctor`"):
            accelerator_on(device, None)
    with pytest.raises(FailedError, match=f"torch-cuda: {wanted}"):
        require_cuda("torch-cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 6))
    assert without_gpu() is None
    monkeypatch.setattr("torch.version.cuda", None)  # ROCm's torch names its GPUs in another way
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (11, 0))
    assert without_gpu() is None
