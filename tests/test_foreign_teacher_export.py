"""An ensemble that edc can learn from and cannot write: TorchScript teachers, from distill to export."""

import json

import torch
from command_line import edc
from small_networks import small_network
from torch import nn

RECIPE = """
name: scripted
data: {kind: synthetic, image_size: 8, num_images: 32, num_classes: 5, validation: 20, test: 20}
network: wrn10x1
training: {epochs: 1, warmup_epochs: 0, batch_size: 16}
teachers:
  checkpoints:
    - {file: a.ts, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], trust: true, allow_weak: true}
    - {file: b.ts, mean: [0.4, 0.5, 0.6], std: [0.25, 0.25, 0.25], trust: true, allow_weak: true}
students:
  kd: {method: kd, perturbation: tdiv}
"""


def save_script(network: nn.Module, path) -> None:
    torch.jit.save(torch.jit.trace(network.float().eval(), torch.rand(2, 3, 8, 8)), path)


def test_export_without_baseline_says_why_and_holds_the_student(tmp_path, recwarn, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # for what was opened before
    for seed, name in enumerate("ab"):
        save_script(small_network(seed), tmp_path / f"{name}.ts")
    recwarn.clear()  # torch calls tracing deprecated; loading is what a user does
    (tmp_path / "scripted.yaml").write_text(RECIPE)
    distilled = edc("distill", "scripted.yaml", "--device", "cpu", cwd=tmp_path)
    assert distilled.exit_code == 0, distilled.stderr
    exported = edc("export", "--max-batch", "4", "--json", cwd=tmp_path)
    assert exported.exit_code == 0, exported.stderr
    assert "no baseline files: torch cannot write teacher 0, teacher 1 as ONNX" in exported.stderr
    files = json.loads(exported.stdout)["manifest"]["files"]
    assert [(file["path"], file["role"]) for file in files if file["format"] == "onnx"] == [("student.onnx", "student")]
    assert not recwarn.list
