"""The worked examples of docs/extending.md do what they say, and what the page names stands where it says."""

import ast
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TESTS
from scipy.stats import entropy
from tiny_onnx import tiny_images, write_tiny_onnx
from torch import nn

from edc.benchmark.backends.contract import OnnxSource, TorchSource
from edc.errors import ArtifactError, DataError, FailedError
from edc.recipe import DataSection
from edc.subject import Subject

ROOT = TESTS.parent
PAGE = (ROOT / "docs/extending.md").read_text()
SECTIONS = {text.split("\n", 1)[0]: text for text in PAGE.split("\n## ")[1:]}


def example(section: str, number: int = 0) -> types.ModuleType:
    """Returns code block `number` of a section as a module."""
    code = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)[number]
    module = types.ModuleType(section)
    exec(compile(code, f"docs/extending.md, {section}", "exec"), module.__dict__)
    return module


# A backend


def test_backend_runs_a_file_and_averages_members_as_probabilities(tmp_path):
    backend = example("A backend").OnnxReference(threads=1)
    members = [write_tiny_onnx(tmp_path / f"{seed}.onnx", seed) for seed in range(2)]
    images = tiny_images(3)
    for member in members:
        backend.prepare(OnnxSource((member.path,)))
        loaded = backend.load(OnnxSource((member.path,)))
        np.testing.assert_allclose(loaded.infer(images), member.logits(images), rtol=1e-4, atol=1e-5)
        assert (loaded.what_ran.precision, loaded.file_bytes) == ("fp32", member.path.stat().st_size)
    both = backend.load(OnnxSource(tuple(member.path for member in members)))
    wanted = np.log(np.mean([member.probs(images) for member in members], axis=0))
    np.testing.assert_allclose(both.infer(images), wanted, rtol=1e-4, atol=1e-5)


def test_backend_inherits_what_the_contract_gives(tmp_path):
    backend = example("A backend").OnnxReference(threads=1)
    backend.take_process()
    assert not backend.is_warm
    loaded = backend.load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    assert (loaded.max_batch, loaded.on_gpu, loaded.num_compilations(), loaded.parts_of_last(3)) == (None, False, 0, {})


def test_backend_refuses_what_it_cannot_run(tmp_path):
    backend = example("A backend").OnnxReference(threads=1)
    with pytest.raises(ArtifactError, match="no such file"):
        backend.load(OnnxSource((tmp_path / "a.onnx",)))
    with pytest.raises(FailedError):
        backend.load(TorchSource(tmp_path, Subject("student", "kd")))
    loaded = backend.load(OnnxSource((write_tiny_onnx(tmp_path / "a.onnx").path,)))
    for shape in ((2, 1, 5, 5), (2, 4, 8, 8), (2, 3, 4, 8)):
        with pytest.raises(FailedError, match=r"onnx-reference cannot run batch 2: .+"):
            loaded.infer(np.zeros(shape, np.float32))


# A perturbation


def test_objective_of_the_perturbation_is_the_entropy():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = entropy(logits.softmax(-1).numpy(), axis=-1)
    np.testing.assert_allclose(example("A perturbation").entropy(logits).numpy(), wanted, rtol=1e-12)


def test_reference_of_the_perturbation_climbs_the_objective_by_one_grey_level():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).double()
    images = torch.rand(4, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1
    moved = example("A perturbation", 1).moved_to_where_it_is_unsure(images, teacher, grey_levels=1.0)
    size = (moved - images).pow(2).flatten(1).mean(1).sqrt() * 255
    np.testing.assert_allclose(size.detach().numpy(), 1.0, rtol=1e-10)
    objective = example("A perturbation").entropy
    assert (objective(teacher(moved)) > objective(teacher(images))).all()
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(teacher(x)).sum(), x)
    cosine = torch.cosine_similarity((moved - images).flatten(1), gradient.flatten(1))
    np.testing.assert_allclose(cosine.detach().numpy(), 1.0, rtol=1e-10)


# A data kind


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """A folder with both files."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 40), ("test", 12)):
        images = rng.integers(0, 256, (number, 4, 6, 3), np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(number) % 4)
    return tmp_path


def test_data_kind_reads_pixels_and_labels_as_they_were_written(npz):
    data = example("A data kind").load_npz(DataSection(kind="synthetic", root=npz, validation=8))
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 12)
    assert (data.image_shape, data.class_names) == ((3, 4, 6), ("0", "1", "2", "3"))
    written = np.load(npz / "test.npz")
    np.testing.assert_array_equal(data.test.images.numpy(), written["images"].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.test.labels.numpy(), written["labels"])
    again = example("A data kind").load_npz(DataSection(kind="synthetic", root=npz, validation=8))
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("content", [None, b"nothing"])
def test_data_kind_says_what_is_wrong_with_a_file(content, npz):
    (npz / "test.npz").unlink()
    if content is not None:
        (npz / "test.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"test\.npz cannot be read"):
        example("A data kind").load_npz(DataSection(kind="synthetic", root=npz))


def test_data_kind_refuses_another_shape(npz):
    np.savez(npz / "test.npz", images=np.zeros((2, 4, 6), np.uint8), labels=np.zeros(2))
    with pytest.raises(DataError, match=r"uint8 \(2, 4, 6\)"):
        example("A data kind").load_npz(DataSection(kind="synthetic", root=npz))


# The page


@pytest.mark.parametrize("section", SECTIONS)
def test_example_is_under_sixty_lines(section):
    code = re.findall(r"^```python\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    assert code
    assert sum(block.count("\n") for block in code) < 60


def names_in(path: Path) -> set[str]:
    """Returns what a file defines: functions, classes, variables and fields."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
    return names


def test_every_name_stands_in_the_file_that_it_is_said_to_be_in():
    """`_MODULES` ... in [a/file.py](...), up to the end of the clause."""
    clauses = re.split(r"[.;:]\s|\n\n", PAGE)
    said = [
        (name, path)
        for clause in clauses
        for before, path in re.findall(r"([^\[\]]*)\s(?:in|of)\s+\[[^\]]+\]\(\.\./(edc/[\w/]+\.py)\)", clause)
        for name in re.findall(r"`([A-Za-z_]\w+)`", before)
    ]
    assert {name for name, _ in said} >= {
        "BackendName",
        "_MODULES",
        "_ONNX",
        "Perturbation",
        "units_per_step",
        "load_data",
    }
    assert [(name, path) for name, path in said if name not in names_in(ROOT / path)] == []
