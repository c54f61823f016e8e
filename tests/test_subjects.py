"""The networks of a run by name, against weights read and combined by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference import member_state
from tiny_run import make_tiny_run

from edc.benchmark.backends.contract import TorchSource
from edc.benchmark.backends.torch_eager import TorchEager
from edc.errors import DataError, RunError
from edc.runs.folder import RunFolder
from edc.runs.networks import load_subject, subjects_of
from edc.runs.rows import identity_of, rows_by_subject
from edc.runs.student import build_plain, build_student
from edc.subject import Subject
from edc.teachers.ensemble import build_teacher, teacher_key
from edc.train.checkpoint import load_state


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    make_tiny_run(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_and_data(tmp_path_factory: pytest.TempPathFactory):
    return make_tiny_run(tmp_path_factory.mktemp("elsewhere") / "tiny")


def images(data) -> torch.Tensor:
    return data.test.images[:6].float() / 255


def probs(network, state, data) -> np.ndarray:
    network.load_state_dict(state)
    with torch.no_grad():
        return network.double().eval()(images(data).double()).softmax(1).numpy()


def ran(run, subject, data) -> np.ndarray:
    """What the torch backend computes, as probabilities."""
    outputs = TorchEager(threads=1).load(TorchSource(run, subject)).infer(images(data).numpy())
    return torch.from_numpy(outputs).double().softmax(1).numpy()


def teacher_probs(run, recipe, data, m) -> np.ndarray:
    state = load_state(RunFolder(run).teachers_path / teacher_key(recipe, data, m)[0] / "weights.safetensors")
    return probs(build_teacher(recipe, data), state, data)


def test_names_are_those_of_the_summary(recipe_and_data):
    recipe, _ = recipe_and_data
    names = ("teacher 0", "teacher 1", "teacher 2", "ensemble", "kd", "be (members)", "be")
    assert tuple(subject.label for subject in subjects_of(recipe)) == names


def test_teachers_and_their_mean(run, recipe_and_data):
    recipe, data = recipe_and_data
    wanted = [teacher_probs(run, recipe, data, m) for m in range(3)]
    for m in range(3):
        np.testing.assert_allclose(ran(run, Subject("teacher", member=m), data), wanted[m], rtol=1e-4)
    np.testing.assert_allclose(ran(run, Subject("ensemble"), data), np.mean(wanted, axis=0), rtol=1e-4)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01


def test_students_before_and_after_the_fold(run, recipe_and_data):
    recipe, data = recipe_and_data
    folder = RunFolder(run)
    state = load_state(folder.student_path("kd") / "weights.safetensors")
    np.testing.assert_allclose(
        ran(run, Subject("student", name="kd"), data), probs(build_plain(recipe, data), state, data), rtol=1e-4
    )
    members = build_student(recipe, "be", data)
    members.load_state_dict(load_state(folder.student_path("be") / "weights.safetensors"))
    states = [member_state(members, m) for m in range(3)]
    each = [probs(build_plain(recipe, data), state, data) for state in states]
    np.testing.assert_allclose(ran(run, Subject("members", name="be"), data), np.mean(each, axis=0), rtol=1e-4)
    mean = {
        key: torch.stack([state[key].double() for state in states]).mean(0).to(states[0][key].dtype)
        for key in states[0]
    }
    np.testing.assert_allclose(
        ran(run, Subject("student", name="be"), data), probs(build_plain(recipe, data), mean, data), rtol=1e-3
    )
    assert np.abs(each[0] - each[1]).max() > 0.01


def test_networks_come_in_eval_mode(run, recipe_and_data):
    for subject in subjects_of(recipe_and_data[0]):
        assert not any(module.training for n in load_subject(run, subject).networks for module in n.modules())


@pytest.mark.parametrize(
    "subject",
    [
        Subject("teacher", member=3),
        Subject("members", name="kd"),
        Subject("student", name="student"),
        Subject("student", name="teacher"),
    ],
    ids=lambda subject: subject.label,
)
def test_an_unknown_network_is_refused_with_those_there_are(run, subject):
    with pytest.raises(RunError, match=r"no network .* teacher 0, .* ensemble, kd, be "):
        load_subject(run, subject)


def test_a_missing_teacher_is_not_trained_here(tmp_path):
    recipe, data = make_tiny_run(tmp_path / "tiny")
    weights = tmp_path / "teachers" / teacher_key(recipe, data, 1)[0] / "weights.safetensors"
    weights.unlink()
    load_subject(tmp_path / "tiny", Subject("teacher", member=0))
    for subject in (Subject("teacher", member=1), Subject("ensemble")):
        with pytest.raises(RunError, match="teacher 1 is not trained"):
            load_subject(tmp_path / "tiny", subject)
    assert not weights.exists()


def test_no_run_and_no_data_are_the_users_errors(tmp_path, run):
    with pytest.raises(RunError, match="not a run"):
        load_subject(tmp_path, Subject("ensemble"))
    document = yaml.safe_load((run / "recipe.yaml").read_text())
    document["data"] = {"kind": "image_folder", "image_size": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(DataError, match="nowhere"):
        load_subject(tmp_path, Subject("ensemble"), data_root=tmp_path / "nowhere")


def test_rows_of_a_summary_of_then_are_told_by_kind_and_order():
    """An older edc wrote neither name nor member; a student may be called as the ensemble is."""
    kinds = [("teacher 0", "teacher"), ("teacher 1", "teacher"), ("ensemble", "ensemble")]
    kinds += [("ensemble (members)", "members"), ("ensemble", "student"), ("teacher", "student")]
    then = {"rows": [{"subject": subject, "kind": kind} for subject, kind in kinds]}
    found = rows_by_subject(then)
    wanted = [Subject("teacher", member=0), Subject("teacher", member=1), Subject("ensemble")]
    wanted += [Subject("members", name="ensemble"), *(Subject("student", name=n) for n in ("ensemble", "teacher"))]
    assert list(found) == wanted
    assert [id(row) for row in found.values()] == [id(row) for row in then["rows"]]
    now = {"rows": [identity_of(subject) for subject in reversed(wanted)]}  # told by what they say, in any order
    assert list(rows_by_subject(now)) == wanted[::-1]
