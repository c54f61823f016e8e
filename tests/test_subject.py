"""Who is who: labels that people know, and that no two networks share."""

import itertools
from typing import get_args

import pytest

from edc.subject import PrecisionClass, Subject

NAMES = ("kd", "ensemble", "teacher", "members", "student", "teacher-0", "teacher_0", "int8", "fp32", "torch")
NAMES = (*NAMES, "ensemble_kd", "ensemble-merged", "CUDA", "on", "merged", "0", "student.ensemble", "a.b-c_d")


def networks(names: tuple[str, ...] = NAMES) -> list[Subject]:
    """Returns every network of a run with students of these names and three teachers."""
    teachers = [Subject("teacher", member=m) for m in range(3)]
    forms = [Subject("ensemble", ensemble_form=form) for form in (None, "in turn", "merged")]
    return [*teachers, *forms, *(Subject(role, name=name) for role in ("members", "student") for name in names)]


@pytest.mark.parametrize(
    ("subject", "label"),
    [
        (Subject("teacher", member=0), "teacher 0"),
        (Subject("ensemble"), "ensemble"),
        (Subject("ensemble", ensemble_form="in turn"), "ensemble, in turn"),
        (Subject("ensemble", ensemble_form="merged", precision="int8"), "ensemble, merged (int8)"),
        (Subject("members", name="kd"), "kd (members)"),
        (Subject("student", name="kd"), "kd"),
        (Subject("student", name="kd", cuda_graph=True), "kd (CUDA graph)"),
        (Subject("student", name="kd", precision="fp16", cuda_graph=True), "kd (fp16) (CUDA graph)"),
        (Subject("student", name="ensemble_kd"), "ensemble_kd"),
        (Subject("student", name="ensemble"), "student ensemble"),
        (Subject("members", name="teacher"), "student teacher (members)"),
        (Subject("student", name="members", precision="int8"), "student members (int8)"),
    ],
)
def test_label_is_the_one_that_tables_have_always_shown(subject: Subject, label: str) -> None:
    """A student that is called as a part of labels is called a student too."""
    assert subject.label == label


def test_no_two_subjects_share_a_label() -> None:
    subjects = {
        Subject(each.role, each.name, each.member, precision, each.ensemble_form, cuda_graph)
        for each, precision, cuda_graph in itertools.product(networks(), get_args(PrecisionClass), (False, True))
    }
    assert len(subjects) == (6 + 2 * len(NAMES)) * 5 * 2
    assert len({subject.label for subject in subjects}) == len(subjects)


def test_one_network_in_another_precision_or_form_is_still_that_network() -> None:
    graph = Subject("ensemble", ensemble_form="merged", precision="fp16", cuda_graph=True)
    assert graph.base == Subject("ensemble", ensemble_form="merged")
    assert graph.network == Subject("ensemble")
    assert all(each.base == each for each in networks())
    assert {each for each in networks() if each.is_ensemble} == {each for each in networks() if each.role == "ensemble"}
    assert [each.is_student for each in networks()] == [each.name is not None for each in networks()]


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "student"},
        {"role": "teacher"},
        {"role": "ensemble", "name": "kd"},
        {"role": "members", "name": "kd", "member": 0},
        {"role": "student", "name": "kd", "ensemble_form": "merged"},
    ],
)
def test_an_identity_that_contradicts_itself_cannot_be_made(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"a student has a name, a teacher has a number|only an ensemble has a form"):
        Subject(**fields)  # type: ignore[arg-type]
