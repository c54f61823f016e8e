"""Every table at 80, 100 and 120 columns and through a pipe: names are whole, and what has no room is named."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import make_run
from rich.console import Console

from edc.benchmark.environment import environment_now
from edc.benchmark.judge.rows import Against, Row, RowQuality
from edc.benchmark.judge.statistics import AccuracyComparison, Estimate
from edc.benchmark.options import QUICK
from edc.benchmark.regression.changes import Change, Comparison
from edc.benchmark.result import BenchResult
from edc.benchmark.teachers import Teachers
from edc.cli.tables.artifact import print_artifact
from edc.cli.tables.bench import QUALITY_GIVES_WAY, print_bench
from edc.cli.tables.compare import print_comparison
from edc.cli.tables.doctor import print_checks
from edc.cli.tables.evidence import print_evidence
from edc.cli.tables.profile import print_profile
from edc.cli.tables.recipes import print_recipes
from edc.cli.tables.run import print_costs, print_summaries
from edc.console import WIDTH_OF_A_FILE, console_on, fixed
from edc.deploy.artifact.manifest import ArtifactFile, Manifest, ParityFigures
from edc.deploy.onnx.parity import PairedAccuracy
from edc.evidence.over_seeds import evidence_of
from edc.metrics import Quality
from edc.recipe.shipped import ShippedRecipe
from edc.runs.cost import Cost
from edc.runs.profile import OperatorTime, RangeTime, StepProfile
from edc.subject import Subject
from edc.system.doctor import Check
from edc.teachers.reading import Answered, Reading
from edc.teachers.roll_call.words import print_roll_call
from edc.train.average import decay_of

LONG = "student_with_a_name_of_forty_characters_x"
OPERATOR = "aten::convolution_backward_overrideable"
SCORES = Quality(acc=0.6971, nll=0.862, ece=0.031, brier=0.41, balanced_acc=0.6512, macro_f1=0.6433)


def bench_result() -> BenchResult:
    rows, students = [], frozenset({f"{LONG} on onnxruntime-cuda", f"{LONG} (int8) on onnxruntime-cuda"})
    difference = Estimate(-0.0254, -0.0329, -0.0218)
    accuracy = AccuracyComparison(PairedAccuracy(0.7, 0.67, 0.03, 9, 6, 0.1, 1000), difference, 0.005, 0.1, "worse")
    for backend in ("openvino", "onnxruntime-cuda"):
        baseline = f"ensemble, merged on {backend}"
        for subject in (
            Subject("teacher", member=11),
            Subject("ensemble", ensemble_form="merged"),
            Subject("members", name="latent_be_tdiv_sdiv"),
            Subject("student", name=LONG),
            Subject("student", name=LONG, precision="int8"),
        ):
            for batch in (1, 64):
                speed = Estimate(14.03, 13.95, 14.14)
                against = () if subject.is_ensemble else (Against(baseline, "ensemble", speed, accuracy),)
                rows.append(
                    Row(
                        subject,
                        backend,
                        batch,
                        p50_ms=Estimate(104.327, 104.1, 104.5),
                        file_bytes=44_000_000,
                        quality=RowQuality(SCORES, SCORES, 1.2, 0.9),
                        against=against,
                    )
                )
    return BenchResult(
        artifact="made",
        deploy=LONG,
        ensemble_size=12,
        command="",
        quick=True,
        seed=0,
        num_test_images=1000,
        num_validation_images=100,
        test_digest="",
        class_names=("ok", "crack"),
        plan=QUICK.timing,
        environment=environment_now(threads=2),
        rows=tuple(rows),
        parameters={row.key: 11_700_000 for row in rows},
        flops={},
        dee={row.key: 3.63 for row in rows},
        students=students,
        few_classes={f"{LONG} on openvino": "predicts `ok` for all 1,000 images (`ok` alone is right on 62.0%)"},
        teachers=Teachers(11, is_chosen=True, test_acc=(0.66, 0.67) * 6),
        majority=("ok", 0.62),
    )


def manifest() -> Manifest:
    parity = ParityFigures(
        max_abs_diff=1e-6, mean_abs_diff=1e-7, logit_scale=3.0, cosine_min=1.0, argmax_agreement=1.0, num_images=9,
        batch_sizes=(1,),
    )  # fmt: skip
    file = ArtifactFile(
        path=f"baseline/{LONG}.sm120.int8-trt.engine", role="student", format="tensorrt", precision="int8-trt",
        sha256="0" * 64, bytes=44_000_000, parity=parity,
    )  # fmt: skip
    other = file.model_copy(update={"path": "student.onnx", "parity": None})
    return Manifest.model_construct(files=(file, other))


def changes() -> Comparison:
    estimate = Estimate(1.101, 1.052, 1.153)
    name = f"{LONG} on onnxruntime-cuda"
    found = [Change(name, batch, "p50_ms", "worse", 0.1, 0.1101, estimate, estimate) for batch in (1, 64)]
    return Comparison(tuple(found), (), 1.0, 0.05, relative=False)


def answered() -> list[Answered]:
    reading = Reading(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "torchvision", 224, weights="state_dict_ema of the file"
    )
    return [Answered(m, f"resnet50_fold_{m}_of_twelve_the_best_epoch.pth", 0.9, 0.1, 1.2, reading) for m in range(2)]


def costs() -> list[Cost]:
    averaged = Cost("averaged", 4, 10_980, 0.1, averaged_steps=1 / (1 - 0.997))
    return [Cost("4 teachers", 3, 123_456, 0.123), Cost(LONG, 22, 1_234_567, 1.234, "sequential"), averaged]


def profile() -> StepProfile:
    return StepProfile(
        LONG, "untrained", "cpu", 1, 128, 5, 12.0, (RangeTime("perturbation: teachers", 1, 0.5, 2, None),),
        (OperatorTime(OPERATOR, 1.0, 2),), None, 10, "trace.json.gz",
    )  # fmt: skip


RECIPES = [ShippedRecipe("imagenet_r18_unlabelled", "a.yaml", "words " * 30, "a GPU " * 9)]
CHECKS = [Check("onnxruntime-gpu (a CUDA session)", "missing", "not there", "pip " * 30)]
ROLL = answered()
TABLES: dict[str, tuple[Callable[[Console, Path], None], tuple[str, ...]]] = {
    "bench": (
        lambda console, _: print_bench(bench_result(), console=console),
        (f"{LONG} (int8)", "latent_be_tdiv_sdiv (members)", "teacher 11", "onnxruntime-cuda"),
    ),
    "comparison": (lambda console, _: print_comparison(changes(), console=console), (f"{LONG} on onnxruntime-cuda",)),
    "artifact": (
        lambda console, _: print_artifact(manifest(), Path("export/made"), console=console),
        (f"baseline/{LONG}.sm120.int8-trt.engine", "student.onnx"),
    ),
    "roll call": (
        lambda console, _: print_roll_call(ROLL, num_images=400, are_own=True, console=console),
        tuple(f"{one.member}:{one.name}" for one in ROLL),
    ),
    "costs": (lambda console, _: print_costs(costs(), console=console), ("4 teachers", f"{LONG} (sequential members)")),
    "profile": (lambda console, _: print_profile(profile(), console=console), (OPERATOR, "perturbation: teachers")),
    "recipes": (lambda console, _: print_recipes(RECIPES, console=console), (RECIPES[0].name,)),
    "doctor": (lambda console, _: print_checks(CHECKS, console=console), (CHECKS[0].name,)),
    "summary": (lambda console, path: print_summaries([run_at(path).summary()], console=console), (LONG, "paper")),
    "evidence": (
        lambda console, path: print_evidence(evidence_of([run_at(path)], against="kd"), console=console),
        (LONG, "teacher"),
    ),
}


def run_at(path: Path):
    return make_run(path / "run")


@pytest.fixture(params=[80, 100, 120, WIDTH_OF_A_FILE])
def console(request: pytest.FixtureRequest) -> Console:
    return Console(width=request.param, file=io.StringIO(), markup=False)


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (0.997, "averages over 333 steps, 3.0% of its 10,980"),
        (0.9997, "averages over 3,333 steps, 30.4% of its 10,980; over 20% and more, averages were worse"),
        (0.99999, "averages over 100,000 steps, 910.7% of its 10,980; "),
        (0.99999, "Try ema: auto"),
    ],
)
def test_an_average_is_said_as_a_share_of_its_training(decay, words):
    console = Console(width=300, file=io.StringIO())
    print_costs([Cost("kd", 4, 10_980, 0.1, averaged_steps=1 / (1 - decay))], console=console)
    assert words in console.file.getvalue()


def test_auto_is_not_advised_to_a_training_so_short_that_auto_says_the_same():
    console = Console(width=300, file=io.StringIO())
    averaged = 1 / (1 - decay_of("auto", num_steps=10))
    print_costs([Cost("kd", 4, 10, 0.1, averaged_steps=averaged)], console=console)
    assert "averages over 2 steps, 20.0% of its 10\n" in console.file.getvalue()


@pytest.mark.parametrize("table", TABLES)
def test_names_are_whole_and_nothing_is_cut_off(table, console, tmp_path):
    show, names = TABLES[table]
    show(console, tmp_path)
    text = console.file.getvalue()
    assert "…" not in text
    in_tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert max(map(len, in_tables)) <= console.width
    for name in names:
        assert name.replace(" ", "") in [each[: len(name.replace(" ", ""))] for each in names_in(text, name)], text


def names_in(text: str, name: str) -> list[str]:
    """Returns what stands where the name begins, with what goes on below in the same column, without spaces."""
    lines, found = text.splitlines(), []
    for number, line in enumerate(lines):
        at = line.find(name[:30])
        if at < 0:
            continue
        parts = [re.split(r"\s{2,}", line[at:])[0]]
        for below in lines[number + 1 :]:
            part = re.split(r"\s{2,}", below[at:])[0]
            if below[:at].strip() or not part.strip():
                break
            parts.append(part)
        found.append("".join(parts).replace(" ", ""))
    return found


def test_a_pipe_is_as_wide_as_a_file():
    assert console_on(stderr=False).width == WIDTH_OF_A_FILE


def test_columns_of_a_bench_give_way_in_the_stated_order_and_speed_never_does():
    seen = []
    for width in (260, 150, 120, 100, 80):
        console = Console(width=width, file=io.StringIO(), markup=False)
        print_bench(bench_result(), console=console)
        text = console.file.getvalue()
        left_out = re.search(r"left out for want of room: (.*)", text)
        gone = left_out[1].strip().split(", ") if left_out else []
        assert set(gone) == set(QUALITY_GIVES_WAY[: len(gone)])
        assert all(heading in text for heading in ("ms @1", "x @1", "ms @64", "x @64", "acc %", "vs ens."))
        seen.append(len(gone))
    assert seen == sorted(seen)
    assert seen[0] == 0


def test_bench_says_who_predicts_one_class_and_what_one_teacher_is():
    console = Console(width=200, file=io.StringIO(), markup=False)
    print_bench(bench_result(), console=console)
    text = console.file.getvalue()
    assert f"{LONG}: predicts `ok` for all 1,000 images" in text
    assert "always `ok`: acc 62.00 %" in text
    mean = "their mean in the run, on all its test images, is 66.50 ±0.52 %"
    assert f"one teacher: teacher 11, the best of 12 on validation; {mean}" in text
    assert replace(bench_result().teachers, is_chosen=False).words_where(drawn=False) == ""


def test_of_two_students_of_one_name_the_one_of_the_other_artifact_is_named_as_in_the_table():
    made, console = bench_result(), Console(width=200, file=io.StringIO(), markup=False)
    other = replace(made.rows[-1], artifact="other")
    said = {other.key: "predicts `no` for all 1,000 images (`ok` alone is right on 62.0%)"}
    both = replace(made, rows=(*made.rows, other), few_classes=made.few_classes | said)
    print_bench(replace(both, environment=replace(made.environment, threads=1)), console=console)
    lines = console.file.getvalue().splitlines()
    assert [line for line in lines if "predicts `no`" in line] == [f"other: {other.subject.label}: {said[other.key]}"]
    assert [line for line in lines if "predicts `ok`" in line] == [f"{LONG}: {made.few_classes[f'{LONG} on openvino']}"]
    assert ": 1 thread on " in lines[0]


@pytest.mark.parametrize(("value", "words"), [(1.23456, "1.235"), (99_999.4, "99999.400"), (-1.2345e19, "-1.23e+19")])
def test_numbers_of_networks_that_diverged_stay_short(value, words):
    assert fixed(value, 3) == words
