"""What networks start from: every weight against the file's or the teacher's, and what is refused before anything."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from reference import member_state
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_cases import DATA, raise_signal_at

from edc.data import DataSet, load_data
from edc.errors import CheckpointError, EdcError, Interrupted, RecipeError, RunError
from edc.method.batch_ensemble import ensemble_size_of
from edc.networks import Classifier, build_network
from edc.recipe import NetworkSection, Recipe
from edc.runs.cost import estimate_costs
from edc.runs.distill import distill
from edc.runs.folder import RunFolder
from edc.runs.start import start_digests, start_student
from edc.runs.student import build_plain, train_student
from edc.runs.trial import few_steps
from edc.system.files import sha256_of
from edc.teachers.ensemble import TeacherEnsemble, load_teachers, obtain_teacher, teacher_key
from edc.teachers.start import say_start, start_from_file

M = 2


def network(seed: int, *, num_classes: int = 3, name: str = "cifar_resnet8") -> Classifier:
    """Returns a network with its own normalisation, and running statistics that no fresh one has."""
    torch.manual_seed(seed)
    section = NetworkSection(name=name, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))
    found = build_network(section, num_classes=num_classes, image_shape=(3, 8, 8), mean=(0.0,), std=(1.0,))
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return found


def saved(path: Path, state: dict[str, Tensor]) -> str:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save({"state_dict": state}, path)
    return str(path)


@pytest.fixture
def own(tmp_path: Path) -> list[str]:
    return [saved(tmp_path / f"own/{m}.safetensors", network(m + 1).state_dict()) for m in range(M)]


def untrained(checkpoint: Any) -> dict[str, Any]:
    """Returns the checkpoint, allowed to be near chance."""
    return (checkpoint if isinstance(checkpoint, dict) else {"file": checkpoint}) | {"allow_weak": True}


def recipe(own: list[Any], **changes: Any) -> Recipe:
    """Returns a recipe with the user's own teachers, or without: then M are trained."""
    document: dict[str, Any] = {
        "name": "start",
        "data": DATA.model_dump(exclude_unset=True),
        "network": "cifar_resnet8",
        "training": {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "learning_rate": 0.02},
        "teachers": {"checkpoints": [untrained(each) for each in own]} if own else {"ensemble_size": M},
        "students": {"kd": {"method": "kd"}, "be": {"method": "latent_be", "choose": "trained"}},
    }
    return Recipe.model_validate(document | changes)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data(DATA)


def begun(
    one: Recipe, name: str, data: DataSet, accelerator: Accelerator, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> nn.Module:
    """Returns the network of student `name` as the training loop is given it."""
    given: list[nn.Module] = []

    def fit(network: nn.Module, *_: Any, **__: Any) -> nn.Module:
        given.append(network)
        return network

    monkeypatch.setattr("edc.runs.student.fit", fit)
    teachers = load_teachers(one, data, teachers_path=folder / "teachers", accelerator=accelerator)
    train_student(one, name, data, teachers, run=RunFolder(folder / "run"), accelerator=accelerator)
    return given[0]


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def states_of(network: nn.Module) -> list[dict[str, Tensor]]:
    """Returns the plain state of each member."""
    if ensemble_size_of(network) == 1:
        return [network.state_dict()]
    return [member_state(network, m) for m in range(ensemble_size_of(network))]


# From a file ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kd", "be"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_weight_is_the_files_in_every_member(own, data, tmp_path, accelerator, monkeypatch, name, suffix):
    file = saved(tmp_path / f"start{suffix}", {f"module.{k}": v for k, v in network(5).state_dict().items()})
    one = recipe(own, network={"name": "cifar_resnet8", "start": file})
    states = states_of(begun(one, name, data, accelerator, tmp_path, monkeypatch))
    assert len(states) == (1 if name == "kd" else M)
    for state in states:
        assert_equal(state, network(5).state_dict())  # its normalisation too


def test_bare_file_leaves_the_normalisation_of_the_recipe(own, data, tmp_path, accelerator, monkeypatch):
    file = saved(tmp_path / "bare.pt", network(5).network.state_dict())
    one = recipe(own, students={"kd": {"method": "kd", "start": file}})
    found = begun(one, "kd", data, accelerator, tmp_path, monkeypatch)
    assert_equal(found.network.state_dict(), network(5).network.state_dict())
    assert found.mean.flatten().tolist() == pytest.approx(data.mean)


def test_normalisation_of_the_recipe_wins_over_the_files(own, data, tmp_path, accelerator, monkeypatch):
    file = saved(tmp_path / "start.safetensors", network(5).state_dict())
    section = {"name": "cifar_resnet8", "start": file, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    found = begun(recipe(own, network=section), "kd", data, accelerator, tmp_path, monkeypatch)
    assert found.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert_equal(found.network.state_dict(), network(5).network.state_dict())


@pytest.mark.parametrize("name", ["kd", "be"])
def test_classifier_of_other_classes_is_drawn_anew_from_the_runs_seed_and_the_log_says_so(
    own, data, tmp_path, accelerator, monkeypatch, capsys, name
):
    file = saved(tmp_path / "ten.safetensors", network(5, num_classes=10).state_dict())
    one = recipe(own, network={"name": "cifar_resnet8", "start": file}, seed=4)
    states = states_of(begun(one, name, data, accelerator, tmp_path, monkeypatch))
    fresh = build_plain(recipe(own, seed=4), data).state_dict()
    expected = network(5).state_dict() | network(5, num_classes=10).state_dict()
    head = ("network.classifier.weight", "network.classifier.bias")
    expected |= {key: fresh[key] for key in head}
    for state in states:
        assert_equal(state, expected)
    said = "".join(capsys.readouterr().err.split())  # wrapped where the path happens to end
    assert f"{name}:startsfrom{file}" in said
    assert "network.classifier.weight,network.classifier.biasareofotherclassesthere:drawnanewfromtheseed" in said


def test_file_without_a_classifier_starts_all_the_rest(own, data, tmp_path, accelerator, monkeypatch):
    trunk = {key: value for key, value in network(5).network.state_dict().items() if "classifier" not in key}
    one = recipe(own, students={"kd": {"method": "kd", "start": saved(tmp_path / "trunk.pt", trunk)}})
    found = begun(one, "kd", data, accelerator, tmp_path, monkeypatch).network.state_dict()
    fresh = build_plain(recipe(own), data).network.state_dict()
    assert_equal(found, fresh | trunk)
    assert not torch.equal(fresh["stem.weight"], found["stem.weight"])


def test_head_of_a_timm_network_is_the_one_that_timm_names(own, data, tmp_path, accelerator, monkeypatch):
    """Its classifier is a convolution: no matrix is the last of its layers."""
    import timm

    torch.manual_seed(8)
    donor = timm.create_model("resnetv2_50", num_classes=7, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))
    assert donor.pretrained_cfg["classifier"] == "head.fc"
    assert donor.head.fc.weight.ndim == 4
    monkeypatch.setattr("edc.networks._build_timm", lambda *_: small_resnetv2())
    section = {"name": "timm/resnetv2_50", "start": saved(tmp_path / "seven.pt", donor.state_dict())}
    one = recipe([{"file": file, "network": "cifar_resnet8"} for file in own], network=section)
    found = begun(one, "kd", data, accelerator, tmp_path, monkeypatch).network.state_dict()
    assert found["head.fc.weight"].shape == (3, 8, 1, 1)
    assert_equal({k: v for k, v in found.items() if not k.startswith("head.fc")}, trunk_of(donor))


def small_resnetv2() -> nn.Module:
    import timm

    return timm.create_model("resnetv2_50", num_classes=3, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8))


def trunk_of(donor: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in donor.state_dict().items() if not key.startswith("head.fc")}


def test_teachers_start_from_the_file_and_are_kept_by_its_content(data, tmp_path, accelerator, monkeypatch):
    given: list[dict[str, Tensor]] = []
    monkeypatch.setattr("edc.teachers.ensemble.fit", lambda network, *_, **__: given.append(network.state_dict()))
    first, moved = (saved(tmp_path / name, network(5).state_dict()) for name in ("a.safetensors", "b.safetensors"))
    other = saved(tmp_path / "c.safetensors", network(6).state_dict())
    started = [recipe([], network={"name": "cifar_resnet8", "start": file}) for file in (first, moved, other)]
    obtain_teacher(started[0], data, 0, teachers_path=tmp_path / "teachers", accelerator=accelerator)
    assert_equal(given[0], network(5).state_dict())
    keys = [teacher_key(one, data, 0)[0] for one in (recipe([]), *started)]
    assert keys[1] == keys[2]
    assert len(set(keys)) == 3
    own_start = recipe([], teachers={"network": {"name": "cifar_resnet8", "start": first}})
    assert teacher_key(own_start, data, 0)[0] == keys[1]
    saved(Path(first), network(7).state_dict())
    assert teacher_key(started[0], data, 0)[0] not in keys


# From a teacher -------------------------------------------------------------------------------------------------------


def taught(data: DataSet) -> Classifier:
    """Returns a network that answers well: running statistics of the images, a classifier by least squares."""
    found, images, seen = network(5), data.train.images.float() / 255, []
    found.train()
    hook = found.network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for _ in range(40):
            found(images)
        found.eval()(images)
        targets = torch.eye(3)[data.train.labels] - 1 / 3
        found.network.classifier.weight.copy_(torch.linalg.lstsq(seen[-1], targets).solution.T)
    hook.remove()
    return found


@pytest.mark.parametrize("name", ["kd", "be"])
@pytest.mark.parametrize("best", [0, 1])
@pytest.mark.parametrize("input_size", [None, 8])
def test_students_start_from_the_teacher_that_is_best_on_validation(
    data, tmp_path, accelerator, monkeypatch, name, best, input_size
):
    teachers = [network(1), network(2)]
    teachers[best] = taught(data)
    images, labels = data.validation.images.float() / 255, data.validation.labels
    with torch.no_grad():
        right = [int((teacher.eval()(images).argmax(1) == labels).sum()) for teacher in teachers]
    assert right[best] > right[1 - best]
    checkpoints = [
        {"file": saved(tmp_path / f"{m}.safetensors", teacher.state_dict()), "input_size": input_size}
        for m, teacher in enumerate(teachers)
    ]
    one = recipe(checkpoints, network={"name": "cifar_resnet8", "start": "teacher"})
    for state in states_of(begun(one, name, data, accelerator, tmp_path, monkeypatch)):
        assert_equal(state, teachers[best].state_dict())


def test_teacher_to_start_from_is_chosen_in_float32_as_the_summary_says_it(data, tmp_path, accelerator, monkeypatch):
    """In bf16 two teachers that are an image apart may change places, and another one was named than was taken."""
    checkpoints = [saved(tmp_path / f"{m}.safetensors", network(m).state_dict()) for m in (1, 2)]
    training = {"epochs": 2, "warmup_epochs": 1, "batch_size": 16, "precision": "bf16"}
    one = recipe(checkpoints, network={"name": "cifar_resnet8", "start": "teacher"}, training=training)
    types = set()

    def watched(*given: Any, **named: Any) -> None:
        hook = register_module_forward_hook(lambda _module, _inputs, output: types.add(output.dtype))
        try:
            start_student(*given, **named)
        finally:
            hook.remove()

    monkeypatch.setattr("edc.runs.student.start_student", watched)
    begun(one, "kd", data, accelerator, tmp_path, monkeypatch)
    assert types == {torch.float32}


def test_student_that_is_begun_does_not_ask_what_it_started_from(own, data, tmp_path, accelerator, monkeypatch):
    one = recipe(own, network={"name": "cifar_resnet8", "start": "teacher"})
    monkeypatch.setattr("edc.runs.student.start_student", lambda *_: pytest.fail("asked"))
    folder = RunFolder(tmp_path / "run").student_path("kd")
    folder.mkdir(parents=True)
    save_file(network(9).state_dict(), folder / "weights.safetensors")
    teachers = load_teachers(one, data, teachers_path=tmp_path, accelerator=accelerator)
    found = train_student(one, "kd", data, teachers, run=RunFolder(tmp_path / "run"), accelerator=accelerator)
    assert_equal(found.state_dict(), network(9).state_dict())


def test_teachers_that_are_trained_start_at_random_where_students_start_from_them():
    one = recipe([], network={"name": "cifar_resnet8", "start": "teacher"})
    assert one.teacher_network == recipe([]).teacher_network
    assert [one.network_of(student).start for student in one.students.values()] == ["teacher", "teacher"]


def test_run_from_teachers_goes_to_its_end_and_first_predicts_what_the_best_teacher_does(tmp_path, accelerator):
    """With steps that change nothing, a student that starts from a teacher is that teacher."""
    one = recipe(
        [],
        network={"name": "cifar_resnet8", "start": "teacher"},
        students={
            name: {"method": method, "training": {"learning_rate": 1e-30, "weight_decay": 0.0, "momentum": 0.0}}
            for name, method in (("kd", "kd"), ("be", "latent_be"))
        },
    )
    summary = distill(one, run=tmp_path / "runs/run", accelerator=accelerator)
    rows = {row["subject"]: row for row in summary["rows"]}
    accuracies = [rows[f"teacher {m}"]["validation_acc"] for m in range(M)]
    best = accuracies.index(max(accuracies))
    kept = teacher_key(one, load_data(one.data), best)[0]
    teacher = load_file(tmp_path / "runs/teachers" / kept / "weights.safetensors")
    for name in ("kd", "be"):
        assert rows[name]["started_from_teacher"] == best
        student = load_file(tmp_path / f"runs/run/students/{name}/weights.safetensors")
        parameters = [key for key in teacher if "running" not in key and "num_batches" not in key]
        assert all(torch.equal(student[key], teacher[key]) for key in parameters)


# Refused, before anything trains --------------------------------------------------------------------------------------


def refused(one: Recipe, error: type[EdcError], message: str, folder: Path, accelerator: Accelerator) -> str:
    with pytest.raises(error, match=message) as caught:
        distill(one, run=RunFolder(folder / "runs/run"), accelerator=accelerator)
    assert caught.value.exit_code == 2
    assert not (folder / "runs").exists()
    return str(caught.value)


@pytest.mark.parametrize("whose", ["network.start", "students.kd.start", "teachers.network.start"])
def test_file_of_another_architecture_names_the_first_keys_of_both_sides(own, tmp_path, accelerator, whose):
    file = saved(tmp_path / "wrn.safetensors", network(0, name="wrn10x1").state_dict())
    section = {"name": "cifar_resnet8", "start": file}
    changes: dict[str, Any] = {
        "network.start": {"network": section},
        "students.kd.start": {"students": {"kd": {"method": "kd", "start": file}}},
        "teachers.network.start": {"teachers": {"network": section}},
    }[whose]
    message = rf"^{whose}: .*wrn\.safetensors: these weights do not fit CifarResNet as the recipe describes it"
    text = refused(recipe(own, **changes), CheckpointError, message, tmp_path, accelerator)
    assert "network.blocks.1.norm1.weight: (16,) in the file, (32,) in the network" in text
    assert "network.blocks.1.shortcut.weight: not in the network" in text
    narrow = {key: value for key, value in network(5).state_dict().items() if "norm1" not in key}
    saved(Path(file), narrow)
    text = refused(recipe(own, **changes), CheckpointError, whose, tmp_path, accelerator)
    assert "network.blocks.0.norm1.bias: missing in the file" in text


def test_wider_file_of_other_classes_is_another_architecture(own, tmp_path, accelerator):
    file = saved(tmp_path / "wide.pt", network(0, name="cifar_resnet8x2", num_classes=10).state_dict())
    one = recipe(own, network={"name": "cifar_resnet8", "start": file})
    refused(one, CheckpointError, "these weights do not fit CifarResNet", tmp_path, accelerator)


def test_file_that_is_not_there_or_holds_no_weights(own, tmp_path, accelerator):
    one = recipe(own, network={"name": "cifar_resnet8", "start": str(tmp_path / "no.pt")})
    message = r"^network\.start: .*/no\.pt: no such file of weights to start from"
    refused(one, CheckpointError, message, tmp_path, accelerator)
    (tmp_path / "no.pt").write_text("<html>")
    refused(one, CheckpointError, r"no\.pt: not readable as weights: it is a web page", tmp_path, accelerator)


def test_own_teachers_that_are_no_network_of_the_students(data, own, tmp_path, accelerator):
    example = torch.zeros(2, 3, 8, 8)
    program = torch.export.export(
        network(3).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1, max=64)},)
    )
    torch.export.save(program, tmp_path / "whole.pt2")
    whole = {"file": str(tmp_path / "whole.pt2"), "trust": True, "mean": [0, 0, 0], "std": [1, 1, 1]}
    students = {"kd": {"method": "kd", "start": "teacher"}}
    one = recipe([own[0], whole], students=students)
    message = r"^students\.kd\.start: found 'teacher', but teachers\.checkpoints\.1 is a whole network \(exported_pro"
    refused(one, CheckpointError, message, tmp_path, accelerator)
    with pytest.raises(CheckpointError, match=message):  # a dry run says the same
        estimate_costs(one, data, accelerator=accelerator)
    evenly = network(2)  # the logits of other networks are no probabilities, and are refused as such
    head = [module for module in evenly.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, 1 / 3)
    file = saved(tmp_path / "own/evenly.safetensors", evenly.state_dict())
    one = recipe([own[0], {"file": file, "output": "probabilities"}], students=students)
    refused(one, CheckpointError, r"checkpoints\.1 answers in probabilities", tmp_path, accelerator)


def test_library_network_without_weights_of_its_own(own, data):
    """timm itself would warn, and go on from random ones."""
    one = recipe(own, network={"name": "timm/botnet50ts_256", "start": "pretrained"})
    with pytest.raises(RecipeError, match=r"^timm/botnet50ts_256: pretrained: timm has no weights of it"):
        build_plain(one, data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": {"name": "wrn10x1", "start": "pretrianed"}},
            "network.start\n.*found 'pretrianed'; expected random",
        ),
        ({"network": {"name": "wrn10x1", "start": "pretrained"}}, "wrn10x1 comes without weights"),
        (
            {"network": {"name": "timm/resnet18", "start": "a.pt", "pretrained": True}},
            "pretrained: true and start: a.pt contradict each other; keep one",
        ),
        (
            {"network": {"name": "timm/resnet18", "start": "random", "pretrained": True}},
            "pretrained: true and start: random contradict each other; keep one",
        ),
        (
            {"students": {"kd": {"method": "kd", "start": "pretrained"}}},
            "students.kd.start: found 'pretrained', but cifar_resnet8 comes without weights",
        ),
        (
            {"teachers": {"network": {"name": "wrn10x1", "start": "teacher"}}},
            "network.start: found 'teacher', which only students can start from",
        ),
        (
            {"teachers": {"network": "wrn10x1"}, "students": {"kd": {"method": "kd", "start": "teacher"}}},
            "students.kd.start: found 'teacher', but the student is cifar_resnet8 and teachers are wrn10x1",
        ),
        (
            {
                "teachers": {"checkpoints": ["a.pt", {"file": "b.pt", "network": "wrn16x1"}]},
                "network": {"name": "cifar_resnet8", "start": "teacher"},
            },
            "network.start: found 'teacher', but the student is cifar_resnet8 and teachers are wrn16x1",
        ),
        (
            {"teachers": {"checkpoints": [{"file": "b.pt", "network": {"name": "wrn16x1", "start": "c.pt"}}]}},
            "network.start: has no effect, because the checkpoint brings its weights",
        ),
        (
            {"teachers": {"checkpoints": ["a.pt"], "network": {"name": "wrn16x1", "start": "c.pt"}}},
            "network.start: has no effect, because checkpoints lists trained teachers",
        ),
    ],
)
def test_starts_that_make_no_sense_are_refused_by_the_recipe(changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe([], **changes)


def test_pretrained_and_random_are_said_in_two_ways_of_one_digest():
    ways = [{"name": "timm/resnet18", "start": "pretrained"}, {"name": "timm/resnet18", "pretrained": True}]
    assert len({recipe([], network=way).digest() for way in ways}) == 1
    ways = [{"name": "wrn10x1", "start": "random"}, "wrn10x1"]
    assert len({recipe([], network=way).digest() for way in ways}) == 1
    one = recipe([], network={"name": "timm/resnet18", "pretrained": True}, students={"kd": {"start": "random"}})
    assert not one.network_of(one.students["kd"]).pretrained
    again = Recipe.model_validate(one.model_dump(mode="json", exclude_none=True))
    assert (again, again.digest()) == (one, one.digest())


# Going on -------------------------------------------------------------------------------------------------------------


def test_interrupted_run_with_a_start_and_layer_decay_ends_bit_equal_and_refuses_another_file(
    own, tmp_path, accelerator, one_thread
):
    file = saved(tmp_path / "start.safetensors", network(5, num_classes=10).state_dict())
    one = recipe(
        own,
        network={"name": "cifar_resnet8", "start": file},
        students={
            "kd": {"method": "kd", "start": "teacher"},
            "be": {"training": {"layer_decay": 0.6, "learning_rate": 0.01}},
        },
    )
    whole, cut = RunFolder(tmp_path / "runs/whole"), RunFolder(tmp_path / "runs/cut")
    distill(one, run=whole, accelerator=accelerator)
    num_steps = 0

    def interrupt(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1
        raise_signal_at(13)(num_steps)  # 8 steps of kd, and then be in its second epoch

    hook = register_optimizer_step_post_hook(interrupt)
    try:
        with pytest.raises(Interrupted):
            distill(one, run=cut, accelerator=accelerator)
    finally:
        hook.remove()
    assert (cut.student_path("be") / "checkpoint.pt").is_file()
    shutil.copyfile(file, tmp_path / "kept")
    saved(Path(file), network(6, num_classes=10).state_dict())
    with pytest.raises(RunError, match=r"began to learn from other content of network\.start than there is now"):
        distill(one, run=cut, accelerator=accelerator)
    shutil.copyfile(tmp_path / "kept", file)
    distill(one, run=cut, accelerator=accelerator)
    for name in one.students:
        found, expected = (load_file(run.student_path(name) / "weights.safetensors") for run in (cut, whole))
        assert_equal(found, expected)


def test_dry_run_asks_for_no_weights_to_start_from():
    teachers = {"network": {"name": "cifar_resnet8", "start": "a.pt"}}
    short = few_steps(recipe([], teachers=teachers, network={"name": "cifar_resnet8", "start": "teacher"}))
    assert (short.network.start, short.teacher_network.start) == (None, None)
    assert all(short.network_of(student).start is None for student in short.students.values())


# A file of raw weights and their moving average ---------------------------------------------------------------------


@pytest.fixture(params=[3, 7], ids=["its classes", "other classes"])
def both(tmp_path: Path, request) -> str:
    """As timm saves it, after a training with the classes of the data or with others."""
    raw, average = (network(seed, num_classes=request.param).network.state_dict() for seed in (1, 2))
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "both.pth.tar")
    return str(tmp_path / "both.pth.tar")


@pytest.mark.parametrize(("weights", "seed"), [("auto", 2), ("ema", 2), ("raw", 1)])
def test_start_takes_the_moving_average_as_a_teacher_does_unless_it_says_raw(both, weights, seed, data, capsys):
    started = network(3)
    section = NetworkSection(name="cifar_resnet8", start=both, weights=weights)
    got = start_from_file(started, section, field="network.start")
    expected = torch.load(both, weights_only=True)["state_dict_ema" if seed == 2 else "state_dict"]
    found = started.network.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items() if not key.startswith("classifier."))
    say_start("kd", both, got)
    said = " ".join(capsys.readouterr().err.split())
    assert ("moving average (state_dict_ema)" if seed == 2 else "raw weights (state_dict)") in said


def test_run_that_began_from_raw_weights_goes_on_from_them_and_says_so(both, own, data, tmp_path, capsys):
    one, plain = recipe(own, network={"name": "cifar_resnet8", "start": both}), sha256_of(Path(both))
    run = RunFolder(tmp_path / "runs/start")
    assert start_digests(one, data, run) == {"network.start": f"{plain} state_dict_ema"}
    run.claim(one, {"network.start": plain})  # as an older edc did
    (run.student_path("be")).mkdir(parents=True)
    (run.student_path("be") / "metrics.jsonl").write_text("")
    assert start_digests(one, data, run) == {"network.start": plain}
    assert "begun so by an older edc" in " ".join(capsys.readouterr().err.split())
    started = build_plain(one, data)
    start_student(started, one, "kd", data, TeacherEnsemble([]), run=run, accelerator=Accelerator(cpu=True))
    raw = torch.load(both, weights_only=True)["state_dict"]
    assert torch.equal(started.network.stem.weight, raw["stem.weight"])


def test_teachers_that_start_from_the_average_are_others_than_those_from_raw_weights(both, data):
    def key(**more: str) -> dict[str, object]:
        return teacher_key(recipe([], network={"name": "cifar_resnet8", "start": both, **more}), data, 0)[1]

    plain = sha256_of(Path(both))
    assert key()["start"] == key(weights="ema")["start"] == f"{plain} state_dict_ema"
    assert key(weights="raw")["start"] == plain  # as edc 0.1.0 named it
    assert key()["network"] == {"name": "cifar_resnet8", "pretrained": False, "mean": None, "std": None}


def test_weights_of_a_start_without_a_file_are_refused():
    with pytest.raises(ValidationError, match=r"network.weights: found 'ema', which has no effect, because nothing "):
        recipe([], network={"name": "cifar_resnet8", "weights": "ema"})
    assert recipe([], network={"name": "cifar_resnet8", "weights": "auto"}).digest() == recipe([]).digest()
