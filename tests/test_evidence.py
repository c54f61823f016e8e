"""What several runs show together, from runs whose figures are known."""

import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml
from command_line import edc
from made_runs import STUDENTS, UNITS, make_run, rewrite
from rich.console import Console

from edc.cli.picture import picture
from edc.cli.tables.evidence import evidence_document, print_evidence
from edc.cli.tables.run import mean_rows, print_summaries
from edc.errors import RunError
from edc.evidence.over_seeds import EvidenceRow, evidence_of
from edc.metrics.intervals import Interval
from edc.runs.folder import HOW_EPOCHS_ARE_CHOSEN, TEST_IMAGES, RunFolder
from edc.runs.per_image import read_per_image
from edc.runs.rows import rows_by_subject, seeds_in_words, teacher_sets
from edc.subject import Subject

SIGN = {"acc": 1, "calibrated_nll": -1}
LONG = STUDENTS[-1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    """Three seeds, one set of teachers."""
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / f"seed{seed}", seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    folder = tmp_path_factory.mktemp("two")
    return [make_run(folder / f"t{t}s{seed}", seed=seed, teachers=t) for t in (0, 1) for seed in (0, 1)]


def value(run: RunFolder, measure: str, subject: Subject | None) -> float:
    """Returns a figure of summary.json; None: the mean over the run's teachers."""
    rows = rows_by_subject(run.summary())
    chosen = [row for other, row in rows.items() if other == subject or (not subject and other.role == "teacher")]
    return float(np.mean([row["raw"]["acc"] if measure == "acc" else row["calibrated"]["nll"] for row in chosen]))


def the_row(evidence, label: str) -> EvidenceRow:
    return next(row for row in evidence.rows if row.label == label)


def test_every_network_has_its_mean_its_spread_and_its_cost(runs):
    evidence = evidence_of(runs)
    assert [row.label for row in evidence.rows] == ["teacher", "ensemble", "kd", "paper (members)", "paper", LONG]
    for row in evidence.rows:
        for measure, figures in row.figures.items():
            values = [value(run, measure, row.subject) for run in runs]
            assert figures.by_run == pytest.approx(values, rel=1e-6)
            assert (figures.mean, figures.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-7)
        name = row.subject.name if row.subject else None
        assert row.units == (UNITS[name] if name else None)
        assert row.hours == (2.0 if name else None)


@pytest.mark.parametrize("measure", SIGN)
@pytest.mark.parametrize("of", ["runs", "two_sets"])
def test_share_is_the_students_part_of_each_runs_own_gain(of, measure, request):
    folders = request.getfixturevalue(of)
    evidence = evidence_of(folders)
    for name in STUDENTS:
        student = [value(run, measure, Subject("student", name=name)) for run in folders]
        teacher = [value(run, measure, None) for run in folders]
        ensemble = [value(run, measure, Subject("ensemble")) for run in folders]
        share = np.sum(np.subtract(student, teacher)) / np.sum(np.subtract(ensemble, teacher))
        found = the_row(evidence, name).share[measure]
        assert found.value == pytest.approx(share, rel=1e-5)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
    assert the_row(evidence, "ensemble").share == the_row(evidence, "teacher").share == {}


@pytest.mark.parametrize("named", ["kd", "ensemble", "teacher"])
def test_differences_are_within_runs_with_the_interval_of_a_paired_t_test(two_sets, named):
    evidence = evidence_of(two_sets, against=named)
    subjects = {row.label: row.subject for row in evidence.rows}
    assert the_row(evidence, named).against == {}
    for row in evidence.rows:
        for measure, against in row.against.items():
            mine, other = ([value(run, measure, subjects[label]) for run in two_sets] for label in (row.label, named))
            expected = scipy.stats.ttest_rel(mine, other).confidence_interval(0.95)
            found = against.over_seeds
            assert found.value == pytest.approx(np.mean(np.subtract(mine, other)), abs=1e-7)
            assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-3, abs=1e-7)


def test_what_an_interval_excludes_is_better_or_worse_and_the_rest_is_not_told_apart(runs):
    evidence = evidence_of(runs, against="paper")
    verdicts = set()
    for row in evidence.rows:
        for measure, against in row.against.items():
            interval = against.interval
            assert interval.low is not None
            assert interval.high is not None
            better = interval.low > 0 if measure == "acc" else interval.high < 0
            worse = interval.high < 0 if measure == "acc" else interval.low > 0
            assert against.verdict == ("better" if better else "worse" if worse else "not told apart")
            verdicts.add(against.verdict)
    assert verdicts == {"better", "worse", "not told apart"}


def test_intervals_over_images_too_are_wider_than_those_of_seeds_alone_where_seeds_agree(tmp_path):
    """Seeds hardly differ here, images do; without predictions.npz only the seeds are there, and it is said."""
    with_images = [make_run(tmp_path / f"with{seed}", seed=seed) for seed in range(5)]
    without = [make_run(tmp_path / f"without{seed}", seed=seed, by_image=False) for seed in range(5)]
    both, seeds = (evidence_of(folders) for folders in (with_images, without))
    assert (both.over, seeds.over) == ("seeds and test images", "seeds")
    assert any("without0, " in note and "no predictions.npz" in note for note in seeds.notes)
    assert not any("predictions.npz" in note for note in both.notes)
    found = {}
    for evidence in (both, seeds):
        gain = evidence.gain["calibrated_nll"]
        found[evidence.over] = gain.high - gain.low
    assert found["seeds"] == pytest.approx(0, abs=1e-6)  # one set of teachers: seeds do not touch it
    assert found["seeds and test images"] > 1e-3


def test_one_run_has_intervals_over_its_images_alone_and_says_so(runs, tmp_path):
    evidence = evidence_of(runs[:1], against="kd")
    assert evidence.over == "test images"
    assert "one seed says nothing about the spread of training" in evidence.notes
    assert the_row(evidence, "paper").against["acc"].over_seeds.low is None
    assert the_row(evidence, "paper").against["acc"].interval.low is not None
    bare = evidence_of([make_run(tmp_path / "bare", by_image=False)], against="kd")
    assert bare.over == "nothing"
    assert {against.verdict for row in bare.rows for against in row.against.values()} == {"not told apart"}


def test_runs_on_other_images_are_not_resampled_together(tmp_path, runs):
    evidence = evidence_of([runs[0], make_run(tmp_path / "fewer", seed=1, num_images=300)])
    assert evidence.over == "seeds"
    assert any("other test images" in note for note in evidence.notes)


def test_teachers_are_told_apart_by_what_they_measure(runs, two_sets):
    assert evidence_of(runs).teachers == (0, 0, 0)
    assert evidence_of(two_sets).teachers == (0, 0, 1, 1)
    assert "all runs have the same teachers" in evidence_of(runs).notes[0]
    assert "2 sets of teachers" in evidence_of(two_sets).notes[0]
    summaries = [run.summary() for run in two_sets]
    assert teacher_sets(list(reversed(summaries))) == (0, 0, 1, 1)
    rows = {row["label"]: row["cells"] for row in mean_rows(summaries)}
    accuracies = [100 * value(run, "acc", Subject("teacher", member=m)) for run in two_sets[::2] for m in (0, 1)]
    assert rows["one teacher (mean of 4)"][0] == f"{np.mean(accuracies):.2f} ±{np.std(accuracies, ddof=1):.2f}"
    of_ensembles = [100 * value(run, "acc", Subject("ensemble")) for run in two_sets[::2]]
    assert rows["ensemble of 2"][0] == f"{np.mean(of_ensembles):.2f} ±{np.std(of_ensembles, ddof=1):.2f}"


def test_a_row_that_is_not_in_every_run_is_left_out_and_named(runs, tmp_path):
    evidence = evidence_of([runs[0], make_run(tmp_path / "other", seed=1, students=("kd",))])
    assert [row.label for row in evidence.rows] == ["teacher", "ensemble", "kd"]
    assert evidence.left_out == ("paper (members)", "paper", LONG)


def test_table_says_of_how_many_runs_a_row_is_the_mean(runs, tmp_path):
    """It was under a title that names all seeds, or not there at all, by which run came first."""
    summaries = [run.summary() for run in (runs[0], make_run(tmp_path / "other", seed=1, students=("kd",)))]
    for order in (summaries, summaries[::-1]):
        rows = {row["label"]: row["cells"][0] for row in mean_rows(order)}
        assert rows["paper (1 of 2 runs)"] == f"{100 * value(runs[0], 'acc', Subject('student', name='paper')):.2f}"
        assert " ±" in rows["kd"]
        assert "ensemble of 2" in rows


def test_runs_of_one_seed_are_told_apart_by_their_teachers(two_sets):
    """What one of them had chosen, or how its members were trained, was said of both."""
    summaries = [run.summary() for run in two_sets]
    assert [summary["seed"] for summary in summaries] == [0, 1, 0, 1]
    assert seeds_in_words(summaries) == ["0 (teachers 1)", "1 (teachers 1)", "0 (teachers 2)", "1 (teachers 2)"]
    assert seeds_in_words(summaries[:2]) == ["0", "1"]
    for summary, form in zip(summaries, ("joint", "joint", "sequential", "joint"), strict=True):
        for row in summary["rows"]:
            if (row["kind"], row.get("name")) == ("student", "paper"):
                row["member_form"] = form
    console = Console(record=True, width=160)
    print_summaries(summaries, console=console)
    said = " ".join(console.export_text().split())
    assert "paper was trained with members joint at seed 0 (teachers 1), sequential at seed 0 (teachers 2)" in said


def test_an_ensemble_without_a_gain_leaves_no_share(tmp_path):
    folders = [make_run(tmp_path / f"{seed}", seed=seed, gain=-0.05) for seed in range(2)]
    evidence = evidence_of(folders)
    assert np.isnan(the_row(evidence, "kd").share["acc"].value)
    document = evidence_document(evidence)
    row = next(row for row in document["rows"] if row["label"] == "kd")
    assert row["share"]["acc"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "has seed 0 and the teachers of .*; the same training twice is no evidence"),
        ({"seed": 1, "name": "other"}, r"runs of different recipes \(made, other\)"),
        ({"seed": 1, "ensemble_size": 3}, "runs of ensembles of 2 and 3 cannot be averaged"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, changes, message):
    other = make_run(tmp_path / "other")
    rewrite(other, **changes)
    with pytest.raises(RunError, match=message):
        evidence_of([runs[0], other])


def test_a_row_that_is_not_there_cannot_be_compared_with(runs):
    known = rf"expected one of teacher, ensemble, kd, paper \(members\), paper, {LONG}"
    with pytest.raises(RunError, match=f"--against: found 'KD', which is not a row of every run; {known}"):
        evidence_of(runs, against="KD")


# predictions.npz


def test_predictions_of_another_summary_and_damaged_ones_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    found = read_per_image(run, run.summary())
    assert found is not None
    assert list(found[0]) == list(rows_by_subject(run.summary()))
    rows = run.summary()["rows"]
    rows[0]["raw"]["acc"] += 0.1
    with pytest.raises(
        RunError, match=r"predictions.npz: is not of the networks that summary.json is about. Remove it"
    ):
        read_per_image(run, run.summary() | {"rows": rows})
    for content in (b"", b"not a zip", (run.path / "predictions.npz").read_bytes()[:200]):
        (run.path / "predictions.npz").write_bytes(content)
        with pytest.raises(RunError, match=r"predictions.npz: damaged .* it trains nothing"):
            read_per_image(run, run.summary())


def test_predictions_that_would_run_code_are_refused(tmp_path):
    run = make_run(tmp_path / "run")
    with np.load(run.path / "predictions.npz") as file:
        arrays = dict(file)
    np.savez(run.path / "predictions.npz", **arrays | {"labels": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(RunError, match="damaged"):
        read_per_image(run, run.summary())


# What people see


def shown(folders: list[RunFolder], width: int, against: str | None = "kd") -> str:
    console = Console(width=width, file=io.StringIO(), markup=False)
    print_summaries([folder.summary() for folder in folders], console=console)
    print_evidence(evidence_of(folders, against=against), console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100, 150])
def test_names_are_whole_at_every_width_and_what_gives_way_is_named(runs, width):
    text = shown(runs, width)
    assert max(map(len, text.splitlines())) <= width or width == 80
    for table in re.split(r"^\s+network", text, flags=re.MULTILINE)[1:]:
        cells = table.replace("\n", " ")
        for name in ("paper (members)", "paper", "kd" if "share" in table.splitlines()[0] else "ensemble"):
            assert f" {name} " in cells
        found = re.findall(r"^\s*(student_with_a\S+)(?:.*\n\s*(\S*)\s*$)?", table, re.MULTILINE)
        assert any("".join(parts).startswith(LONG[:30]) for parts in found)
    dropped = re.findall(r"left out for want of room: ([^\n]*)", text)
    if width == 150:
        assert dropped == []
    if width == 80:
        assert dropped[0].startswith("NLL, ECE, cECE")


def test_columns_give_way_in_the_stated_order(runs):
    from edc.cli.tables.run import GIVES_WAY

    seen = []
    for width in range(150, 60, -5):
        console = Console(width=width, file=io.StringIO(), markup=False)
        print_summaries([folder.summary() for folder in runs], console=console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        dropped = re.search(r"left out for want of room: (.*(?:\n\S.*)*)", text)
        names = set(re.split(r"[,\s]+", dropped[1].strip())) if dropped else set()
        assert names == set(GIVES_WAY[: len(names)])
        seen.append(len(names))
    assert seen == sorted(seen)
    assert seen[-1] > 3


def test_one_run_alone_says_its_shares_in_words(runs):
    text, evidence = shown(runs[:1], 150, against=None), evidence_of(runs[:1])
    for name in STUDENTS:
        of_acc, of_nll = (the_row(evidence, name).share[m] for m in ("acc", "calibrated_nll"))
        said = [f"{100 * s.value:.0f} ({100 * s.low:.0f} to {100 * s.high:.0f}) %" for s in (of_acc, of_nll)]
        assert f"- {name} keeps {said[0]} in accuracy and {said[1]} in calibrated NLL" in text
    assert "(95 % intervals over test images)" in text


def test_a_share_of_the_likelihood_needs_a_temperature_of_all(tmp_path):
    """A student that is right on all validation images has none; against a calibrated ensemble it kept -779 %."""
    run = make_run(tmp_path / "one", seed=1)
    whole = evidence_of([run])
    for name, temperature, alike in (("kd", 1.0, False), ("all", 1.5, True)):
        rows = run.summary()["rows"]
        for row in rows:
            row["calibration_temperature"] = temperature if name in ("all", row.get("name")) else 1.5
        rewrite(run, rows=rows)
        evidence = evidence_of([run])
        assert evidence.uncalibrated == (() if alike else ("kd",))
        for row in evidence.rows:
            before = the_row(whole, row.label).share
            if row.label == "kd" and not alike:
                assert np.isnan(row.share["calibrated_nll"].value)
                assert row.share["acc"] == before["acc"]
            else:
                assert row.share == before
        text = " ".join(shown([run], 200, against=None).split())
        assert ("no share in calibrated NLL where some have no temperature (right on all): kd" in text) == (not alike)
        assert "- kd keeps" in text


def test_a_gain_that_cannot_be_told_from_none_has_no_share_of_it(tmp_path):
    """A quotient of noise would be thousands of per cent."""
    run = make_run(tmp_path / "one", seed=1, gain=1e-5)
    evidence = evidence_of([run])
    assert not evidence.gain["acc"].excludes(0)
    text = shown([run], 150, against=None)
    assert "% in accuracy" not in text
    assert "the gain in accuracy" in text
    assert "cannot be told from none" in text


def test_a_gain_of_nothing_at_the_digits_of_the_table_has_no_share_of_it(tmp_path):
    """On easy data it was 0.000 (0.000 to 0.000) nats, which excludes 0, and a student kept 1420345 % of it."""
    run = make_run(tmp_path / "one", seed=1)
    evidence = evidence_of([run])
    tiny = Interval(0.0004, 0.0003, 0.0005)
    tables = Console(file=io.StringIO(), width=200, record=True)
    print_evidence(dataclasses.replace(evidence, gain={"acc": tiny, "calibrated_nll": tiny}), console=tables)
    text = " ".join(tables.export_text().split())
    assert "% in accuracy" in text  # 0.04 points
    assert "% in calibrated NLL" not in text
    assert "the gain in calibrated NLL cannot be told from none" in text


@pytest.mark.parametrize("num_runs", [1, 3])
def test_an_ensemble_below_its_teachers_is_said_to_lose(tmp_path, num_runs):
    """It is sure, so "cannot be told from none" would be wrong; and a table of dashes alone says nothing."""
    folders = [make_run(tmp_path / f"{seed}", seed=seed, gain=-0.05) for seed in range(num_runs)]
    evidence = evidence_of(folders)
    assert evidence.gain["acc"].high < 0
    text = " ".join(shown(folders, 200, against=None).split())
    assert "the ensemble is worse than its teachers' mean in accuracy" in text
    assert "there is no gain to have a share of" in text
    assert "the gain in accuracy" not in text


def document(seed: int) -> dict[str, object]:
    """A recipe of the made runs."""
    students = {"kd": {"method": "kd"}}
    return {"name": "made", "seed": seed, "data": {"kind": "digits"}, "network": "wrn10x1", "students": students}


def test_runs_whose_epochs_were_chosen_by_another_measure_are_said_to_be_so(tmp_path):
    folders = [make_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    for folder in folders:
        (folder.student_path("kd")).mkdir(parents=True, exist_ok=True)
        (folder.student_path("kd") / "metrics.jsonl").write_text("")
        folder.inputs_path.write_text(json.dumps({HOW_EPOCHS_ARE_CHOSEN: "as deploy_by says"}))
        folder.recipe_path.write_text(yaml.safe_dump(made := document(folder.summary()["seed"])))
    assert not [note for note in evidence_of(folders).notes if "measure" in note]
    folders[2].inputs_path.write_text("{}")
    (note,) = [note for note in evidence_of(folders).notes if "measure" in note]
    assert note == (
        f"{folders[2].path}: chose the best epochs of its students by another measure than {folders[0].path}; "
        "the spread is not of seeds alone"
    )
    for folder in folders[:2]:  # asked for by the recipe, and so by all three
        folder.recipe_path.write_text(yaml.safe_dump(made | {"deploy_by": "accuracy"}))
    assert not [note for note in evidence_of(folders).notes if "measure" in note]


def test_runs_on_other_images_are_said_to_be_so_and_their_test_images_are_not_resampled(tmp_path):
    """Labels are equal in folders whose classes are equally large, whatever is on the images."""
    folders = [make_run(tmp_path / f"{seed}", seed=seed) for seed in range(3)]
    for folder, images, test in zip(folders, ("a", "b", "a"), ("c", "c", "d"), strict=True):
        folder.inputs_path.write_text(json.dumps({"the images": images, TEST_IMAGES: test}))
    rewrite(folders[1], data=folders[1].summary()["data"] | {"train": 240})
    evidence = evidence_of(folders)
    assert evidence.over == "seeds"
    learned = f"{folders[1].path}: learned from other content of the images than {folders[0].path}"
    assert [note for note in evidence.notes if "learned" in note] == [f"{learned}; the spread is not of seeds alone"]
    assert any("the runs have other test images than one another" in note for note in evidence.notes)
    assert evidence_of(folders[:2]).over == "seeds and test images"
    assert "100 to 240 training and 4,000 test images" in " ".join(shown(folders, 200).split())


def test_rows_that_cannot_be_told_apart_are_said_to_be_so(runs):
    evidence = evidence_of(runs, against="kd")
    alike = [row.label for row in evidence.rows if row.against and row.against["acc"].verdict == "not told apart"]
    assert alike
    line = next(line for line in shown(runs, 150).splitlines() if line.startswith("accuracy: "))
    assert line.endswith(" cannot be told from kd.")
    assert all(name in line for name in alike)


def test_json_is_the_summaries_and_with_a_named_row_all_that_was_found(runs):
    arguments = [str(run.path) for run in runs]
    summaries = [run.summary() for run in runs]
    assert edc("show", *arguments, "--json", cwd=runs[0].path).document == summaries
    document = edc("show", *arguments, "--against", "kd", "--json", cwd=runs[0].path).document
    assert document["summaries"] == summaries
    expected = json.loads(json.dumps(evidence_document(evidence_of(runs, against="kd"))))
    assert document["evidence"] == expected
    paper = next(row for row in expected["rows"] if row["label"] == "paper")
    assert paper["subject"] == {"role": "student", "name": "paper", "member": None}
    assert set(paper["against"]["acc"]) == {"over_seeds", "interval", "verdict"}


# The picture


def test_picture_has_a_marker_for_every_student_where_it_stands(runs):
    evidence = evidence_of(runs)
    root = ET.fromstring(picture(evidence, name="a <b> & c"))
    space = "{http://www.w3.org/2000/svg}"
    assert "a <b> & c: quality" in "".join(root.itertext())
    first, second = root.findall(f"{space}g")
    for panel, measure in ((first, "acc"), (second, "calibrated_nll")):
        markers = panel.findall(f"{space}use")
        places = [(float(each.get("x", "")), float(each.get("y", ""))) for each in markers]
        students = [the_row(evidence, name) for name in STUDENTS]
        cost = np.log([row.units or 0 for row in students])
        quality = [SIGN[measure] * row.figures[measure].mean for row in students]  # type: ignore[index]
        across, up = np.array(places).T
        assert np.corrcoef(across, cost)[0, 1] == pytest.approx(1, abs=1e-4)
        assert np.corrcoef(-up, quality)[0, 1] == pytest.approx(1, abs=1e-4), "higher is better in both"
    legend = [text.text for text in root.findall(f"{space}text")]
    assert set(STUDENTS) <= set(legend)


def test_picture_is_written_where_it_is_asked_for(runs, tmp_path):
    arguments = [str(run.path) for run in runs]
    called = edc("show", *arguments, "--plot", "p.svg", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    assert (tmp_path / "p.svg").read_text().startswith("<svg xmlns=")
    refused = edc("show", *arguments, "--plot", "p.png", cwd=tmp_path)
    assert refused.exit_code == 2
    assert "--plot: found p.png, expected a file that ends in .svg" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.svg"]


def test_picture_of_runs_whose_cost_is_not_known_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    rows = [{key: value for key, value in row.items() if key != "training"} for row in run.summary()["rows"]]
    rewrite(run, rows=rows)
    with pytest.raises(RunError, match="--plot: what the training of the students of run cost is not known"):
        picture(evidence_of([run]), name="x")


def test_interval_excludes_what_lies_outside():
    assert Interval(1.0, 0.5, 2.0).excludes(0.0)
    assert not Interval(1.0, -0.5, 2.0).excludes(0.0)


def test_old_runs_have_their_cost_from_the_recipe(tmp_path):
    """The run that edc 0.1.0 made: no training in its rows, no predictions."""
    run = RunFolder(Path(__file__).parent / "made_before/runs/made_before")
    evidence = evidence_of([run], against="kd")
    recipe, train = run.recipe(), run.summary()["data"]["train"]
    for name, units in (("kd", 2 + 3), ("latent_be", 2 + 6 + 6)):
        steps = recipe.training_of(recipe.students[name]).epochs * (train // recipe.training.batch_size)
        row = the_row(evidence, name)
        assert row.units in (units * steps, (units - 6) * steps)
        assert row.hours is not None
    assert evidence.over == "nothing"
