"""`import edc`: what it gives, what it costs, and that the loop in examples/ works with it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_networks import randomise, small_network

import edc
from edc.method.batch_ensemble import BatchEnsembleConv2d

ROOT = Path(__file__).parent.parent
NAMES = {
    "to_batch_ensemble", "member_logits", "select_members", "fold", "perturb", "latent_be_loss", "kd_loss", "metrics",
    "load_recipe", "distill", "export", "bench", "ExportOptions", "BenchOptions",
}  # fmt: skip


def run_python(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interface_is_what_it_says():
    assert set(edc.__all__) == NAMES
    assert set(dir(edc)) >= NAMES | {"__version__"}
    assert all(callable(getattr(edc, name)) for name in NAMES - {"metrics"})
    assert edc.metrics.nll is not None
    with pytest.raises(AttributeError, match=r"no attribute 'foldd'; it has .*fold"):
        _ = edc.foldd


def test_import_is_light_and_each_name_brings_what_it_needs_alone():
    found = json.loads(
        run_python(
            "import json, sys, time; t = time.process_time(); import edc; a = time.process_time() - t\n"
            "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'rich') if m in sys.modules]\n"
            "import torch; n = len(sys.modules); t = time.process_time(); edc.perturb; b = time.process_time() - t\n"
            "print(json.dumps([a, heavy, b, len(sys.modules) - n]))"
        )
    )
    seconds, heavy, seconds_of_perturb, more_modules = found
    assert heavy == []
    assert seconds < 0.1
    assert seconds_of_perturb < 0.3
    assert more_modules < 20


def test_every_name_is_there_however_the_rooms_were_imported():
    """A submodule of the same name as a function would take its place: none may have one."""
    homes = [path.stem for path in (ROOT / "edc").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert NAMES & set(homes) == {"metrics"}


@pytest.mark.parametrize("kind", ["mean_weights", "mean_factors"])
def test_fold_needs_no_second_network(kind):
    plain = small_network(0)
    members = randomise(edc.to_batch_ensemble(plain, 3), 1)
    before = torch.get_rng_state()
    folded = edc.fold(members, kind=kind)
    assert torch.equal(before, torch.get_rng_state()), "folding drew random numbers"
    expected = edc.fold(members, small_network(99), kind=kind)
    assert [type(module) for module in folded.modules()] == [type(module) for module in plain.modules()]
    assert folded.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(folded.state_dict()[key], value), key
    images = torch.rand(2, 3, 10, 10, dtype=torch.float64)
    assert torch.equal(folded(images), expected(images))
    assert any(isinstance(module, BatchEnsembleConv2d) for module in members.modules()), "the student was changed"


def test_a_layer_alone_and_one_that_is_used_twice_are_folded():
    layer = randomise(edc.to_batch_ensemble(torch.nn.Linear(4, 2).double(), 3), 1)
    assert type(edc.fold(layer)) is torch.nn.Linear
    shared = torch.nn.Linear(4, 4).double()
    twice = randomise(edc.to_batch_ensemble(torch.nn.Sequential(shared, torch.nn.ReLU(), shared), 3), 1)
    folded = edc.fold(twice)
    assert folded[0] is folded[2]


def test_perturb_leaves_frozen_parts_frozen():
    network = randomise(edc.to_batch_ensemble(small_network(0), 2), 1).train()
    norm = next(module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.eval()
    teachers = [small_network(1).train(), small_network(2).eval()]
    images = torch.rand(2, 3, 10, 10, dtype=torch.float64)
    moved = edc.perturb(images, "tdiv_sdiv", teachers=teachers, student=network, generator=torch.Generator())
    assert not torch.equal(moved, images)
    assert network.training
    assert not norm.training
    assert [teacher.training for teacher in teachers] == [True, False]
    with pytest.raises(ValueError, match="needs the student"):
        edc.perturb(images, "tdiv_sdiv", teachers=teachers, generator=torch.Generator())


@pytest.mark.slow
def test_own_loop_distils_timm_networks_in_forty_lines():
    """examples/own_loop.py as it is printed; the student is a plain timm network, better than one teacher."""
    example = ROOT / "examples/own_loop.py"
    code = [line for line in example.read_text().partition('"""\n\n')[2].splitlines() if line.strip()]
    assert len(code) <= 48
    assert len([line for line in code if "import" not in line]) <= 40
    light = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=False, env=light)
    assert done.returncode == 0, done.stderr
    accuracies = {name: float(acc) for name, acc in re.findall(r"^(.+): ([\d.]+)% of 837", done.stdout, re.MULTILINE)}
    assert accuracies.keys() == {"one teacher", "ensemble", "student"}
    assert accuracies["student"] > 90
    assert accuracies["student"] > accuracies["one teacher"]


@pytest.mark.slow
def test_whole_job_goes_through_the_front_door(tmp_path, monkeypatch):
    """As the docstring of edc has it, with less to measure: the figures are those of the files left on disk."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(
        "name: tiny\ndata: {kind: synthetic, image_size: 8, num_images: 64, test: 40}\nnetwork: cifar_resnet8\n"
        "training: {epochs: 2, warmup_epochs: 1, batch_size: 16}\nteachers: {ensemble_size: 2}\n"
        "students: {be: {answers: split}}\n"
    )
    summary = edc.distill(edc.load_recipe("recipe.yaml"), run="runs/tiny")
    assert summary == json.loads(Path("runs/tiny/summary.json").read_text())
    manifest = edc.export("runs/tiny", "export/tiny", edc.ExportOptions(max_batch=2))
    assert manifest.run == "tiny"
    options = edc.BenchOptions(
        run=Path("runs/tiny"), backends=("onnxruntime",), batches=(1,), quick=True, robustness=False
    )
    result = edc.bench("export/tiny", options)
    student = next(row for row in summary["rows"] if row["kind"] == "student")
    found = next(row for row in result.rows if row.subject.is_student)
    assert found.quality.raw.acc == pytest.approx(student["raw"]["acc"])
