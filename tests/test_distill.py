"""A whole run, small: what it says against the weights it leaves, what it reuses, and what it refuses untouched."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize_scalar
from torch import Tensor

from edc.data import load_data
from edc.errors import CheckpointError, DataError, EdcError, FailedError, RecipeError, RunError
from edc.networks import CifarResNet, Classifier, WideResNet, count_parameters
from edc.recipe import Recipe
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.runs.student import load_student
from edc.system.files import exclusive_lock
from edc.teachers.ensemble import load_teachers, teacher_key

DOCUMENT: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "kind": "synthetic",
        "num_images": 48,
        "image_size": 8,
        "num_classes": 3,
        "validation": 30,
        "test": 40,
        "crop_padding": 1,
    },
    "network": "cifar_resnet8",
    "training": {"epochs": 3, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.05},
    "teachers": {"ensemble_size": 3},
    "students": {
        "kd": {"method": "kd"},
        "official": {"method": "latent_be", "fold": "mean_factors"},
        "be": {"method": "latent_be", "perturbation": "tdiv_sdiv"},
    },
}
M = 3


def recipe(**changes: Any) -> Recipe:
    """Returns the tiny recipe with sections merged."""
    document = {
        key: value | changes.pop(key) if isinstance(value, dict) and key in changes and key != "students" else value
        for key, value in DOCUMENT.items()
    }
    return Recipe.model_validate(document | changes)


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def summary(runs: Path, accelerator: Accelerator) -> dict[str, Any]:
    return distill(recipe(), run=RunFolder(runs / "tiny"), accelerator=accelerator)


def row(summary: dict[str, Any], subject: str) -> dict[str, Any]:
    return next(row for row in summary["rows"] if row["subject"] == subject)


# The summary against the weights on disk ------------------------------------------------------------------------------


def probabilities(state: dict[str, Tensor], images: Tensor) -> np.ndarray:
    """Returns (N, K) of a CIFAR ResNet-8 with this state, by torch alone, in float64."""
    network = Classifier(CifarResNet(8, 1, 3), (0.0,) * 3, (1.0,) * 3)
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        return network.double().eval()(images.double() / 255).softmax(1).numpy()


def member_states(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Returns the plain state of each member: W_m = W * outer(s_m, r_m), b * s_m."""
    layers = [key.removesuffix(".rho") for key in state if key.endswith(".rho")]
    members = []
    for m in range(M):
        plain = {key: value for key, value in state.items() if not key.endswith((".rho", ".sigma"))}
        for layer in layers:
            r, s = 1 + state[f"{layer}.rho"][m], 1 + state[f"{layer}.sigma"][m]
            outer = torch.outer(s, r)
            weight = plain[f"{layer}.weight"]
            plain[f"{layer}.weight"] = weight * (outer[:, :, None, None] if weight.ndim == 4 else outer)
            if f"{layer}.bias" in plain:
                plain[f"{layer}.bias"] = plain[f"{layer}.bias"] * s
        members.append(plain)
    return members


def folded_state(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    members = member_states(state)
    if kind == "mean_weights":
        return {key: torch.stack([member[key].double() for member in members]).mean(0) for key in members[0]}
    plain = {key: value for key, value in state.items() if not key.endswith((".rho", ".sigma"))}
    for layer in [key.removesuffix(".rho") for key in state if key.endswith(".rho")]:
        outer = torch.outer(1 + state[f"{layer}.sigma"].mean(0), 1 + state[f"{layer}.rho"].mean(0))
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = weight * (outer[:, :, None, None] if weight.ndim == 4 else outer)
    plain["network.classifier.bias"] = plain["network.classifier.bias"] * (
        1 + state["network.classifier.sigma"].mean(0)
    )
    return plain


def nll(probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probs[np.arange(len(labels)), labels]).mean())


@pytest.fixture(scope="module")
def expected(runs: Path, summary: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Probabilities of every row of the table on test and validation images, from the weights on disk.

    (N, K), or (M, N, K) of a row with several members.
    """
    one = recipe()
    data = load_data(one.data)
    teachers = [load_file(runs / "teachers" / teacher_key(one, data, m)[0] / "weights.safetensors") for m in range(M)]
    students = {name: load_file(runs / "tiny/students" / name / "weights.safetensors") for name in one.students}
    found: dict[str, dict[str, np.ndarray]] = {}
    for split, images in (("test", data.test.images), ("validation", data.validation.images)):
        rows = {f"teacher {m}": probabilities(state, images) for m, state in enumerate(teachers)}
        rows["ensemble"] = np.stack(list(rows.values()))
        rows["kd"] = probabilities(students["kd"], images)
        for name, kind in (("official", "mean_factors"), ("be", "mean_weights")):
            members = [probabilities(state, images) for state in member_states(students[name])]
            rows[f"{name} (members)"] = np.stack(members)
            for each in ("mean_factors", "mean_weights"):
                rows[f"{name}, {each}"] = probabilities(folded_state(students[name], each), images)
            rows[name] = rows[f"{name}, {kind}"]
        for subject, probs in rows.items():
            found.setdefault(subject, {})[split] = probs
    return found


SUBJECTS = [
    "teacher 0",
    "teacher 1",
    "teacher 2",
    "ensemble",
    "kd",
    "official (members)",
    "official",
    "be (members)",
    "be",
]


def test_every_network_has_a_row(summary):
    assert [row["subject"] for row in summary["rows"]] == SUBJECTS
    kinds = ["teacher"] * 3 + ["ensemble", "student", "members", "student", "members", "student"]
    assert [row["kind"] for row in summary["rows"]] == kinds
    assert [row["forwards"] for row in summary["rows"]] == [1, 1, 1, 3, 1, 3, 1, 3, 1]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_row_is_what_the_weights_on_disk_compute(summary, expected, subject):
    labels = {name: getattr(load_data(recipe().data), name).labels.numpy() for name in ("test", "validation")}
    members = {split: np.atleast_3d(probs.T).T for split, probs in expected[subject].items()}  # (M, N, K)
    probs = {split: each.mean(0) for split, each in members.items()}
    found = row(summary, subject)
    assert found["raw"]["acc"] == np.mean(probs["test"].argmax(1) == labels["test"])
    assert found["raw"]["nll"] == pytest.approx(nll(probs["test"], labels["test"]), rel=1e-5)
    one_hot = np.eye(3)[labels["test"]]
    assert found["raw"]["brier"] == pytest.approx(((probs["test"] - one_hot) ** 2).sum(1).mean(), rel=1e-5)
    assert found["validation_acc"] == np.mean(probs["validation"].argmax(1) == labels["validation"])
    assert found["validation_nll"] == pytest.approx(nll(probs["validation"], labels["validation"]), rel=1e-5)

    def powered(probs: np.ndarray, t: float) -> np.ndarray:
        return probs ** (1 / t) / (probs ** (1 / t)).sum(-1, keepdims=True)

    def tempered(split: str, before: float, after: float) -> float:
        return nll(powered(powered(members[split], before).mean(0), after), labels[split])

    def best(objective: Callable[[float], float]) -> float:
        bounds = (math.log(0.05), math.log(20))
        return math.exp(minimize_scalar(lambda log_t: objective(math.exp(log_t)), bounds=bounds, method="bounded").x)

    befores = [1.0] if len(members["test"]) == 1 else [1.0, best(lambda t: tempered("validation", t, 1.0))]
    votes = np.eye(3)[members["validation"].argmax(-1)].mean(0)
    with np.errstate(divide="ignore"):
        if nll(votes, labels["validation"]) <= tempered("validation", befores[-1], 1.0) + 1e-9:
            befores = [1.0]  # lowest for t -> 0, where an image without a vote for its class has no probability
    ways = [(before, best(lambda t, b=before: tempered("validation", b, t))) for before in befores]
    ts = found["member_temperature"], found["calibration_temperature"]
    # The NLL may have several minima in the members' temperature: none found here is lower than the one that was taken.
    lowest = min(tempered("validation", *way) for way in ways)
    assert tempered("validation", *ts) <= lowest * (1 + 1e-6)
    if len(members["test"]) == 1:
        assert ts == pytest.approx(ways[0], rel=0.02)
    assert found["calibrated"]["nll"] == pytest.approx(tempered("test", *ts), rel=1e-4)


def test_both_folds_are_measured_on_validation(summary, expected):
    labels = load_data(recipe().data).validation.labels.numpy()
    assert set(summary["fold_choice"]) == {"official", "be"}
    for name, choice in summary["fold_choice"].items():
        for kind, value in choice.items():
            assert value == pytest.approx(nll(expected[f"{name}, {kind}"]["validation"], labels), rel=1e-5)


def test_dee_of_the_ensemble_is_its_size(summary):
    by_size = summary["ensemble_calibrated_nll_by_size"]
    assert len(by_size) == M
    ensemble = row(summary, "ensemble")
    assert ensemble["calibrated"]["nll"] == by_size[-1]
    teachers = [row(summary, f"teacher {m}")["calibrated"]["nll"] for m in range(M)]
    assert by_size[0] == pytest.approx(np.mean(teachers), abs=1e-12)
    if by_size[-1] < min(by_size[:-1]):
        assert ensemble["dee"] == pytest.approx(M)
    for each in summary["rows"]:
        value = each["calibrated"]["nll"]
        if value > by_size[0]:
            assert (each["dee"], each["dee_bound"]) == (None, "below")
        elif value < min(by_size):
            assert (each["dee"], each["dee_bound"]) == (None, "above")
        else:
            assert 1 <= each["dee"] <= M


def test_parameters_are_counted(summary):
    plain = count_parameters(CifarResNet(8, 1, 3))
    assert row(summary, "teacher 0")["parameters"] == plain
    assert row(summary, "ensemble")["parameters"] == M * plain
    assert row(summary, "kd")["parameters"] == row(summary, "be")["parameters"] == plain
    channels = [(3, 16), (16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 3)]
    assert row(summary, "be (members)")["parameters"] == plain + M * sum(c_in + c_out for c_in, c_out in channels)


def test_members_differ_and_plain_networks_have_no_diversity(summary):
    assert row(summary, "be (members)")["diversity"] > 0
    assert row(summary, "ensemble")["diversity"] > 0
    assert row(summary, "kd")["diversity"] is None


def test_summary_on_disk_is_the_one_returned(summary, runs):
    on_disk = json.loads((runs / "tiny/summary.json").read_text())
    assert on_disk == json.loads(json.dumps(summary))
    assert on_disk["recipe_sha256"] == recipe().digest()
    assert on_disk["data"] == {
        "kind": "synthetic",
        "train": 48,
        "validation": 30,
        "test": 40,
        "classes": ["class0", "class1", "class2"],
        "majority": {"class": "class0", "share": 0.35},
    }


# Reuse ----------------------------------------------------------------------------------------------------------------


def test_finished_run_is_not_touched_again(summary, runs, accelerator):
    before = snapshot(runs)
    assert distill(recipe(), run=RunFolder(runs / "tiny"), accelerator=accelerator) == json.loads(json.dumps(summary))
    assert snapshot(runs) == before


def test_teachers_are_reused_by_a_run_with_another_seed(summary, runs, accelerator):
    before = snapshot(runs / "teachers")
    again = distill(
        recipe(seed=1, students={"kd": {"method": "kd"}}), run=RunFolder(runs / "seed1"), accelerator=accelerator
    )
    assert snapshot(runs / "teachers") == before
    assert len([name for name in before if name.endswith("weights.safetensors")]) == M
    for m in range(M):
        assert row(again, f"teacher {m}") == row(summary, f"teacher {m}")
    assert row(again, "kd")["raw"] != row(summary, "kd")["raw"]


def key(member: int = 0, **changes: Any) -> str:
    one = recipe(**changes)
    return teacher_key(one, load_data(one.data), member)[0]


def test_teacher_is_kept_by_what_determines_it():
    assert key() == key(seed=5) == key(students={"x": {}}) == key(name="other")
    assert key(1) == key(0, teachers={"seed": 1})
    others = [
        key(1),
        key(data={"split_seed": 1}),
        key(data={"train_limit": 40}),
        key(data={"augmentation": "crop"}),
        key(data={"crop_padding": 2}),
        key(network="wrn10x1"),
        key(training={"learning_rate": 0.1}),
        key(training={"precision": "bf16"}),
        key(teachers={"epochs": 4}),
    ]
    assert len({key(), *others}) == len(others) + 1


def test_student_and_teacher_of_one_seed_start_from_different_weights(runs, accelerator):
    from edc.runs.student import build_plain

    one = recipe()
    data = load_data(one.data)
    student = build_plain(one, data).network.stem.weight
    assert torch.equal(build_plain(one, data).network.stem.weight, student)
    assert not torch.equal(build_plain(recipe(seed=1), data).network.stem.weight, student)


def test_trained_student_loads_from_its_run(summary, runs):
    one = recipe()
    loaded = load_student(one, "be", load_data(one.data), run=RunFolder(runs / "tiny"))
    saved = load_file(runs / "tiny/students/be/weights.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert not loaded.training
    with pytest.raises(RunError, match=r"students/be/weights.safetensors: student 'be' is not trained; continue with"):
        load_student(one, "be", load_data(one.data), run=RunFolder(runs / "nothing"))


def test_every_option_at_once_runs_to_the_end(tmp_path, accelerator):
    """One teacher, image files, bf16, AdamW, labels, re-estimated norms, the other form of the members."""
    from PIL import Image

    for split, num_images in (("train", 12), ("val", 4), ("test", 6)):
        for k, name in enumerate(("dark", "light")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(num_images):
                noise = np.random.default_rng(100 * k + i).integers(0, 120, (10, 9, 3), dtype=np.uint8)
                Image.fromarray(noise + 100 * k).save(folder / f"{i}.png")
    one = Recipe.model_validate(
        DOCUMENT
        | {
            "data": {
                "kind": "image_folder",
                "root": str(tmp_path / "images"),
                "image_size": 8,
                "augmentation": "resized_crop_flip",
                "num_workers": 0,
            },
            "training": {
                "epochs": 4,
                "warmup_epochs": 1,
                "batch_size": 8,
                "optimizer": "adamw",
                "learning_rate": 0.01,
                "precision": "bf16",
                "channels_last": False,
                "validate_every": 3,
            },
            "teachers": {"ensemble_size": 1},
            "students": {
                "be": {
                    "method": "latent_be",
                    "perturbation": "ods",
                    "alpha": 0.5,
                    "reestimate_batchnorm": True,
                    "member_form": "sequential",
                }
            },
        }
    )
    found = distill(one, run=RunFolder(tmp_path / "runs/all"), accelerator=accelerator)
    assert [row["subject"] for row in found["rows"]] == ["teacher 0", "ensemble", "be"]
    assert row(found, "teacher 0")["raw"] == row(found, "ensemble")["raw"]
    assert row(found, "ensemble")["dee"] == 1
    saved = load_file(tmp_path / "runs/all/students/be/weights.safetensors")
    network = load_student(one, "be", load_data(one.data), run=RunFolder(tmp_path / "runs/all"))
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())
    for each in found["rows"]:
        assert all(math.isfinite(value) for part in ("raw", "calibrated") for value in each[part].values())


# Own checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[dict[str, Any]]:
    """A bare WRN in torch's format with a normalisation of its own, and a wrapped CIFAR ResNet as safetensors."""
    torch.manual_seed(0)
    wrn = WideResNet(10, 1, 3)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in wrn.state_dict().items()}}, tmp_path / "a.pth"
    )
    resnet = Classifier(CifarResNet(8, 1, 3), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    save_file(resnet.state_dict(), tmp_path / "b.safetensors")
    return [
        {
            "file": str(tmp_path / "a.pth"),
            "network": {"name": "wrn10x1", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
            "allow_weak": True,
        },
        {"file": str(tmp_path / "b.safetensors"), "allow_weak": True},
    ]


def own_teachers(checkpoints: list[Any], **changes: Any) -> Recipe:
    students = {"kd": {"method": "kd"}}
    document = {key: value for key, value in DOCUMENT.items() if key != "teachers"}
    return Recipe.model_validate(document | {"teachers": {"checkpoints": checkpoints}, "students": students} | changes)


def test_own_checkpoints_of_mixed_architectures_keep_their_normalisation(checkpoints, tmp_path, accelerator):
    one = own_teachers(checkpoints)
    data = load_data(one.data)
    ensemble = load_teachers(one, data, teachers_path=tmp_path / "teachers", accelerator=accelerator)
    images = data.test.images.float() / 255
    wrn, resnet = WideResNet(10, 1, 3).eval(), CifarResNet(8, 1, 3).eval()
    state = torch.load(tmp_path / "a.pth", weights_only=True)["state_dict"]
    wrn.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    state = load_file(tmp_path / "b.safetensors")
    resnet.load_state_dict({n.removeprefix("network."): v for n, v in state.items() if n not in ("mean", "std")})

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], 1)

    with torch.no_grad():
        expected = torch.stack(
            [
                wrn(normalised((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))),
                resnet(normalised((0.1, 0.2, 0.3), (0.9, 0.8, 0.7))),
            ]
        )
        torch.testing.assert_close(ensemble(images), expected, rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "teachers").exists()


def test_run_with_own_checkpoints_trains_no_teacher(checkpoints, tmp_path, accelerator):
    one = own_teachers(checkpoints)
    summary = distill(one, run=RunFolder(tmp_path / "runs/own"), accelerator=accelerator)
    assert [row["subject"] for row in summary["rows"]] == ["teacher 0", "teacher 1", "ensemble", "kd"]
    assert summary["rows"][0]["parameters"] == count_parameters(WideResNet(10, 1, 3))
    assert not (tmp_path / "runs/teachers").exists()


# Refused, and nothing left behind -------------------------------------------------------------------------------------


def refused(one: Recipe, error: type[EdcError], message: str, *, folder: Path, accelerator: Accelerator) -> None:
    """Holds that a run is refused by one message and leaves no file: the corrected recipe must find the folder free."""
    with pytest.raises(error, match=message) as caught:
        distill(one, run=RunFolder(folder / "run"), accelerator=accelerator)
    assert caught.value.exit_code == 2
    assert not folder.exists(), sorted(str(path) for path in folder.rglob("*"))


def test_checkpoint_of_another_architecture_names_the_first_keys(checkpoints, tmp_path, accelerator):
    one = own_teachers([{"file": checkpoints[0]["file"]}, checkpoints[1]])
    message = r"a\.pth: these weights do not fit CifarResNet as the recipe describes it\n  blocks\.1\.norm1\.bias: "
    refused(one, CheckpointError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_missing_checkpoint_is_named(checkpoints, tmp_path, accelerator):
    one = own_teachers([checkpoints[0], str(tmp_path / "c.pth")])
    message = rf"{tmp_path}/c\.pth: no such checkpoint"
    refused(one, CheckpointError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_checkpoint_of_another_number_of_classes_says_so(checkpoints, tmp_path, accelerator):
    one = own_teachers(checkpoints, data=DOCUMENT["data"] | {"num_classes": 4})
    message = r"a\.pth: a classifier of 3 classes .*, the data has 4"
    refused(one, CheckpointError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_class_count_of_the_data_is_held_against_the_recipe(tmp_path, accelerator):
    one = Recipe.model_validate(DOCUMENT | {"data": {"kind": "digits", "num_classes": 12}})
    message = "the recipe says 12, the data has 10 classes"
    refused(one, DataError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_missing_data_is_refused(tmp_path, accelerator):
    data = {"kind": "image_folder", "root": str(tmp_path / "nowhere"), "image_size": 8}
    one = Recipe.model_validate(DOCUMENT | {"data": data})
    refused(one, DataError, "data.root: no folder", folder=tmp_path / "runs", accelerator=accelerator)


def test_batch_larger_than_the_data_is_refused(tmp_path, accelerator):
    one = recipe(training={"batch_size": 64})
    message = "training.batch_size: found 64, but only 48 training images"
    refused(one, DataError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_network_that_does_not_take_the_images_is_refused(tmp_path, accelerator):
    one = recipe(network="torchvision/vit_b_16")
    message = "torchvision/vit_b_16: does not take images"
    refused(one, RecipeError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_disk_that_is_too_small_is_refused(tmp_path, accelerator, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    message = r"this run needs about \d+ MB, the disk has 1 MB free"
    refused(recipe(), RunError, message, folder=tmp_path / "runs", accelerator=accelerator)


def test_second_start_of_a_run_is_refused_before_its_data_is_read(tmp_path, accelerator, monkeypatch):
    def unread(*_: Any) -> None:
        raise AssertionError("the data was read")

    monkeypatch.setattr("edc.runs.distill.load_training_data", unread)
    run = RunFolder(tmp_path / "tiny")
    with exclusive_lock(run.lock_path, held_by_other=""):
        before = snapshot(tmp_path)
        with pytest.raises(RunError, match="tiny: another process is at work on this run; wait for it"):
            distill(recipe(), run=run, accelerator=accelerator)
        assert snapshot(tmp_path) == before
    with pytest.raises(AssertionError, match="the data was read"):  # a lock that nobody holds is none
        distill(recipe(), run=run, accelerator=accelerator)


def test_run_of_another_recipe_is_refused_and_left_alone(summary, runs, accelerator):
    before = snapshot(runs)
    with pytest.raises(RunError, match=r"tiny: already holds another recipe; it differs in training.learning_rate"):
        distill(recipe(training={"learning_rate": 0.1}), run=RunFolder(runs / "tiny"), accelerator=accelerator)
    assert snapshot(runs) == before


def test_unfinished_run_does_not_go_on_with_another_teacher_in_a_file_of_the_same_name(
    checkpoints, tmp_path, accelerator
):
    one, run = own_teachers(checkpoints), RunFolder(tmp_path / "runs/own")
    distill(one, run=run, accelerator=accelerator)
    run.summary_path.unlink()
    before = snapshot(tmp_path / "runs")
    resnet = Classifier(CifarResNet(8, 1, 3), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7))
    save_file(resnet.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(RunError, match=r"own: its students began to learn from other content of teacher 1 than"):
        distill(one, run=run, accelerator=accelerator)
    assert snapshot(tmp_path / "runs") == before


def test_weights_that_a_library_cannot_fetch_are_missed_before_teachers_are_trained(tmp_path, accelerator, monkeypatch):
    def unreachable(*_arguments: Any, **_options: Any) -> None:
        raise OSError("[Errno -2] Name or service not known\nand more")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    one = recipe(network={"name": "torchvision/resnet18", "pretrained": True})
    message = r"torchvision/resnet18: pretrained: .*could not be fetched \(\[Errno -2\] Name or service not known\)"
    with pytest.raises(FailedError, match=message):
        distill(one, run=RunFolder(tmp_path / "runs/run"), accelerator=accelerator)
    assert not (tmp_path / "runs").exists()


def test_unfinished_run_goes_on_where_it_stopped(summary, runs, tmp_path, accelerator, one_thread):
    """The last student and the summary are taken away from a copy: only those are made again."""
    shutil.copytree(runs, tmp_path / "runs")
    run = RunFolder(tmp_path / "runs/tiny")
    run.summary_path.unlink()
    shutil.rmtree(run.student_path("be"))
    with pytest.raises(RunError, match="the run is not finished"):
        run.summary()
    before = snapshot(tmp_path / "runs")
    again = distill(recipe(), run=run, accelerator=accelerator)
    after = snapshot(tmp_path / "runs")
    assert {name for name in after if after[name] != before.get(name)} <= {
        name for name in after if name.startswith("tiny/students/be/") or name == "tiny/summary.json"
    }
    for found, wanted in zip(again["rows"], summary["rows"], strict=True):
        assert found["raw"]["acc"] == pytest.approx(wanted["raw"]["acc"], abs=0.051)
        assert found["raw"]["nll"] == pytest.approx(wanted["raw"]["nll"], rel=1e-2)
