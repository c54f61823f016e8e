"""Files that edc wrote and somebody changed: one message that says which, or the same result as without."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from command_line import edc
from conftest import Workshop
from safetensors.torch import load_file, save_file

from edc.data import load_data
from edc.deploy.engine.description import Engine, read_engine, sidecar_path, write_description
from edc.errors import ArtifactError, CheckpointError, EdcError
from edc.evidence.read_runs import read_runs
from edc.runs.folder import RunFolder
from edc.teachers.ensemble import load_teachers
from edc.train.checkpoint import Position, load_checkpoint, save_checkpoint
from edc.train.saved.epochs import append_metrics, read_metrics

VALUES: tuple[Any, ...] = (None, True, -1, 1e308, "x", [], {}, [[]], {"a": 1}, "nan", 10**18)
DOCUMENTS = ("summary.json", "inputs.json", "students/kd/metrics.jsonl", "students/latent_be/member_form.json")


def mutated(document: Any, generator: random.Random) -> Any:
    """Returns the document with one of its parts replaced, or left out."""
    if isinstance(document, dict) and document and generator.random() < 0.8:
        key = generator.choice(sorted(document))
        rest = {name: value for name, value in document.items() if name != key}
        return rest if generator.random() < 0.3 else {**document, key: mutated(document[key], generator)}
    if isinstance(document, list) and document and generator.random() < 0.8:
        i = generator.randrange(len(document))
        return [*document[:i], mutated(document[i], generator), *document[i + 1 :]]
    return generator.choice(VALUES)


def damaged(text: str, generator: random.Random) -> bytes:
    """Returns the content of a document after an accident or an edit."""
    content = text.encode()
    match generator.randrange(5):
        case 0:
            return content[: generator.randrange(len(content))]
        case 1:
            at = generator.randrange(len(content))
            return content[:at] + bytes([generator.randrange(256)]) + content[at + 1 :]
        case _:
            lines = text.splitlines() if text.count("\n{") else [text]
            return "\n".join(json.dumps(mutated(json.loads(line), generator)) for line in lines).encode()


def test_changed_documents_of_a_run_are_one_message_or_the_same_as_before(workshop: Workshop, tmp_path):
    generator = random.Random(0)
    shutil.copytree(workshop.run, tmp_path / "runs/tiny")
    shutil.copytree(workshop.folder / "runs/teachers", tmp_path / "runs/teachers")
    run, refused = RunFolder(tmp_path / "runs/tiny"), 0
    for number in range(120):
        path = run.path / DOCUMENTS[number % len(DOCUMENTS)]
        whole = path.read_text() if path.is_file() else '{"form": "joint"}'
        path.write_bytes(damaged(whole, generator))
        try:
            run.summary()
            run.inputs()
            read_runs([run])
            read_metrics(path) if path.suffix == ".jsonl" else None
        except EdcError as error:
            assert str(path) in str(error) or "predictions.npz" in str(error), error  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
        path.write_text(whole)
    assert refused > 30


@pytest.mark.parametrize("field", ["rows", "recipe_sha256", "data"])
def test_summary_without_a_part_names_it_and_says_what_to_do(workshop: Workshop, tmp_path, field):
    shutil.copytree(workshop.run, tmp_path / "runs/tiny")
    path = tmp_path / "runs/tiny/summary.json"
    document = json.loads(path.read_text())
    del document[field]
    path.write_text(json.dumps(document))
    called = edc("show", "runs/tiny", cwd=tmp_path)
    assert called.exit_code == 2
    assert f"summary.json: damaged ({field}: Field required); remove it and run edc distill" in called.stderr


def state() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_changed_checkpoints_are_one_message_and_change_nothing(tmp_path):
    generator, path = random.Random(0), tmp_path / "checkpoint.pt"
    network, optimizer = state()
    save_checkpoint(path, Position(epoch=1, best_state=dict(network.state_dict())), network, optimizer)
    whole = torch.load(path, weights_only=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in network.parameters()]

    def changed(document: Any) -> Any:
        if isinstance(document, dict) and document:
            key = generator.choice(list(document))
            rest = {name: value for name, value in document.items() if name != key}
            return rest if generator.random() < 0.2 else {**document, key: changed(document[key])}
        if isinstance(document, torch.Tensor):
            return generator.choice([torch.zeros(7, 7), document * torch.nan, document[:1], None, "x"])
        return generator.choice([None, "x", -1.5, [1], {}])

    refused = 0
    for _ in range(200):
        torch.save(changed(whole), path)
        try:
            load_checkpoint(path, network, optimizer)
        except CheckpointError as error:
            assert "checkpoint.pt: " in str(error)  # noqa: PT017
            refused += 1
            for p in network.parameters():  # a step does not crash
                assert optimizer.state[p]["momentum_buffer"].shape == p.shape
    assert refused > 100
    torch.save({**whole, "optimizer": whole["optimizer"] | {"state": {0: {"momentum_buffer": torch.ones(5)}}}}, path)
    with pytest.raises(CheckpointError, match=r"momentum_buffer of parameter 0 has shape \(5,\), expected \(2, 3\)"):
        load_checkpoint(path, network, optimizer)
    torch.save(whole, path)
    assert load_checkpoint(path, network, optimizer).epoch == 1
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(
        torch.equal(kept, optimizer.state[p]["momentum_buffer"])
        for kept, p in zip(momentum, network.parameters(), strict=True)
    )


def test_nan_in_a_cached_teacher_blames_its_file(workshop: Workshop, tmp_path):
    shutil.copytree(workshop.folder / "runs/teachers", tmp_path / "runs/teachers")
    path = sorted((tmp_path / "runs/teachers").glob("*/weights.safetensors"))[0]
    weights = load_file(path)
    name = next(name for name, value in weights.items() if value.ndim == 4)
    weights[name][0] = np.nan
    save_file(weights, path)
    called = edc("distill", workshop.recipe, "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 2
    assert f"{path.relative_to(tmp_path)}: cannot be used ({name} holds NaN or infinity); remove it" in called.stderr
    assert "learning_rate" not in called.stderr


def test_cached_teacher_that_says_it_is_another_is_refused(workshop: Workshop, tmp_path):
    shutil.copytree(workshop.folder / "runs/teachers", tmp_path / "runs/teachers")
    first, second = sorted((tmp_path / "runs/teachers").glob("*/teacher.json"))
    recipe, whole = RunFolder(workshop.run).recipe(), first.read_text()
    data, accelerator = load_data(recipe.data), Accelerator(cpu=True)

    def load() -> None:
        load_teachers(recipe, data, teachers_path=tmp_path / "runs/teachers", accelerator=accelerator)

    load()
    shutil.copyfile(second, first)
    with pytest.raises(CheckpointError, match=r"teacher.json: is of another teacher \(its seed\); remove the folder"):
        load()
    first.write_text(whole[:40])
    with pytest.raises(CheckpointError, match=r"teacher.json: damaged .*; remove the folder, and the teacher is train"):
        load()


def test_changed_descriptions_of_engines_are_one_message(tmp_path):
    path, generator = tmp_path / "m.engine", random.Random(0)
    path.write_bytes(b"engine")
    engine = Engine("tensorrt", "10.0", "a", "b", 6, "images", "logits", 1, 2, 4, (), tf32=False, build_seconds=1.0)
    write_description(engine, path)
    assert read_engine(path, "tensorrt", sha256="b") == engine
    description, refused = sidecar_path(path), 0
    whole = description.read_text()
    for _ in range(100):
        description.write_bytes(damaged(whole, generator))
        try:
            assert isinstance(read_engine(path, "tensorrt", sha256="b"), Engine)
        except ArtifactError as error:
            assert str(path) in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 30


def test_lines_of_metrics_that_are_no_epochs_are_dropped(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"epoch": 0, "loss": 2.5}\n[1]\n{"epoch": null}\n\xff\xfe\n{"epoch": 1, "lo')
    append_metrics(path, {"epoch": 1, "loss": 1.5})
    assert Path(path).read_text() == '{"epoch": 0, "loss": 2.5}\n{"epoch": 1, "loss": 1.5}\n'
    said = " ".join(capsys.readouterr().err.split())
    assert "metrics.jsonl: left out 4 of 5 lines, which are no epochs of a training (line 2: " in said
    assert read_metrics(path) == [{"epoch": 0, "loss": 2.5}, {"epoch": 1, "loss": 1.5}]
    assert capsys.readouterr().err == ""
