"""The command line: what it prints, what it ends with, and what it leaves on disk when it refuses."""

import dataclasses
import gzip
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import command_worker
import numpy as np
import pytest
import torch
import yaml
from command_line import Called, commands, edc
from conftest import TINY_RECIPE, Workshop, environment
from PIL import Image
from processes import found_by
from safetensors.torch import load_file

from edc.benchmark.backends import BACKENDS
from edc.data import load_data
from edc.recipe.loading import load_recipe
from edc.runs.cost import TIMED_STEPS, WARMUP_STEPS
from edc.runs.folder import RunFolder
from edc.runs.profile import MEASURED_STEPS
from edc.system.doctor import Check

HEAVY = ("torch", "numpy", "accelerate", "timm", "onnx", "onnxruntime", "sklearn", "scipy", "matplotlib")
COMMANDS = (
    "distill",
    "teach",
    "show",
    "export",
    "verify",
    "doctor",
    "bench",
    "predict",
    "init",
    "push",
    "pull",
    "recipes",
)


def refused(called: Called, *expected: str, exit_code: int = 2) -> str:
    """Returns the one message that a call was refused with; it must hold every `expected` text."""
    assert called.exit_code == exit_code, called.stderr
    assert called.stdout == ""
    before, _, message = called.stderr.rpartition("error: ")
    assert "error" not in before
    assert "Traceback" not in called.stderr
    for text in expected:
        assert text in message
    return message


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns every file below `folder` with its bytes, and every folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """An empty folder with a recipe in it."""
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    return tmp_path


# Light


def in_a_new_process(*arguments: str, cwd: Path) -> tuple[list[str], str]:
    """Returns which heavy modules `edc ARGUMENTS` imported, and what it wrote to stderr."""
    code = (
        "import sys\n"
        "from edc.cli.main import main\n"
        f"sys.argv = {['edc', *arguments]!r}\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print('LOADED', *loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment(),
        timeout=60,
    )
    loaded = next(line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return loaded.split()[1:], done.stderr


def test_help_imports_nothing_heavy(tmp_path):
    assert in_a_new_process("--help", cwd=tmp_path) == ([], "")


def test_bad_recipe_is_refused_before_anything_heavy_loads(desk):
    loaded, stderr = in_a_new_process("distill", "tiny.yaml", "--set", "training.epoch=3", cwd=desk)
    assert loaded == []
    assert "unknown key; did you mean 'epochs'?" in stderr


def test_help_takes_under_half_a_second_of_processor_time(tmp_path):
    taken = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run(
            [sys.executable, "-m", "edc", "--help"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environment(),
            timeout=60,
        )
        taken.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        if taken[-1] < 0.5:
            break
    assert min(taken) < 0.5


# Help


def test_commands_are_the_known_ones():
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_that_parses(command, tmp_path):
    called = edc(command, "--help", cwd=tmp_path)
    assert called.exit_code == 0
    text = " ".join(called.stdout.split())
    assert commands()[command].help.split("\n")[0] in text
    example = commands()[command].epilog
    assert example in text
    words = shlex.split(example[example.index("edc ") :])
    assert words[1] == command
    commands()[command].make_context(command, words[2:])


def test_version_is_the_packages():
    import edc as package

    called = edc("--version", cwd=Path.cwd())
    assert (called.exit_code, called.stdout) == (0, f"edc {package.__version__}\n")


# One JSON document


def test_distill_prints_the_summary(workshop: Workshop):
    assert workshop.distilled.document == json.loads((workshop.run / "summary.json").read_text())
    assert "seed 0" in workshop.distilled.stderr


def test_distill_of_a_finished_run_changes_nothing_and_prints_the_same(workshop: Workshop):
    before = contents(workshop.folder / "runs")
    again = edc("distill", "tiny.yaml", "--device", "cpu", "--json", cwd=workshop.folder)
    assert again.stdout == workshop.distilled.stdout
    assert contents(workshop.folder / "runs") == before


def test_dry_run_prints_recipe_and_costs_and_changes_nothing(desk):
    before = contents(desk)
    called = edc("distill", "tiny.yaml", "--dry-run", "--device", "cpu", "--json", cwd=desk)
    document = called.document
    assert called.exit_code == 0
    assert contents(desk) == before
    assert document["recipe"]["deploy"] == "latent_be"
    assert document["recipe"]["training"]["learning_rate"] == 0.1
    costs = {cost.pop("name"): cost for cost in document["costs"]}
    assert {name: (cost["units_per_step"], cost["num_steps"]) for name, cost in costs.items()} == {
        "2 teachers": (3, 2 * 2 * 64 // 16),  # forward 1, backward 2
        "kd": (2 + 3, 2 * 64 // 16),
        "latent_be": (2 + 2 * 3 + 6, 2 * 64 // 16),  # teachers, members, and two perturbations of a pair
    }
    for cost in costs.values():
        assert cost["seconds"] == pytest.approx(cost["num_steps"] * cost["seconds_per_step"])
        assert cost["seconds"] > 0


def test_dry_run_of_a_run_that_is_begun_takes_the_form_it_was_begun_in(workshop: Workshop, desk):
    kept = desk / "runs/tiny/students/latent_be/member_form.json"
    kept.parent.mkdir(parents=True)
    shutil.copy(workshop.run / "recipe.yaml", desk / "runs/tiny")
    for form in ("sequential", "joint"):
        kept.write_text(json.dumps({"form": form}))
        called = edc("distill", "tiny.yaml", "--dry-run", "--device", "cpu", "--json", cwd=desk)
        assert called.document["costs"][-1]["member_form"] == form


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """What each of two processes saw of the same commands: name to (how it ended, rows of every training pass)."""
    folder = tmp_path_factory.mktemp("of_two")
    (folder / "tiny.yaml").write_text(command_worker.RECIPE)
    save_photos(folder / "photos0")
    return found_by("command_worker.py", folder, num_processes=2)


@pytest.mark.parametrize("name", command_worker.COMMANDS)
def test_of_several_processes_one_prints_the_document(of_two, name):
    (main, _), (other, _) = (found[name] for found in of_two)
    is_wrong = name in ("refused", "bad recipe", "usage") or name.endswith("without data")
    assert main.exit_code == other.exit_code == (2 if is_wrong else 0)
    assert other.stdout == ""
    assert isinstance(main.document, dict)


@pytest.mark.parametrize("name", [name for name in command_worker.COMMANDS if name.endswith("without data")])
def test_data_that_one_machine_lacks_ends_the_command_on_all(of_two, name):
    main = of_two[0][name][0]
    assert "photos1" in main.document["error"]["message"]


def test_processes_with_loaders_of_their_own_train_what_they_train_without(of_two):
    folder = Path(of_two[0]["folder"])
    for path in ("tiny/students/kd", "teachers/*"):
        (one,), (other,) = (list(folder.glob(f"workers{n}/{path}/weights.safetensors")) for n in (1, 0))
        with_loader, without = load_file(one), load_file(other)
        assert all(torch.equal(with_loader[name], without[name]) for name in without)


def test_dry_run_gives_each_process_its_share_of_the_batch(of_two):
    for process in of_two:
        _, rows = process["dry run"]
        steps = WARMUP_STEPS + TIMED_STEPS
        assert rows.count(8) == 2 * steps, "a teacher and a student, on half of 16 images"
        assert set(rows) == {2, 8}, "2: networks are tried"


def test_profile_says_how_long_the_processes_exchanged_inside_the_parts(of_two):
    """From the trace, as a browser would open it: moments, 20 a microsecond, with a collective of gloo under way."""
    called, folder = of_two[0]["profile"][0], of_two[0]["folder"]
    with gzip.open(Path(folder) / called.document["trace"], "rt") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    ends = sorted(event["ts"] + event["dur"] for event in events if event["name"] == "edc:optimizer")
    first, last = ends[0], ends[MEASURED_STEPS]
    busy = np.zeros(int(20 * (last - first)) + 1, dtype=bool)
    for event in events:
        if event["name"].startswith("gloo:"):
            start, end = 20 * (event["ts"] - first), 20 * (event["ts"] + event["dur"] - first)
            busy[max(int(start), 0) : max(int(end), 0)] = True
    expected = busy.sum() / 20 / 1000 / MEASURED_STEPS
    assert 0 < expected < called.document["step_ms"]
    assert called.document["exchange_ms"] == pytest.approx(expected, rel=0.02)
    assert "exchange between processes: during" in called.stderr


def test_teach_prints_the_folders_of_teachers_and_trains_none_twice(workshop: Workshop):
    before = contents(workshop.folder / "runs")
    called = edc("teach", "tiny.yaml", "--member", "1", "--device", "cpu", "--json", cwd=workshop.folder)
    (folder,) = called.document["teachers"]
    assert json.loads((workshop.folder / folder / "teacher.json").read_text())["seed"] == 1
    assert contents(workshop.folder / "runs") == before


def test_show_prints_one_summary_or_a_list(workshop: Workshop):
    summary = workshop.distilled.document
    assert edc("show", "--json", cwd=workshop.folder).document == summary
    assert edc("show", "runs/tiny", "runs/tiny", "--json", cwd=workshop.folder).document == [summary, summary]


def test_form_of_the_members_is_in_the_summary_and_below_the_table(workshop: Workshop):
    rows = {row["subject"]: row.get("member_form") for row in workshop.distilled.document["rows"]}
    kept = json.loads((workshop.run / "students/latent_be/member_form.json").read_text())
    assert kept["form"] == "joint"
    assert rows == dict.fromkeys(["teacher 0", "teacher 1", "ensemble", "kd"]) | {
        "latent_be (members)": "joint",
        "latent_be": "joint",
    }
    called = edc("show", "runs/tiny", cwd=workshop.folder)
    assert "latent_be: trained with joint members" in called.stdout
    assert "warning" not in called.stdout


def test_runs_that_differ_in_the_form_of_their_members_are_averaged_with_a_warning(workshop: Workshop, desk):
    for seed, form in enumerate(("joint", "sequential", "joint")):
        summary = json.loads((workshop.run / "summary.json").read_text())
        for row in summary["rows"]:
            if row.get("member_form"):
                row["member_form"] = form
        (desk / f"runs/{seed}").mkdir(parents=True)
        (desk / f"runs/{seed}/summary.json").write_text(json.dumps(summary | {"seed": seed}))
    called = edc("show", "runs/2", "runs/1", "runs/0", cwd=desk)
    said = " ".join(called.stdout.split())
    assert "warning: latent_be was trained with members joint at seed 0, sequential at seed 1, joint at seed 2" in said
    assert "students.latent_be.member_form" in said
    alike = edc("show", "runs/2", "runs/0", cwd=desk)
    assert "trained with joint members" in alike.stdout
    assert "warning" not in alike.stdout


def test_runs_of_one_seed_and_two_recipes_are_refused_with_what_differs(workshop: Workshop, desk):
    for name in ("one", "two"):
        (desk / f"runs/{name}").mkdir(parents=True)
        for file in ("summary.json", "recipe.yaml"):
            shutil.copy(workshop.run / file, desk / f"runs/{name}")
    same = edc("show", "runs/one", "runs/two", "--against", "kd", cwd=desk)
    assert "the same training twice is no evidence" in " ".join(same.stderr.split())
    recipe = yaml.safe_load((desk / "runs/two/recipe.yaml").read_text())
    recipe["training"]["learning_rate"] = 0.03
    (desk / "runs/two/recipe.yaml").write_text(yaml.safe_dump(recipe))
    other = edc("show", "runs/one", "runs/two", "--against", "kd", cwd=desk)
    said = " ".join(other.stderr.split())
    assert (same.exit_code, other.exit_code) == (2, 2)
    assert "and differs from it in training.learning_rate (0.1 there, 0.03 in runs/two); runs are averaged" in said
    assert "give the student another name" in said


def test_export_prints_the_manifest(workshop: Workshop):
    document = workshop.exported.document
    lines = workshop.exported.stderr.splitlines()
    said = [line.partition(" (")[0] for line in lines if line.startswith("writing and checking ")]
    stems = [file["path"].removesuffix(".onnx") for file in document["manifest"]["files"] if file["format"] == "onnx"]
    assert said == [f"writing and checking {stem}" for stem in stems]
    assert document["artifact"] == "export/tiny"
    assert document["manifest"] == json.loads((workshop.artifact / "manifest.json").read_text())


def test_verify_prints_its_checks(workshop: Workshop):
    document = edc("verify", "export/tiny", "--json", cwd=workshop.folder).document
    assert document["ok"] is True
    assert len(document["checks"]) == 3


def test_doctor_prints_its_checks_and_fails_where_something_is_broken(desk, monkeypatch):
    ok, broken = Check("torch", "ok", "2.9"), Check("onnx", "broken", "does not load", "pip install 'onnx[all]'")
    monkeypatch.setattr("edc.system.doctor.diagnose", lambda: [ok])
    called = edc("doctor", "--json", cwd=desk)
    assert (called.exit_code, called.document) == (0, [dataclasses.asdict(ok)])
    monkeypatch.setattr("edc.system.doctor.diagnose", lambda: [ok, broken])
    called = edc("doctor", "--json", cwd=desk)
    assert (called.exit_code, called.document) == (1, [dataclasses.asdict(ok), dataclasses.asdict(broken)])
    assert "pip install 'onnx[all]'" in called.stderr


@pytest.mark.parametrize(
    "arguments", [["bench", "--threads", "0"], ["teach"], ["distil", "tiny.yaml"], ["export", "--quick"]], ids="_".join
)
def test_usage_error_is_a_json_document_too(desk, arguments):
    called = edc(*arguments, "--json", cwd=desk)
    assert called.exit_code == 2
    assert called.document["error"]["kind"] == "UsageError"
    assert "Usage: " in called.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["distill", "nowhere.yaml"],
        ["distill", "tiny.yaml", "--dry-run", "--set", "data={kind: image_folder, root: nowhere, image_size: 8}"],
        ["teach", "tiny.yaml", "--member", "2"],
        ["show", "nowhere"],
        ["export"],
        ["verify", "nowhere"],
        ["bench", "nowhere"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_error_is_a_json_document_too(desk, arguments):
    called = edc(*arguments, "--json", cwd=desk)
    assert called.exit_code == 2
    error = called.document["error"]
    assert set(error) == {"kind", "message"}
    assert called.stderr.endswith(f"error: {error['message']}\n")


# Exit codes and messages


def test_failure_to_carry_out_a_request_exits_with_1(desk):
    overrides = ["--set", "training.learning_rate=1e30", "--set", "teachers.ensemble_size=1"]
    overrides += ["--set", "students={kd: {method: kd}}"]
    called = edc("distill", "tiny.yaml", *overrides, "--device", "cpu", "--json", cwd=desk)
    assert called.exit_code == 1
    assert called.document["error"]["kind"] == "DivergedError"
    assert "teacher 0: the loss became" in called.document["error"]["message"]
    assert not list(desk.rglob("*.safetensors"))


def test_bug_keeps_its_traceback(desk, monkeypatch):
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edc.recipe.loading.load_recipe", bug)
    with pytest.raises(ZeroDivisionError):
        edc("distill", "tiny.yaml", cwd=desk)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["distill", "tinny.yaml"], ["tinny.yaml: no such recipe", "did you mean tiny.yaml?"]),
        (["distill", "tiny.yaml", "--set", "trainings.epochs=3"], ["trainings: unknown key", "'training'?"]),
        (["distill", "tiny.yaml", "--set", "training.epochs"], ["--set training.epochs", "field.path=value"]),
        (["distill", "tiny.yaml", "--set", "teachers.ensemble_size=1"], ["needs a pair of teachers", "has 1"]),
        (["distill", "tiny.yaml", "--set", "data.num_classes=-1"], ["data.num_classes: found -1"]),
        (["teach", "tiny.yaml", "--member", "2"], ["--member: found 2", "members 0 to 1"]),
        (["show"], ["runs: no finished run here", "edc distill"]),
        (["export"], ["runs: no finished run here", "edc distill"]),
        (["export", "nowhere"], ["nowhere: not a run", "edc distill"]),
        (["export", "--precision", "fp8"], ["--precision: found 'fp8'", "fp32, fp16, int8"]),
        (["bench"], ["export: no artifact here", "edc export"]),
        (["bench", "nowhere"], ["nowhere/manifest.json: not found", "edc export"]),
        (["bench", "--backends", "tensorflow"], ["export: no artifact here"]),
        (["verify", "tiny.yaml"], ["tiny.yaml/manifest.json: not found"]),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) and len(value) > 1 else None,
)
def test_mistake_is_one_message_and_leaves_nothing(desk, arguments, expected):
    before = contents(desk)
    refused(edc(*arguments, cwd=desk), *expected)
    assert contents(desk) == before


def test_duplicate_key_is_refused(desk):
    (desk / "tiny.yaml").write_text(TINY_RECIPE + "network: wrn16x1\n")
    line = TINY_RECIPE.count("\n") + 1
    refused(edc("distill", "tiny.yaml", cwd=desk), "duplicate key 'network'", f"line {line}")


def test_all_mistakes_of_a_recipe_come_in_one_message(desk):
    message = refused(
        edc("distill", "tiny.yaml", "--set", "training.epoch=3", "--set", "data.kindd=digits", cwd=desk), "2 mistakes"
    )
    assert "training.epoch: unknown key; did you mean 'epochs'?" in message
    assert "data.kindd: unknown key; did you mean 'kind'?" in message


def test_list_of_own_teachers_leaves_nothing_to_teach(desk):
    overrides = ["--set", "teachers={checkpoints: [a.pt, b.pt]}"]
    refused(edc("teach", "tiny.yaml", *overrides, cwd=desk), "teachers.checkpoints", "nothing to train")


# Folders that hold something else


@pytest.mark.parametrize("asked", [[], ["--dry-run"]], ids=["run", "dry_run"])
def test_run_folder_with_another_recipe_is_left_alone(workshop: Workshop, asked):
    before = contents(workshop.folder)
    called = edc("distill", "tiny.yaml", "--set", "training.epochs=3", "--device", "cpu", *asked, cwd=workshop.folder)
    refused(called, "runs/tiny: already holds another recipe", "training.epochs (2 there, 3 asked for)", "--run")
    assert contents(workshop.folder) == before


def test_run_folder_with_something_else_is_left_alone(desk):
    (desk / "thesis").mkdir()
    (desk / "thesis/chapter1.tex").write_text("words")
    before = contents(desk)
    called = edc("distill", "tiny.yaml", "--run", "thesis", "--device", "cpu", cwd=desk)
    refused(called, "thesis: is not empty and holds no recipe.yaml")
    called = edc("distill", "tiny.yaml", "--run", "tiny.yaml", "--device", "cpu", cwd=desk)
    refused(called, "tiny.yaml: is a file")
    assert contents(desk) == before


def test_artifact_is_not_written_over_something_else(workshop: Workshop, tmp_path):
    (tmp_path / "letter.txt").write_text("words")
    refused(
        edc("export", "runs/tiny", "--output", tmp_path, cwd=workshop.folder), "is not empty and holds no manifest.json"
    )
    refused(edc("export", "runs/tiny", "--output", tmp_path / "letter.txt", cwd=workshop.folder), "is a file")
    assert contents(tmp_path) == {"letter.txt": b"words"}


def test_unfinished_run_is_not_exported_and_the_message_says_how_to_go_on(workshop: Workshop, desk):
    shutil.copytree(workshop.run, desk / "runs/half")
    (desk / "runs/half/summary.json").unlink()
    message = refused(edc("export", "runs/half", cwd=desk), "runs/half: the run is not finished")
    command = message[message.index("edc distill") :].strip()
    assert command == "edc distill runs/half/recipe.yaml --run runs/half"
    assert not (desk / "export").exists()


@pytest.mark.parametrize("file", ["summary.json", "recipe.yaml"])
def test_damaged_file_of_a_run_is_named(workshop: Workshop, desk, file):
    shutil.copytree(workshop.run, desk / "runs/damaged")
    path = desk / "runs/damaged" / file
    path.write_text(path.read_text()[: path.stat().st_size // 2] + "\n{[")
    refused(edc("export", "runs/damaged", cwd=desk), f"runs/damaged/{file}")


# The newest


def aged(folder: Path, file: str, hours: int) -> None:
    then = time.time() - 3600 * hours
    os.utime(folder / file, (then, then))


def test_newest_run_is_taken_and_said(workshop: Workshop, desk):
    for name, hours in (("a", 2), ("b", 1), ("c", 3)):
        shutil.copytree(workshop.run, desk / "runs" / name)
        aged(desk / "runs" / name, "summary.json", hours)
    (desk / "runs/b/summary.json").write_text("{")  # so that going on fails at once, after the choice was said
    aged(desk / "runs/b", "summary.json", 1)
    shutil.copytree(workshop.run, desk / "runs/unfinished")
    (desk / "runs/unfinished/summary.json").unlink()
    with pytest.MonkeyPatch.context() as patched:
        asked = []
        patched.setattr("edc.deploy.export.export", lambda run, *_: asked.append(run.path) or sys.exit(7))
        called = edc("export", cwd=desk)
    assert called.exit_code == 7
    assert asked == [Path("runs/b")]
    assert "run: runs/b (the newest)" in called.stderr


def test_newest_artifact_is_taken_and_said(workshop: Workshop, desk):
    for name, hours in (("a", 3), ("b", 1), ("c", 2)):
        shutil.copytree(workshop.artifact, desk / "export" / name)
        aged(desk / "export" / name, "manifest.json", hours)
    called = edc("bench", "--batch", "9", cwd=desk)
    assert "artifact: export/b (the newest)" in called.stderr
    refused(called, "--batch: 9 is over 8")


# Artifacts


@pytest.fixture
def copied(workshop: Workshop, desk: Path) -> Path:
    """A copy of the artifact, to be spoiled."""
    shutil.copytree(workshop.artifact, desk / "export/tiny")
    return desk


@pytest.mark.parametrize("command", ["bench", "verify"])
def test_artifact_damaged_by_one_byte_is_refused(copied, command):
    path = copied / "export/tiny/baseline/teacher_1.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = refused(edc(command, "export/tiny", cwd=copied), "baseline/teacher_1.onnx has another SHA-256")
    assert "student.onnx" not in message


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        (["--batch", "9"], ["--batch: 9 is over 8", "--max-batch 9"]),
        (["--batch", "many"], ["--batch: found 'many'", "1,8,64"]),
        (["--batch", "0"], ["--batch: found '0'"]),
        (["--batch", "1,,8"], ["--batch: found '1,,8'"]),
        (["--backends", "torch,tensorflow"], ["--backends: found 'tensorflow'", ", ".join(BACKENDS)]),
        (["--backends", ""], ["--backends: found ''"]),
    ],
    ids=lambda value: "=".join(value) if value and value[0].startswith("--b") else None,
)
def test_bench_refuses_what_it_cannot_measure(copied, option, expected):
    before = contents(copied)
    refused(edc("bench", "export/tiny", *option, cwd=copied), *expected)
    assert contents(copied) == before


def test_backend_that_is_not_installed_comes_with_its_install_line(copied, monkeypatch):
    monkeypatch.setattr("edc.benchmark.backends.is_installed", lambda name: name != "openvino")
    called = edc("bench", "export/tiny", "--backends", "onnxruntime,openvino", cwd=copied)
    refused(called, "openvino", "pip install 'edc[openvino]'")


# Data


FOLDER_RECIPE = """
name: folder
data: {kind: image_folder, root: photos, image_size: 8, augmentation: none, num_workers: 0, validation: 4, test: 4}
network: wrn10x1
training: {epochs: 2, warmup_epochs: 1, batch_size: 8}
teachers: {ensemble_size: 1}
students:
  kd: {method: kd}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a recipe and two classes of eight images."""
    (tmp_path / "folder.yaml").write_text(FOLDER_RECIPE)
    save_photos(tmp_path / "photos")
    return tmp_path


def save_photos(folder: Path) -> None:
    for name, colour in (("cat", 40), ("dog", 200)):
        (folder / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (9, 9), (colour, 10 * number, 0)).save(folder / name / f"{number}.png")


@pytest.mark.parametrize("command", [["distill"], ["distill", "--dry-run"], ["teach"]], ids="_".join)
def test_missing_data_folder_is_named(photos, command):
    shutil.rmtree(photos / "photos")
    before = contents(photos)
    called = edc(*command, "folder.yaml", "--device", "cpu", cwd=photos)
    refused(called, f"no folder {photos / 'photos'}", "--data-root")
    assert contents(photos) == before


def test_data_root_wins_over_the_recipe(photos):
    (photos / "photos").rename(photos / "elsewhere")
    called = edc(
        "distill", "folder.yaml", "--dry-run", "--json", "--data-root", "elsewhere", "--device", "cpu", cwd=photos
    )
    assert called.document["recipe"]["data"]["root"] == "elsewhere"


def test_run_whose_images_have_moved_is_exported_from_where_they_are(photos):
    assert edc("distill", "folder.yaml", "--device", "cpu", cwd=photos).exit_code == 0
    (photos / "photos").rename(photos / "elsewhere")
    refused(edc("export", cwd=photos), f"no folder {photos / 'photos'}", "--data-root")
    called = edc("export", "--data-root", "elsewhere", "--json", cwd=photos)
    assert called.exit_code == 0
    assert called.document["manifest"]["classes"] == ["cat", "dog"]


def test_unreadable_image_is_named_by_its_path(photos):
    for path in photos.glob("photos/cat/*.png"):
        path.write_bytes(path.read_bytes()[:20])
    message = refused(edc("distill", "folder.yaml", "--device", "cpu", cwd=photos), "not a readable image")
    assert (photos / message.split(":")[0]).is_file()
    assert not list(photos.rglob("*.safetensors"))


def test_run_that_ended_at_an_unreadable_image_goes_on_with_a_higher_allowance(photos):
    recipe = load_recipe(photos / "folder.yaml").data.model_copy(update={"root": photos / "photos"})
    train = load_data(recipe).train  # an allowance is for training images alone
    by_class = {int(label): name for name, label in zip(train.names, train.labels, strict=True)}
    for name in by_class.values():
        path = photos / "photos" / name
        path.write_bytes(path.read_bytes()[:20])
    refused(edc("distill", "folder.yaml", "--device", "cpu", cwd=photos), "not a readable image")
    assert (photos / "runs/folder/recipe.yaml").is_file()
    allowance = ["--set", "data.max_bad_fraction=0.6", "--set", "training.checkpoint_every=2"]
    called = edc("distill", "folder.yaml", *allowance, "--device", "cpu", "--json", cwd=photos)
    assert called.exit_code == 0, called.stderr
    kept = RunFolder(photos / "runs/folder").recipe()
    assert (kept.data.max_bad_fraction, kept.training.checkpoint_every) == (0.6, 2)
    assert kept.digest() == called.document["recipe_sha256"], "an artifact of it would not be known as its own"


def test_number_of_classes_that_does_not_match_is_refused(photos):
    before = contents(photos)
    called = edc("distill", "folder.yaml", "--set", "data.num_classes=3", "--device", "cpu", cwd=photos)
    refused(called, "data.num_classes: the recipe says 3, the data has 2")
    assert contents(photos) == before


# The user's own teachers


def own_teachers(workshop: Workshop) -> str:
    files = sorted((workshop.folder / "runs/teachers").glob("*/weights.safetensors"))
    assert len(files) == 2
    return f"teachers={{checkpoints: [{files[0]}, {files[1]}]}}"


TRIED = pytest.mark.parametrize("asked", [[], ["--dry-run"]], ids=["run", "dry_run"])
"""A dry run refuses what a run would, with the same words."""


@TRIED
def test_checkpoint_of_another_architecture_names_the_first_differing_keys(workshop: Workshop, desk, asked):
    before = contents(desk)
    overrides = ["--set", own_teachers(workshop), "--set", "network=wrn16x1"]
    called = edc("distill", "tiny.yaml", *overrides, "--device", "cpu", *asked, cwd=desk)
    refused(called, "weights.safetensors", "network.blocks.1.", "(32,) in the file, (16,) in the network")
    assert contents(desk) == before


@TRIED
def test_checkpoint_of_another_number_of_classes_is_refused(workshop: Workshop, desk, asked):
    before = contents(desk)
    overrides = ["--set", own_teachers(workshop), "--set", "data.num_classes=5"]
    called = edc("distill", "tiny.yaml", *overrides, "--device", "cpu", *asked, cwd=desk)
    refused(called, "weights.safetensors", "4", "5", "classes")
    assert contents(desk) == before


@TRIED
def test_checkpoint_that_is_not_there_is_named(desk, asked):
    before = contents(desk)
    own = ["--set", "teachers={checkpoints: [a.pt, b.pt]}"]
    called = edc("distill", "tiny.yaml", *own, "--device", "cpu", *asked, cwd=desk)
    refused(called, f"{desk / 'a.pt'}: no such checkpoint")
    assert contents(desk) == before


@TRIED
@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.batch_size=65"], ["training.batch_size: found 65", "only 64 training images"]),
        (["training.batch_size=1"], ["training.batch_size: 1 leaves a single image", "BatchNorm"]),
        (["network=torchvision/vit_b_32"], ["torchvision/vit_b_32: does not take images of (3, 8, 8)", "Expected 224"]),
    ],
    ids=["too_large", "too_small", "another_size"],
)
def test_what_cannot_be_trained_is_refused_before_the_run_folder_is_made(desk, overrides, expected, asked):
    before = contents(desk)
    options = [word for override in overrides for word in ("--set", override)]
    refused(edc("distill", "tiny.yaml", *options, "--device", "cpu", *asked, cwd=desk), *expected)
    assert contents(desk) == before


# Interrupted


LONG = ["--set", "training.epochs=40", "--set", "teachers.ensemble_size=1", "--set", "students={kd: {method: kd}}"]


@pytest.mark.slow
def test_interrupted_distill_says_how_to_go_on_and_does(desk):
    arguments = ["distill", "tiny.yaml", *LONG, "--device", "cpu", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edc", *arguments],
        cwd=desk,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not list(desk.glob("runs/teachers/*/metrics.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "stopped by SIGINT" in stderr
    assert not (desk / "runs/tiny/summary.json").exists()
    (checkpoint,) = desk.glob("runs/teachers/*/checkpoint.pt")
    done = len((checkpoint.parent / "metrics.jsonl").read_text().splitlines())
    assert 1 <= done < 40
    command = shlex.split(stderr.partition("Continue with: ")[2].strip().splitlines()[0])
    assert command == ["edc", *arguments]

    called = edc(*command[1:], cwd=desk)
    assert called.exit_code == 0
    assert called.document["name"] == "tiny"
    epochs = [json.loads(line)["epoch"] for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(40))
    assert not checkpoint.exists()
    first_step = int(called.stderr.partition("teacher 0: step ")[2].partition("/")[0])
    assert first_step > 0


def test_interrupt_outside_the_loop_exits_130_with_a_word(desk, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edc.recipe.loading.load_recipe", interrupt)
    called = edc("distill", "tiny.yaml", cwd=desk)
    assert called.exit_code == 130
    assert called.stdout == ""
    assert "interrupted" in called.stderr
