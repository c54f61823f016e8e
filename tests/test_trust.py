"""Teachers' files that can run code are opened only if the recipe trusts them, and in another process first."""

import logging
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from programs import NUM_CLASSES, SHAPE, Flat, save_onnx_graph, save_script, save_tracing_program
from torch import Tensor, nn

from edc.data import load_data
from edc.errors import CheckpointError, EdcError, RecipeError
from edc.recipe import Recipe
from edc.teachers import first_contact
from edc.teachers.ensemble import load_own_teacher, load_own_teachers
from edc.train.checkpoint import load_state

HOW = {"mean": [0.5] * 3, "std": [0.5] * 3}


def recipe_of(path: Path, **checkpoint: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "stranger",
            "data": {"kind": "synthetic", "image_size": 8, "num_classes": NUM_CLASSES, "num_images": 32},
            "network": "wrn10x1",
            "teachers": {"checkpoints": [{"file": str(path), **HOW, **checkpoint}]},
            "students": {"kd": {"method": "kd"}},
        }
    )


def loaded(path: Path, **checkpoint: Any) -> list[nn.Module]:
    recipe = recipe_of(path, **checkpoint)
    return [teacher.network for teacher in load_own_teachers(recipe, load_data(recipe.data))]


def test_exported_program_is_not_opened_untrusted_nor_under_the_name_of_weights(tmp_path):
    trace = tmp_path / "trace"
    save_tracing_program(tmp_path / "a.pt2", trace)
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt2").read_bytes())
    refusals: list[tuple[str, dict[str, Any], str]] = [
        ("a.pt2", {}, r"checkpoints.0: .*a.pt2: is an exported program.*can run code of its author.*trust: true"),
        ("a.pt2", {"trust": False}, "trust: true"),
        ("a.pt2", {"format": "state_dict"}, "holds an exported program.*format says state_dict; not opened"),
        ("a.pt", {"trust": True}, "an exported program.*under the name of a file of weights; not opened"),
        ("a.pt", {"trust": True, "format": "exported_program"}, "under the name of a file of weights; not opened"),
        ("a.pt", {"trust": True, "format": "torchscript"}, "under the name of a file of weights; not opened"),
    ]
    for name, checkpoint, message in refusals:
        with pytest.raises(CheckpointError, match=message):
            loaded(tmp_path / name, **checkpoint)
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_state(tmp_path / "a.pt")
    assert not trace.exists()


def test_trusted_program_is_opened_in_another_process_first_and_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(logging, "raiseExceptions", False)  # torch's own warning of such a pickle is malformed
    trace = tmp_path / "trace"
    save_tracing_program(tmp_path / "a.pt2", trace)
    (teacher,) = loaded(tmp_path / "a.pt2", trust=True)
    assert teacher(torch.rand(2, *SHAPE)).shape == (2, NUM_CLASSES)
    there, here = dict.fromkeys(trace.read_text().split())  # in order, each once
    assert int(there) != os.getpid() == int(here)
    trace.unlink()
    loaded(tmp_path / "a.pt2", trust=True)
    assert set(trace.read_text().split()) == {here}


def test_torchscript_is_not_opened_untrusted(tmp_path):
    for name in ("a.pt", "a.ts", "a.bin"):
        save_script(Flat().eval(), tmp_path / name)
        with pytest.raises(CheckpointError, match="is TorchScript, a program: it can run code of its author"):
            loaded(tmp_path / name)
    with pytest.raises(CheckpointError, match="holds TorchScript, a program, but format says state_dict"):
        loaded(tmp_path / "a.pt", format="state_dict")


def _branch(name: str) -> Any:
    node = helper.make_node("Flatten", ["x0"], [name], axis=1)
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


IF = helper.make_node("If", ["c"], ["y0"], then_branch=_branch("t"), else_branch=_branch("e"))
LOOP = helper.make_node("Loop", ["", "c", "x0"], ["y0"], body=_branch("t"))
CUSTOM = helper.make_node("Anything", ["x0"], ["y0"], domain="mine")
IN_A_FUNCTION = helper.make_function("mine", "Outer", ["x0"], ["y0"], [CUSTOM], [helper.make_opsetid("mine", 1)])
CALL = helper.make_node("Outer", ["x0"], ["y0"], domain="mine")


@pytest.mark.parametrize(
    ("nodes", "functions", "found"),
    [
        ([IF], (), "an ONNX file with If:"),
        ([LOOP], (), "an ONNX file with Loop:"),
        ([CUSTOM], (), "an ONNX file with mine.Anything:"),
        ([CALL], (IN_A_FUNCTION,), "an ONNX file with mine.Anything:"),
    ],
)
def test_onnx_that_is_a_program_is_not_opened_untrusted(tmp_path, nodes, functions, found):
    save_onnx_graph(tmp_path / "a.onnx", nodes, functions=functions)
    with pytest.raises(CheckpointError, match=f"is {found} it can run code"):
        loaded(tmp_path / "a.onnx")


@pytest.mark.parametrize(("inputs", "outputs", "message"), [(2, 1, "has 2 inputs .x0, x1."), (1, 2, "has 2 outputs")])
def test_onnx_teacher_of_two_inputs_or_outputs_is_refused(tmp_path, inputs, outputs, message):
    pytest.importorskip("onnx2pytorch")
    flat = [helper.make_node("Flatten", [f"x{min(k, inputs - 1)}"], [f"y{k}"], axis=1) for k in range(outputs)]
    save_onnx_graph(tmp_path / "a.onnx", flat, inputs=inputs, outputs=outputs)
    recipe = recipe_of(tmp_path / "a.onnx")
    with pytest.raises(CheckpointError, match=f"{message}.*expected one"):
        load_own_teacher(recipe, load_data(recipe.data), 0, recipe.teachers.checkpoints[0])


def test_trust_where_nothing_can_run_is_an_error(tmp_path):
    torch.save(Flat().state_dict(), tmp_path / "a.pt")
    with pytest.raises(RecipeError, match=r"trust: has no effect, because this file \(state_dict\) cannot run code"):
        loaded(tmp_path / "a.pt", trust=True)
    save_onnx_graph(tmp_path / "a.onnx", [helper.make_node("Flatten", ["x0"], ["y0"], axis=1)])
    with pytest.raises(RecipeError, match=r"trust: has no effect, because this file \(onnx\)"):
        loaded(tmp_path / "a.onnx", trust=True)


def test_trust_is_not_part_of_what_a_run_is(tmp_path):
    without, trusted = recipe_of(tmp_path / "a.ts"), recipe_of(tmp_path / "a.ts", trust=True)
    assert without.digest() == trusted.digest()
    assert without.operated_as(trusted) == trusted
    assert trusted.operated_as(without) == without
    assert "trust:" not in without.as_yaml()


@pytest.mark.parametrize(
    "content", [{1: torch.zeros(2), "a": torch.zeros(2)}, {("a",) * 9: torch.zeros(2)}, {"a" * 10**6: 3}, [1], None]
)
def test_checkpoint_without_names_is_refused_shortly(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: (holds|these weights do not fit)") as caught:
        loaded(tmp_path / "a.pt")
    assert len(str(caught.value)) < 1000


def test_checkpoint_that_unpacks_to_a_thousand_times_its_size_is_not_opened(tmp_path):
    torch.save({"a": torch.zeros(20 << 20)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as packed:
        for name in old.namelist():
            packed.writestr(name, old.read(name))
    assert (tmp_path / "a.pt").stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match=r"a.pt: unpacks to many times its size"):
        load_state(tmp_path / "a.pt")


def test_archive_of_several_disks_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    locator = b"PK\x06\x07" + bytes(12) + (7).to_bytes(4, "little")  # of an archive on seven disks
    end = (tmp_path / "a.pt").read_bytes()
    at = end.rindex(b"PK\x05\x06")
    (tmp_path / "a.safetensors").write_bytes(end[:at] + locator + end[at:])
    with pytest.raises(CheckpointError, match="not readable as weights"):
        load_state(tmp_path / "a.safetensors")


def test_checkpoint_that_holds_itself_is_refused(tmp_path):
    content: dict[str, Any] = {}
    content["state_dict"] = content["model"] = content["net"] = content
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a.pt: holds dict"):
        loaded(tmp_path / "a.pt")


class Endless(Flat):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.sum() < 1e9):
            x = x * 1.0
        return self.head(torch.flatten(x, 1))


class Greedy(Flat):
    def forward(self, x: Tensor) -> Tensor:
        held = [x]
        while len(held) < 10**6:
            held.append(torch.ones(1 << 22) * x.sum())
        return self.head(torch.flatten(x, 1)) + len(held)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "seconds", "message"),
    [(Endless(), 5.0, "was not opened and tried within 5 s"), (Greedy(), 200.0, "needs more than .* GB to be opened")],
)
def test_program_that_takes_all_time_or_memory_ends_with_its_process(tmp_path, monkeypatch, network, seconds, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(first_contact, "SECONDS", seconds)
    monkeypatch.setattr(first_contact, "MORE_BYTES", 1 << 29)
    save_script(network.eval(), tmp_path / "a.ts", traced=False)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path / "a.ts", trust=True)
    assert time.monotonic() - start < 300
    assert not (tmp_path / "cache/edc/opened").exists()


@pytest.mark.slow
def test_memory_that_an_onnx_file_names_is_not_taken_here(tmp_path, monkeypatch):
    pytest.importorskip("onnx2pytorch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    size = helper.make_tensor("s", TensorProto.INT64, [2], [10**6, 10**6])
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=size),
        helper.make_node("ConstantOfShape", ["shape"], ["large"]),
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Flatten", ["x0"], ["flat"], axis=1),
        helper.make_node("Add", ["flat", "sum"], ["y0"]),
    ]
    save_onnx_graph(tmp_path / "a.onnx", nodes)
    with pytest.raises(EdcError, match=r"checkpoints.0: "):
        loaded(tmp_path / "a.onnx")
