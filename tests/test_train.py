"""The training loop: schedule, resuming bit for bit, signals, divergence, and two processes against one."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import environment
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from training_cases import (
    BROKEN_CASES,
    CASES,
    DATA,
    STEPS,
    TRAINING,
    broken_data,
    plain,
    raise_signal_at,
    run_case,
    said_of_broken,
    small_data,
    write_broken_images,
)
from training_cases import RECIPE as APART_RECIPE

from edc.data import load_data
from edc.errors import DivergedError, Interrupted, RecipeError
from edc.method.batch_ensemble import to_batch_ensemble
from edc.recipe import TrainingSection
from edc.recipe.loading import load_recipe
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.runs.student import load_student
from edc.runs.summary import summarise
from edc.teachers.ensemble import load_teachers
from edc.train.checkpoint import load_checkpoint
from edc.train.evaluate import Validated, evaluate_accuracy, predict_logits, validated
from edc.train.schedule import build_optimizer, learning_rate_at

TEACHER, STUDENT = "teacher, float32", "tdiv_sdiv, float64"
NUM_CLASSES = 3


# Schedule and optimizer -----------------------------------------------------------------------------------------------


def optax_warmup_cosine(count: int, peak: float, warmup: int, total: int) -> float:
    """optax.join_schedules([linear_schedule(0, peak, warmup), cosine_decay_schedule(peak, total - warmup)])."""
    if count < warmup:
        return (0.0 - peak) * (1 - min(count, warmup) / warmup) + peak
    progress = min(count - warmup, total - warmup) / (total - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(200, 5, 351), (10, 0, 4), (3, 2, 1)])
def test_learning_rate_is_linear_from_zero_then_half_a_cosine(epochs, warmup, steps):
    training = TrainingSection(epochs=epochs, warmup_epochs=warmup, learning_rate=0.3)
    for step in [*range(0, epochs * steps, 37), warmup * steps, epochs * steps - 1]:
        expected = optax_warmup_cosine(step, 0.3, warmup * steps, epochs * steps)
        assert learning_rate_at(step, training, steps) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_learning_rate_at_the_corners():
    training = TrainingSection(epochs=10, warmup_epochs=2, learning_rate=0.4)
    rates = [learning_rate_at(step, training, 5) for step in range(50)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.2)
    assert rates[10] == max(rates) == 0.4
    assert rates[30] == pytest.approx(0.2)
    assert 0 < rates[49] < 0.4 * 0.002


def test_sgd_without_momentum_is_plain_gradient_descent():
    weight = torch.nn.Linear(1, 1, bias=False).double()
    optimizer = build_optimizer(weight, TrainingSection(momentum=0.0, weight_decay=0.1, learning_rate=0.5))
    start = weight.weight.item()
    (3 * weight.weight.sum()).backward()
    optimizer.step()
    assert weight.weight.item() == pytest.approx(start - 0.5 * (3 + 0.1 * start), abs=1e-12)


def test_adamw_decays_weights_apart_from_the_gradient():
    weight = torch.nn.Linear(1, 1, bias=False).double()
    optimizer = build_optimizer(weight, TrainingSection(optimizer="adamw", weight_decay=0.1, learning_rate=0.5))
    start = weight.weight.item()
    (3 * weight.weight.sum()).backward()
    optimizer.step()  # the first step of Adam is the sign of the gradient
    assert weight.weight.item() == pytest.approx(start * (1 - 0.5 * 0.1) - 0.5 * 3 / (3 + 1e-8), abs=1e-9)


# What a training leaves -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, accelerator) -> dict[str, tuple[Path, list[float]]]:
    """Folder and losses of both trainings, run from start to end by one process on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("undisturbed")
        found[case] = folder, run_case(case, folder, accelerator)[1]
    torch.set_num_threads(threads)
    return found


def metrics_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_metrics_have_a_line_for_every_epoch(undisturbed):
    folder, losses = undisturbed[TEACHER]
    rows = metrics_of(folder)
    assert [row["epoch"] for row in rows] == list(range(6))
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]
    for row in rows:
        assert row["loss"] == pytest.approx(np.mean(losses[row["step"] - 4 : row["step"]]), rel=1e-6)
        assert row["learning_rate"] == learning_rate_at(row["step"] - 1, TRAINING, 4)
    assert list((folder / "tensorboard").glob("events*"))
    assert not (folder / "checkpoint.pt").exists()


def test_trained_network_carries_no_gradients_on(tmp_path, accelerator):
    network, _ = run_case(TEACHER, tmp_path, accelerator)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_training_learns(undisturbed):
    for case, (_, losses) in undisturbed.items():
        assert np.mean(losses[-4:]) < np.mean(losses[:4]), case
    assert metrics_of(undisturbed[TEACHER][0])[-1]["validation_acc"] > 0.9


def test_the_weights_are_those_of_the_best_epoch_the_later_of_equals(tmp_path, accelerator, undisturbed):
    good = plain(0)
    good.load_state_dict(load_file(undisturbed[TEACHER][0] / "weights.safetensors"))
    states = []

    def on_validation(trained: torch.nn.Module) -> torch.nn.Module:
        states.append({key: value.clone() for key, value in trained.state_dict().items()})
        return good if len(states) in (2, 4) else plain(9)

    network, _ = run_case(TEACHER, tmp_path, accelerator, on_validation=on_validation)
    accuracies = [row["validation_acc"] for row in metrics_of(tmp_path)]
    assert accuracies[1] == accuracies[3] > 0.9 > max(accuracies[0], accuracies[2], *accuracies[4:])
    saved = load_file(tmp_path / "weights.safetensors")
    assert saved.keys() == network.state_dict().keys() == states[3].keys()
    for key, value in network.state_dict().items():
        assert torch.equal(value, states[3][key])
        assert torch.equal(saved[key], states[3][key])
    assert not torch.equal(states[3]["network.stem.weight"], states[5]["network.stem.weight"])


class Answers(torch.nn.Module):
    """Another class than `good`'s for some images, chosen by their pixels, with a margin of their own."""

    def __init__(self, good: torch.nn.Module, *, tenths: int, margin: float) -> None:
        super().__init__()
        self.good, self.tenths, self.margin = good, tenths, margin

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        right = self.good(pixels).argmax(1)
        errs = (pixels.double().sum((1, 2, 3)) * 1e4).long() % 10 < self.tenths
        margins = torch.where(errs, self.margin, 5.0)[:, None]
        return margins * torch.nn.functional.one_hot((right + errs.long()) % NUM_CLASSES, NUM_CLASSES)


@pytest.mark.parametrize(("by", "best"), [("accuracy", 1), ("calibrated_nll", 3)])
def test_the_measure_chooses_the_best_epoch(tmp_path, accelerator, undisturbed, by, best):
    """Answers that are wrong more often, and then not sure, have the better likelihood and the worse accuracy."""
    good = plain(0)
    good.load_state_dict(load_file(undisturbed[TEACHER][0] / "weights.safetensors"))
    looks = {1: Answers(good, tenths=2, margin=5.0), 3: Answers(good, tenths=3, margin=0.1)}
    states = []

    def on_validation(trained: torch.nn.Module) -> torch.nn.Module:
        states.append({key: value.clone() for key, value in trained.state_dict().items()})
        return looks.get(len(states) - 1, plain(9))

    network, _ = run_case(TEACHER, tmp_path, accelerator, on_validation=on_validation, best_by=by)
    rows = metrics_of(tmp_path)
    assert rows[1]["validation_acc"] > rows[3]["validation_acc"] + 0.05
    if by == "calibrated_nll":
        assert rows[3]["validation_calibrated_nll"] < rows[1]["validation_calibrated_nll"] - 0.03
    assert all(torch.equal(value, states[best][key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_figures_of_validation_are_those_by_hand(accelerator, undisturbed, precision):
    network, images = plain(3).eval(), small_data().validation
    network.load_state_dict(load_file(undisturbed[TEACHER][0] / "weights.safetensors"))
    with torch.no_grad():  # so that some images are answered wrong
        list(network.parameters())[-1].add_(torch.tensor([0.0, 3.0, -3.0]))
    training = TRAINING.model_copy(update={"precision": precision})
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network(torch.stack([images[i][0] for i in range(len(images))]).float() / 255).float().double()
    labels = images.labels
    best = minimize_scalar(
        lambda log_t: float(torch.nn.functional.cross_entropy(logits / np.exp(log_t), labels)),
        bounds=(-9, 9),
        method="bounded",
        options={"xatol": 1e-9},
    )
    by_acc, by_nll = (
        validated(network, images, DATA, training, accelerator, by=by) for by in ("accuracy", "calibrated_nll")
    )
    acc = float((logits.argmax(1) == labels).double().mean())
    assert 0.4 < acc < 1
    assert (by_acc.acc, by_acc.calibrated_nll, by_acc.score) == (acc, None, -acc)
    assert by_nll.acc == acc
    assert by_nll.score == by_nll.calibrated_nll == pytest.approx(best.fun, rel=1e-6 if precision == "fp32" else 1e-3)


def test_answers_that_are_not_finite_are_the_worst():
    assert Validated(0.1, float("nan")).score == Validated(0.1, float("inf")).score == float("inf")


def test_validation_can_be_every_other_epoch_and_always_looks_at_the_last(tmp_path, accelerator):
    training = TRAINING.model_copy(update={"validate_every": 2, "epochs": 5, "checkpoint_every": 3})
    run_case(TEACHER, tmp_path, accelerator, training=training)
    assert ["validation_acc" in row for row in metrics_of(tmp_path)] == [False, True, False, True, True]


def test_finished_training_is_not_run_again(tmp_path, accelerator, undisturbed):
    folder, _ = undisturbed[TEACHER]
    before = (folder / "weights.safetensors").stat().st_mtime_ns
    network, losses = run_case(TEACHER, folder, accelerator)
    assert losses == []
    assert (folder / "weights.safetensors").stat().st_mtime_ns == before
    saved = load_file(folder / "weights.safetensors")
    assert all(torch.equal(value, saved[key]) for key, value in network.state_dict().items())


# Stopping and going on ------------------------------------------------------------------------------------------------


def assert_ends_equal(folder: Path, expected: Path) -> None:
    """Bit-equal weights; the same lines of metrics, losses to the rounding of a sum in another order."""
    found, wanted = (load_file(path / "weights.safetensors") for path in (folder, expected))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    for row, wanted_row in zip(without_time(metrics_of(folder)), without_time(metrics_of(expected)), strict=True):
        assert row.pop("loss") == pytest.approx(wanted_row.pop("loss"), rel=1e-12)
        assert row == wanted_row
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize(("case", "step"), [(TEACHER, 0), (TEACHER, 7), (TEACHER, 22), (STUDENT, 6)])
def test_signal_saves_after_its_step_and_the_resumed_training_ends_bit_equal(
    tmp_path, accelerator, undisturbed, one_thread, case, step
):
    with pytest.raises(Interrupted) as caught:
        run_case(case, tmp_path, accelerator, before_step=raise_signal_at(step))
    assert caught.value.exit_code == 130
    assert caught.value.saved
    network = plain(0, CASES[case])
    network = network if case == TEACHER else to_batch_ensemble(network, 2)
    position = load_checkpoint(tmp_path / "checkpoint.pt", network, build_optimizer(network, TRAINING))
    assert position.epoch * 4 + position.batch == step + 1
    assert not (tmp_path / "weights.safetensors").exists()
    _, losses = run_case(case, tmp_path, accelerator, first_step=step + 1)
    assert losses == undisturbed[case][1][step + 1 :]
    assert_ends_equal(tmp_path, undisturbed[case][0])


def test_several_interruptions_in_one_epoch_end_bit_equal(tmp_path, accelerator, undisturbed, one_thread):
    for step in (5, 6, 7):
        with pytest.raises(Interrupted):
            run_case(
                TEACHER, tmp_path, accelerator, before_step=raise_signal_at(step), first_step=step if step > 5 else 0
            )
    run_case(TEACHER, tmp_path, accelerator, first_step=8)
    assert_ends_equal(tmp_path, undisturbed[TEACHER][0])


def test_signal_in_the_last_validation_keeps_the_finished_weights_and_still_stops(
    tmp_path, accelerator, undisturbed, one_thread
):
    seen = []

    def on_validation(_trained: torch.nn.Module) -> None:
        seen.append(1)
        if len(seen) == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as caught:
        run_case(TEACHER, tmp_path, accelerator, on_validation=on_validation)
    assert caught.value.exit_code == 75
    assert_ends_equal(tmp_path, undisturbed[TEACHER][0])


def test_second_signal_acts_as_usual(tmp_path, accelerator):
    def twice(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    # A shell starts background jobs with SIGINT ignored, and a test run may be one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_case(TEACHER, tmp_path, accelerator, before_step=twice)
    finally:
        signal.signal(signal.SIGINT, before)


def test_signal_handlers_are_put_back(tmp_path, accelerator):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        run_case(TEACHER, tmp_path, accelerator, before_step=raise_signal_at(1))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_cut_off_between_checkpoints_repeats_the_epochs_since(tmp_path, accelerator, undisturbed, one_thread):
    """As a power cut does: no chance to save. Lines of the repeated epochs must not stand twice in the metrics."""
    training = TRAINING.model_copy(update={"checkpoint_every": 2})

    def cut(step: int) -> None:
        if step == 14:  # in epoch 3; the last checkpoint is of epochs 0 and 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_case(TEACHER, tmp_path, accelerator, training=training, before_step=cut)
    assert [row["epoch"] for row in metrics_of(tmp_path)] == [0, 1, 2]
    _, losses = run_case(TEACHER, tmp_path, accelerator, training=training, first_step=8)
    assert losses == undisturbed[TEACHER][1][8:]
    assert_ends_equal(tmp_path, undisturbed[TEACHER][0])


RECIPE = """
name: r
data: {kind: synthetic, num_images: 64, image_size: 8, num_classes: 3, validation: 33, test: 35, crop_padding: 1}
network: cifar_resnet8
training: {epochs: 16, warmup_epochs: 1, batch_size: 16, learning_rate: 0.02}
teachers: {ensemble_size: 2}
students:
  kd: {method: kd, epochs: 2}
  be: {method: latent_be, perturbation: tdiv_sdiv}
"""


def start_and_send(folder: Path, watched: str, number: int) -> tuple[int, str]:
    """Starts the real command and sends it a signal once `watched` has a second line; returns exit code and stderr."""
    command = [sys.executable, "-m", "edc", "distill", "recipe.yaml", "--device", "cpu", "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if any(len(path.read_text().splitlines()) >= 2 for path in folder.glob(watched)):
                process.send_signal(number)
                break
            time.sleep(0.005)
        _, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, stderr


@pytest.mark.slow
def test_run_stopped_by_ctrl_c_and_killed_ends_bit_equal(tmp_path, accelerator, one_thread):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code, stderr = start_and_send(tmp_path, "runs/teachers/*/metrics.jsonl", signal.SIGINT)
    assert code == 130, stderr
    assert "Traceback" not in stderr
    assert "edc distill recipe.yaml" in stderr, "does not say how to go on"
    assert len(list(tmp_path.glob("runs/teachers/*/checkpoint.pt"))) == 1

    code, stderr = start_and_send(tmp_path, "runs/r/students/be/metrics.jsonl", signal.SIGKILL)
    assert code == -signal.SIGKILL, stderr
    assert (tmp_path / "runs/r/students/kd/weights.safetensors").is_file()
    assert not (tmp_path / "runs/r/students/be/weights.safetensors").exists()

    recipe = load_recipe(tmp_path / "recipe.yaml")
    resumed = distill(recipe, run=RunFolder(tmp_path / "runs/r"), accelerator=accelerator)
    expected = distill(recipe, run=RunFolder(tmp_path / "undisturbed/r"), accelerator=accelerator)
    files = sorted(
        path.relative_to(tmp_path / "undisturbed") for path in (tmp_path / "undisturbed").rglob("*.safetensors")
    )
    assert len(files) == 5  # two teachers, kd, and be as trained and as chosen
    for file in files:
        assert_ends_equal((tmp_path / "runs" / file).parent, (tmp_path / "undisturbed" / file).parent)
    assert resumed["rows"] == expected["rows"]
    for document in ("summary.json", "inputs.json", "recipe.yaml"):  # to the last digit of every figure
        assert (tmp_path / "runs/r" / document).read_bytes() == (tmp_path / "undisturbed/r" / document).read_bytes()


# Divergence -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_the_step_and_keeps_the_checkpoint(
    tmp_path, accelerator, undisturbed, one_thread, bad
):
    def change(step: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * bad if step >= 13 else loss

    with pytest.raises(DivergedError) as caught:
        run_case(TEACHER, tmp_path, accelerator, change_loss=change)
    checkpoint = tmp_path / "checkpoint.pt"
    assert f"{TEACHER}: the loss became {bad} at step 13 (epoch 3); {checkpoint} holds the last good state" in str(
        caught.value
    )
    assert caught.value.exit_code == 1
    assert not (tmp_path / "weights.safetensors").exists()
    _, losses = run_case(TEACHER, tmp_path, accelerator, first_step=12)  # from the last good epoch
    assert losses == undisturbed[TEACHER][1][12:]
    assert_ends_equal(tmp_path, undisturbed[TEACHER][0])


def test_real_divergence_before_the_first_checkpoint_says_so(tmp_path, accelerator):
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "warmup_epochs": 0})
    with pytest.raises(
        DivergedError, match=r"the loss became (nan|inf) at step [1-3] \(epoch 0\); there was no checkpoint"
    ):
        run_case(TEACHER, tmp_path, accelerator, training=training)
    assert not list(tmp_path.glob("*.pt"))
    assert not list(tmp_path.glob("*.safetensors"))


def test_divergence_and_a_signal_in_one_step_do_not_save_the_broken_state(tmp_path, accelerator):
    with pytest.raises(DivergedError, match="at step 5"):
        run_case(
            TEACHER,
            tmp_path,
            accelerator,
            before_step=raise_signal_at(5),
            change_loss=lambda step, loss: loss * math.nan if step == 5 else loss,
        )
    network = plain(0)
    position = load_checkpoint(tmp_path / "checkpoint.pt", network, build_optimizer(network, TRAINING))
    assert (position.epoch, position.batch) == (1, 0)


# Two processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_loss_curve_of_one_at_the_same_global_batch(two_processes, undisturbed, case):
    folder, losses = undisturbed[case]
    found = [process["trainings"][case] for process in two_processes]
    curve = np.mean([process["losses"] for process in found], axis=0)
    assert len(curve) == STEPS >= 20
    tolerance = 1e-5 if "float32" in case else 1e-9
    np.testing.assert_allclose(curve, losses, rtol=tolerance, atol=tolerance)
    assert found[0]["losses"] != found[1]["losses"], "both processes saw the same images"
    weights = load_file(folder / "weights.safetensors")
    for key, value in found[0]["state"].items():
        assert torch.equal(value, found[1]["state"][key]), "the processes have drifted apart"
        if value.dtype == torch.float64:
            torch.testing.assert_close(value, weights[key], rtol=1e-8, atol=1e-8)


def test_moving_average_of_two_processes_is_that_of_one(two_processes, undisturbed):
    folder, _ = undisturbed["views, float64"]
    expected = load_file(folder / "ema.safetensors")
    for process in two_processes:
        found = process["trainings"]["views, float64"]
        assert found["average"].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found["average"][key], value, rtol=1e-8, atol=1e-8)
        assert found["ema_validation_acc"] == [row["ema_validation_acc"] for row in metrics_of(folder)]


def test_signal_to_one_process_stops_both_at_one_step_and_the_resumed_run_ends_bit_equal(two_processes):
    for process in two_processes:
        assert process["interrupted"]["stopped"]
        assert 0 < process["interrupted"]["steps_left"] < STEPS - 9
        for key, value in process["trainings"][TEACHER]["state"].items():
            assert torch.equal(process["interrupted"]["state"][key], value)
    assert two_processes[0]["interrupted"]["steps_left"] == two_processes[1]["interrupted"]["steps_left"]


def test_signal_to_one_process_after_the_last_step_stops_both(two_processes):
    assert [process["stopped_late"] for process in two_processes] == [True, True]


def test_processes_with_statistics_of_their_own_train_one_network_and_resume_bit_equal(two_processes):
    first, second = (process["norms apart"] for process in two_processes)
    assert first["state"].keys() == second["state"].keys()
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
        assert torch.equal(value, first["resumed"][key]), key
        assert torch.equal(value, second["resumed"][key]), key
    together = two_processes[0]["trainings"]["sequential, float64"]["state"]
    assert any(not torch.equal(value, together[key]) for key, value in first["state"].items()), "they were synchronised"


def test_summary_of_processes_with_statistics_of_their_own_is_of_the_saved_weights(two_processes, accelerator):
    apart = two_processes[0]["norms apart"]
    run, data = RunFolder(Path(apart["runs"]) / "apart"), load_data(APART_RECIPE.data)
    teachers = load_teachers(APART_RECIPE, data, teachers_path=run.teachers_path, accelerator=accelerator)
    students = {"be": load_student(APART_RECIPE, "be", data, run=run)}
    expected = summarise(APART_RECIPE, data, teachers, students, run=run, accelerator=accelerator)
    assert [row["subject"] for row in expected["rows"]][2:] == ["ensemble", "be (members)", "be"]
    for found in (apart["summary"], two_processes[1]["norms apart"]["summary"], run.summary()):
        for row, wanted in zip(found["rows"], expected["rows"], strict=True):
            for part in ("raw", "calibrated"):
                assert row[part] == pytest.approx(wanted[part], rel=1e-4, abs=1e-6), (row["subject"], part)


@pytest.mark.parametrize(("way", "limit"), BROKEN_CASES)
def test_two_processes_refuse_broken_images_where_one_does(tmp_path, two_processes, accelerator, way, limit):
    write_broken_images(tmp_path / "images")
    data = broken_data(tmp_path / "images", limit)
    expected = said_of_broken(way, data, tmp_path / "run", accelerator)
    found = [process["unreadable"][way, limit] for process in two_processes]
    assert found[0]["said"] == found[1]["said"], "the processes do not say the same"
    for said in (expected, found[0]["said"]):
        if limit == 0 or way != "training":  # no image that is evaluated is replaced
            assert re.fullmatch(r".*/train/(dark|light)/\d\d.png: not a readable image .*", said)
        elif limit == 0.1:
            assert said.endswith("4 of 32 images could not be read: more than data.max_bad_fraction, 0.1, allows")
        else:
            assert said == ""
    if limit and way == "training":
        assert max(process["met"] for process in found) <= 3, "one process alone has met too many"
        assert sum(process["met"] for process in found) >= 4


def test_lock_of_another_job_is_reported_by_every_process(two_processes):
    for process in two_processes:
        assert "another process is training this teacher; wait for it" in process["locked"]


def test_predictions_of_two_processes_are_those_of_one_in_order(two_processes, accelerator):
    data, members = small_data(), to_batch_ensemble(plain(5), 2)
    expected = {
        "plain": predict_logits(plain(5), data.test, DATA, TRAINING, accelerator),
        "members": predict_logits(members, data.test, DATA, TRAINING, accelerator),
    }
    with torch.no_grad():
        by_hand = plain(5).eval()(data.test.images.float() / 255)
    np.testing.assert_allclose(expected["plain"][0], by_hand.numpy(), rtol=1e-5, atol=1e-5)
    for process in two_processes:
        for name, logits in expected.items():
            np.testing.assert_allclose(process["predictions"][name], logits, rtol=1e-5, atol=1e-5)


def test_accuracy_counts_every_image_once(two_processes, accelerator):
    data, network = small_data(), plain(5)
    with torch.no_grad():
        right = int((network.eval()(data.test.images.float() / 255).argmax(1) == data.test.labels).sum())
    assert evaluate_accuracy(network, data.test, DATA, TRAINING, accelerator) == right / 35
    assert [process["predictions"]["accuracy"] for process in two_processes] == [right / 35] * 2


def test_batch_that_processes_cannot_share_is_refused(tmp_path, accelerator, monkeypatch):
    # Three processes are not started to read one message: only their number is replaced.
    monkeypatch.setattr(type(accelerator), "num_processes", 3)
    with pytest.raises(RecipeError, match=r"training.batch_size: 16 is not divisible by 3 processes"):
        run_case(TEACHER, tmp_path, accelerator)
