"""The doctor tells what loads from what is only installed, and how to mend it."""

import os
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from edc.system import doctor
from edc.system.doctor import Library, diagnose
from edc.system.gpu import Gpu


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
