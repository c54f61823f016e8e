"""bench.json of an edc that knew networks by their labels alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from bench_document import small_document
from test_subject import NAMES, networks

from edc.benchmark.keys import row_key
from edc.benchmark.saved.document import bench_document, whole_bench
from edc.benchmark.saved.old import subject_of_label, with_identities
from edc.subject import RESERVED, Subject

MADE_BEFORE = Path(__file__).parent / "made_before/export/made_before/bench.json"


def label_of_then(subject: Subject) -> str:
    """What an older edc called a row: no student had another name than its own."""
    ends = subject.how_it_runs
    if subject.name is not None:
        return f"{subject.name}{' (members)' if subject.role == 'members' else ''}{ends}"
    return subject.label


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "int8"])
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_every_label_of_then_is_understood(precision: Any, cuda_graph: bool) -> None:
    rows = [each for each in networks() if each != Subject("ensemble")]  # which was never a row of a bench
    subjects = [Subject(s.role, s.name, s.member, precision, s.ensemble_form, cuda_graph) for s in rows]
    assert [subject_of_label(label_of_then(subject)) for subject in subjects] == subjects
    assert len({label_of_then(subject) for subject in subjects}) == len(subjects)


def test_ordinary_networks_are_called_as_they_were() -> None:
    for subject in networks(tuple(name for name in NAMES if name not in RESERVED)):
        assert subject.label == label_of_then(subject)


def old_document(student: str) -> dict[str, Any]:
    """A bench of then, its student called `student`."""
    text = json.dumps(small_document())
    document: dict[str, Any] = json.loads(text.replace("latent_be_tdiv_sdiv", student))
    return document


@pytest.mark.parametrize("student", ["ensemble", "teacher", "members", "int8", "ensemble_kd", "teacher-0"])
def test_rows_of_then_keep_their_figures_under_their_names_of_now(student: str) -> None:
    old = old_document(student)
    before = copy.deepcopy(old)
    bench = whole_bench(old, name="old")
    assert old == before
    now = Subject("student", name=student).label
    ensembles = ["ensemble, in turn", "ensemble, merged"]
    assert [row.network for row in bench.rows] == ["teacher 0", *ensembles, now, f"{now} (int8)", "digits-v1: kd"]
    assert bench.verdict is not None
    assert bench.verdict.row == f"{now} on onnxruntime"
    keys = {row.key for row in bench.rows}
    assert {each.baseline for row in bench.rows for each in row.against} <= keys
    assert set(bench.details) <= keys
    assert {entry["key"] for entry in (*bench.throughput, *bench.server)} <= keys
    assert bench.curve_identities[now] == Subject("student", name=student)
    assert bench.curve_identities["teacher 0"] == Subject("teacher", member=0)
    assert bench.curves.keys() == bench.curve_identities.keys()


def test_a_bench_that_says_who_is_who_is_believed_whatever_its_labels() -> None:
    document = old_document("be")
    for row in document["rows"]:
        row["identity"] = {"role": "student", "name": row["subject"].replace(" ", "-").replace(",", "")}
        row["subject"] = "teacher 0"
    found = bench_document(document).rows
    assert found[0].identity == Subject("student", name="teacher-0")
    assert found[1].key == "ensemble-in-turn on onnxruntime"


def test_old_file_and_the_same_with_identities_are_one_bench() -> None:
    old = json.loads(MADE_BEFORE.read_text())
    assert not any("identity" in row for row in old["rows"])
    new = with_identities(old)
    assert whole_bench(new, name="new") == whole_bench(old, name="old")
    assert [row.key for row in whole_bench(old, name="old").rows] == [
        row_key(row["subject"], row["backend"], row["artifact"]) for row in old["rows"]
    ]


@pytest.mark.parametrize("rows", [None, 3, [3], [{}], [{"subject": 3}], [{"subject": "kd", "identity": {"role": "x"}}]])
def test_what_is_no_row_is_left_for_the_schema_to_refuse(rows: Any) -> None:
    assert with_identities({"rows": rows}) == {"rows": rows}
