"""`edc init`: what it finds in images and checkpoints as others leave them, and a recipe that a dry run accepts."""

import argparse
import json
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from command_line import Called, edc
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from edc.data import load_data
from edc.errors import CheckpointError
from edc.proposal.architecture import architecture_of, said_by
from edc.proposal.checkpoints_found import CheckpointFound
from edc.proposal.data_found import place_and_kind
from edc.proposal.network_choice import network_and_start
from edc.proposal.propose import Asked, propose
from edc.proposal.recipe_text import Choices, recipe_text
from edc.proposal.schedule import Schedule, schedule_for
from edc.recipe import CheckpointSection, DataSection, NetworkSection, Recipe
from edc.recipe.loading import load_recipe, recipe_from_document
from edc.runs.cost import units_per_step
from edc.system.documents import yaml_from_text
from edc.teachers.reading import Answered, Reading
from edc.train.checkpoint import load_document

CLASSES = ("class1", "class10", "class2", "class3")
AS_TIMM_SORTS = torch.tensor([0, 3, 1, 2])
"""The column of each class, in the order of its folder's name, of a network that timm trained."""
HALF = (0.5,) * 3, (0.5,) * 3  # timm's, of test_resnet
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Desk:
    """A folder with images and checkpoints, in which `edc init zip models` was called."""

    folder: Path
    called: Called

    @property
    def document(self) -> Any:
        return self.called.document

    def checkpoint(self, name: str) -> Any:
        (found,) = [one for one in self.document["checkpoints"] if Path(one["file"]).name == name]
        return found


def write_images(root: Path) -> tuple[Tensor, Tensor]:
    """Writes images of four easy classes as a zip file from macOS leaves them; returns those to learn from."""
    generator = torch.Generator().manual_seed(0)
    prototypes = F.interpolate(torch.rand(4, 3, 3, 3, generator=generator), size=(32, 32), mode="bilinear")
    learned = []
    for split, num in (("train", 64), ("val", 60), ("test", 12)):
        labels = torch.arange(num) % 4
        noise = torch.randn(num, 3, 32, 32, generator=generator) * 0.1
        pixels = ((prototypes[labels] + noise).clamp(0, 1) * 255).round().byte()
        learned.append((pixels.float() / 255, labels))
        for number, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            name = f"photos/{split}/{CLASSES[labels[number]]}/{number:03}.png"
            for path in (root / name, root / "__MACOSX" / Path(name).with_name(f"._{number:03}.png")):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / name)
            path.write_bytes(b"\0\5\x16\7")
    return learned[0]


def taught(network: nn.Module, head: nn.Linear, learned: tuple[Tensor, Tensor], of: Any, columns: Tensor) -> nn.Module:
    """Returns a random network whose classifier was fitted by least squares, with `of` as its normalisation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in of)
    kept: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        network.eval()((learned[0] - mean) / std)
        hook.remove()
        features = torch.cat([kept[0], torch.ones(len(kept[0]), 1)], 1).double()
        ridge = 1e-3 * features.var() * torch.eye(features.shape[1], dtype=torch.float64)
        wanted = F.one_hot(columns[learned[1]], 4).double() - 0.25
        solved = 20 * torch.linalg.solve(features.T @ features + ridge, features.T @ wanted)
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])
    return network


def timm_network(num_classes: int = 4) -> Any:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=num_classes)


def write_checkpoints(folder: Path, learned: tuple[Tensor, Tensor]) -> None:
    """Writes networks as their trainers save them."""
    folder.mkdir()
    in_order = torch.arange(4)
    of_timm, lightning, halved = timm_network(), timm_network(), timm_network()
    taught(of_timm, of_timm.fc, learned, HALF, AS_TIMM_SORTS)
    taught(lightning, lightning.fc, learned, HALF, in_order)
    taught(halved, halved.fc, learned, IMAGENET, in_order)
    options = argparse.Namespace(model="test_resnet", img_size=32)
    torch.save({"state_dict": of_timm.state_dict(), "args": options}, folder / "model_best.pth.tar")
    by_lightning = {
        "state_dict": {f"model.{key}": value for key, value in lightning.state_dict().items()},
        "hyper_parameters": {"backbone": "test_resnet", "lr": 1e-3},
        "pytorch-lightning_version": "2.5.0",
        "optimizer_states": [],
    }
    torch.save(by_lightning, folder / "epoch=3-step=40.ckpt")
    torch.save(halved.state_dict(), folder / "test_resnet_fold2.pth")
    torch.save(timm_network().state_dict(), folder / "untrained_test_resnet.pth")
    torch.save(timm_network(1000).state_dict(), folder / "test_resnet_of_imagenet.pth")
    (folder / "broken.pth").write_text("<html>log in first</html>")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for writing; files of it will be around for long
        torch.jit.script(nn.Flatten()).save(str(folder / "scripted.pt"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    learned = write_images(folder / "zip")
    write_checkpoints(folder / "models", learned)
    train = folder / "zip/photos/train/class1"
    (train.parent / ".DS_Store").touch()
    (train / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    shutil.copy(folder / "zip/photos/test/class1/000.png", train / "copied.png")
    called = edc("init", "zip", "models", "--device", "cpu", "--threads", "1", "--json", cwd=folder)
    assert called.exit_code == 0, called.stderr
    return Desk(folder, called)


def test_images_are_counted_by_split_and_class_and_what_is_wrong_with_them_is_said(desk):
    splits = desk.document["splits"]
    assert [split["images"] for split in splits.values()] == [66, 60, 12]
    assert splits["validation"]["by_class"] == dict.fromkeys(CLASSES, 15)
    assert splits["train"]["unreadable"].keys() == {"class1/cut.jpg"}
    assert splits["validation"]["majority"] == 0.25
    assert desk.document["duplicates"]["train and test"]["found"] == 1
    assert desk.document["duplicates"]["train and validation"]["found"] == 0
    assert "left out 1 hidden (.DS_Store)" in desk.called.stderr


def test_every_checkpoint_is_named_with_its_network_and_how_right_it_is(desk):
    assert len(desk.document["checkpoints"]) == 7
    for name, said in (
        ("model_best.pth.tar", "model_best.pth.tar says model: test_resnet"),
        ("epoch=3-step=40.ckpt", "epoch=3-step=40.ckpt says backbone: test_resnet"),
        ("test_resnet_fold2.pth", "the name test_resnet_fold2.pth"),
    ):
        found = desk.checkpoint(name)
        assert found["section"]["network"]["name"] == "timm/test_resnet"
        assert (found["not_used"], said in found["reasons"][0]) == (None, True)
        assert found["acc"] > 0.9


def test_checkpoint_that_is_read_better_otherwise_is_read_so(desk):
    assert desk.checkpoint("model_best.pth.tar")["section"]["classes"] == "natural"
    assert "mean" not in desk.checkpoint("epoch=3-step=40.ckpt")["section"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("untrained_test_resnet.pth", "answers at random would be on"),
        ("test_resnet_of_imagenet.pth", "timm/test_resnet with 1,000 classes, the data has 4"),
        ("broken.pth", "it is a web page (HTML)"),
        ("scripted.pt", "TorchScript, a program: opened only with --trust"),
    ],
)
def test_checkpoint_that_is_not_used_is_named_with_the_reason(name, why, desk):
    assert why in desk.checkpoint(name)["not_used"]
    assert f"left out: {name}" in " ".join((desk.folder / "zip.yaml").read_text().replace("#", "").split())


def test_recipe_says_what_was_found(desk):
    recipe = load_recipe(desk.folder / "zip.yaml")
    assert (recipe.name, str(recipe.data.root), recipe.data.image_size) == ("zip", "zip/photos", 32)
    assert [str(one.file) for one in recipe.teachers.checkpoints] == [
        "models/epoch=3-step=40.ckpt",
        "models/model_best.pth.tar",
        "models/test_resnet_fold2.pth",
    ]
    assert (recipe.network.name, recipe.network.start, recipe.deploy) == ("timm/test_resnet", "teacher", "best")
    assert list(recipe.students) == ["kd_split", "latent_be_split"]
    assert [(one.method, one.answers) for one in recipe.students.values()] == [("kd", "split"), ("latent_be", "split")]
    assert [recipe.training_of(one).factor_rate for one in recipe.students.values()] == [None, 0.1]
    assert [one.ema for one in recipe.students.values()] == [None, None]  # results/student_average.md: nothing gained
    assert 1 / 66 < recipe.data.max_bad_fraction < 0.03
    comments = [line for line in (desk.folder / "zip.yaml").read_text().splitlines() if "#" in line]
    assert len(comments) > 10


@pytest.mark.parametrize(
    ("several", "start", "why_no_members", "students"),
    [
        (True, "teacher", "", {"kd_split": ("kd", "split"), "latent_be_split": ("latent_be", "split")}),
        (True, None, "", {"kd": ("kd", "all"), "latent_be_split": ("latent_be", "split")}),
        (True, "teacher", "no layer takes factors", {"kd_split": ("kd", "split")}),
        (True, None, "no layer takes factors", {"kd": ("kd", "all")}),
        (False, "teacher", "", {"kd": ("kd", "all")}),
    ],
)
def test_students_are_those_that_the_tables_recommend(several, start, why_no_members, students):
    choices = Choices(
        name="photos",
        network=NetworkSection(name="wrn10x1", start=start),
        why_network="",
        has_batchnorm=True,
        num_labelled=900,
        num_extra=0,
        several=several,
        why_no_members=why_no_members,
    )
    text = recipe_text(DataSection(kind="cifar10", root="data"), [], choices, head=[])
    recipe = recipe_from_document(yaml_from_text(text), source="here")
    assert {name: (one.method, one.answers) for name, one in recipe.students.items()} == students
    comments = " ".join(text.replace("#", "").split())
    assert ("No student with members" in comments) == bool(why_no_members)
    assert why_no_members in comments
    assert ("from the one teacher" in comments) == (not several)


@pytest.mark.parametrize("num_extra", [0, 500])
def test_the_control_on_labels_alone_can_be_uncommented(num_extra):
    """It costs what the others do, and asks no teacher, also beside images without labels."""
    network = NetworkSection(name="wrn10x1", start="teacher")
    choices = Choices("photos", network, "", has_batchnorm=True, num_labelled=900, num_extra=num_extra, several=True)
    extra = ({"kind": "cifar10", "root": "more"},) if num_extra else ()
    data = DataSection.model_validate({"kind": "cifar10", "root": "data", "extra": extra})
    text = recipe_text(data, [], choices, head=[])
    assert "labels" not in recipe_from_document(yaml_from_text(text), source="here").students
    recipe = recipe_from_document(yaml_from_text(text.replace("  # labels:", "  labels:")), source="here")
    control, others = recipe.students["labels"], [recipe.students["kd_split"], recipe.students["latent_be_split"]]
    assert not control.asks_teachers(has_extra=bool(num_extra))
    labelled = 0.5 if num_extra else 1.0  # of a batch of the others; an epoch goes once through the labelled images
    costs = [
        units_per_step(one, 4, has_extra=bool(num_extra))
        * recipe.training_of(one).epochs
        / (labelled if one.extra else 1)
        for one in (control, *others)
    ]
    assert costs == pytest.approx([costs[0]] * 3, rel=0.02)


@pytest.mark.slow
def test_dry_run_accepts_the_recipe(desk):
    dry = edc("distill", "zip.yaml", "--dry-run", "--device", "cpu", "--threads", "1", "--json", cwd=desk.folder)
    assert dry.exit_code == 0, dry.stderr
    assert dry.document["digest"] == load_recipe(desk.folder / "zip.yaml").digest()


def test_what_is_there_is_never_overwritten(desk):
    before = (desk.folder / "zip.yaml").read_bytes()
    called = edc("init", "zip", "models", cwd=desk.folder)
    assert (called.exit_code, called.stdout) == (2, "")
    assert "zip.yaml: already exists and is not overwritten without --force" in called.stderr
    assert (desk.folder / "zip.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "IMAGES: missing; name a folder of images"),
        (("nowhere",), "no such folder of images"),
        (("zip", "nothing.pth"), "nothing.pth: no such file"),
        (("zip", "zip"), "no files of weights"),
        (("zip", "models/broken.pth", "models"), "is given twice"),
        (("zip", "--out", "recipe.txt"), "expected a file that ends in .yaml"),
        (("zip", "models", "--network", "other.pth=timm/resnet18"), "no checkpoint is called other.pth"),
        (("zip", "models", "--network", "timm/resnet1"), "timm has no such network"),
        (("zip", "--student", "resnet18"), "unknown network 'resnet18'"),
        (("zip", "--budget-ms", "2", "--backend", "torch"), "--backend: found torch, expected one of onnxruntime"),
        (("zip", "--budget-ms", "2", "--student", "wrn10x1"), "chooses the student, and --student names it"),
        (("zip", "--backend", "openvino"), "--backend: needs --budget-ms"),
    ],
)
def test_wrong_request_is_one_message_and_writes_nothing(arguments, message, desk, tmp_path):
    for name in ("zip", "models"):
        (tmp_path / name).symlink_to(desk.folder / name)
    called = edc("init", *arguments, cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (2, "")
    assert message in called.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "zip"]


def test_validation_image_that_cannot_be_read_is_named_and_nothing_is_written(desk, tmp_path):
    shutil.copytree(desk.folder / "zip/photos", tmp_path / "photos")
    (tmp_path / "photos/val/class2/bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    called = edc("init", "photos", "--json", "--threads", "1", cwd=tmp_path)
    assert called.exit_code == 2
    assert "val/class2/bad.png" in json.loads(called.stdout)["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_without_checkpoints_teachers_are_trained_here(desk, tmp_path):
    shutil.copytree(desk.folder / "zip/photos", tmp_path / "my photos")
    called = edc("init", "my photos", "--student", "wrn10x1", "--threads", "1", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    recipe = load_recipe(tmp_path / "my_photos.yaml")
    assert (recipe.teachers.size, recipe.teachers.checkpoints, recipe.network.start) == (4, (), None)
    assert [recipe.training_of(one).factor_rate for one in recipe.students.values()] == [None, 0.25]
    assert [one.ema for one in recipe.students.values()] == ["auto", "auto"]
    assert (recipe.students["kd"].answers, recipe.students["kd"].method) == ("all", "kd")
    assert "class10" in called.stdout


def test_student_whose_start_is_refused_learns_as_from_random_weights(desk, monkeypatch, accelerator):
    """It kept the epochs and the learning rate of a fine-tuning."""
    monkeypatch.chdir(desk.folder)

    def refused(recipe: Recipe, *_: object) -> None:
        if recipe.network.start == "teacher":
            raise CheckpointError("scripted.pt: is a program, which has no weights to start from")

    def proposed() -> Recipe:
        return propose(Asked(Path("zip"), (Path("models"),)), accelerator=accelerator).recipe

    as_it_was = proposed()
    monkeypatch.setattr("edc.proposal.propose.require_teachers_to_start_from", refused)
    recipe = proposed()
    assert (as_it_was.network.start, recipe.network.start) == ("teacher", None)
    fields = ("epochs", "warmup_epochs", "optimizer", "learning_rate", "weight_decay")
    assert [getattr(as_it_was.training, field) for field in fields] == [60, 2, "adamw", 0.003, 0.01]
    assert [getattr(recipe.training, field) for field in fields] == [100, 5, "sgd", 0.05, 5e-4]
    assert [recipe.training_of(one).factor_rate for one in recipe.students.values()] == [None, 0.25]


def found_in(path: Path, **others: Any) -> Any:
    document = load_document(path)
    sizes = {"num_classes": 4, "num_channels": 3, "image_size": 64}
    return architecture_of(path, document, said_by(path, document), **(sizes | others))


def test_bare_state_dict_is_told_by_its_keys_and_shapes(tmp_path):
    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=4).state_dict(), tmp_path / "fold0.pth")
    found = found_in(tmp_path / "fold0.pth")
    assert (found.name.rpartition("/")[2], found.num_classes, found.why) == ("resnet18", 4, "by its keys and shapes")


def test_transformer_is_told_with_the_size_of_its_images(tmp_path):
    network = timm.create_model("test_vit", num_classes=4, img_size=96)
    torch.save(
        {"model": network.state_dict(), "args": argparse.Namespace(model="test_vit", img_size=96)}, tmp_path / "a.pth"
    )
    assert (found_in(tmp_path / "a.pth").name, found_in(tmp_path / "a.pth").image_size) == ("timm/test_vit", 96)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", '{"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 96, 96]}}'),
        ("args.yaml", "model: test_resnet.r160_in1k\nimg_size: 96\n"),
        ("hparams.yaml", "net:\n  model_name: timm/test_resnet\n  image_size: 96\n"),
    ],
)  # fmt: skip
def test_file_beside_the_weights_names_their_network_and_size(name, text, tmp_path):
    torch.save(timm_network().state_dict(), tmp_path / "weights.pt")
    (tmp_path / name).write_text(text)
    said = said_by(tmp_path / "weights.pt", load_document(tmp_path / "weights.pt"))
    assert (said.names[0][0], said.size) == ("timm/test_resnet", 96)
    assert said.names[0][1].startswith(f"{name} says")
    assert found_in(tmp_path / "weights.pt").name == "timm/test_resnet"


def test_name_that_the_weights_do_not_fit_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr("edc.proposal.architecture.SECONDS_TO_MATCH", 0.0)
    torch.save(timm_network().state_dict(), tmp_path / "resnet18.pt")
    with pytest.raises(CheckpointError) as raised:
        found_in(tmp_path / "resnet18.pt")
    said = str(raised.value)
    assert re.search(
        r"fit none of the \d+ networks .* until 0 s of computing were over, which were too few for all", said
    )
    assert re.search(r"As t\w+/resnet18, the name resnet18.pt: [\w.]+: .* in the", said)
    assert said.endswith(
        "If it is another, give its name: --network resnet18.pt=timm/NAME or torchvision/NAME. "
        "A network that neither has is given whole, as TorchScript, .pt2 or ONNX"
    )


def test_named_transformer_is_told_at_another_size_than_the_datas(tmp_path):
    torch.save(timm.create_model("test_vit", num_classes=4, img_size=96).state_dict(), tmp_path / "mine.pth")
    found = found_in(tmp_path / "mine.pth", image_size=32, asked=[("timm/test_vit", "as --network says")])
    assert (found.name, found.image_size) == ("timm/test_vit", 96)


def test_network_of_another_stem_is_told_where_it_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("edc.proposal.architecture.SECONDS_TO_MATCH", 0.0)
    network = models.resnet18(num_classes=4)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    differs = (
        r"As torchvision/resnet18, as --network says: conv1.weight: \(64, 3, 3, 3\) in the file, \(64, 3, 7, 7\) in"
    )
    with pytest.raises(CheckpointError, match=differs):
        found_in(tmp_path / "mine.pth", asked=[("torchvision/resnet18", "as --network says")])


def test_folder_within_a_folder_is_found_as_zip_files_make_them(desk, tmp_path):
    assert place_and_kind(desk.folder / "zip") == (desk.folder / "zip/photos", "image_folder")
    for name, kind in (("train-00000.parquet", "parquet"), ("set-train-0.tar", "webdataset")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).touch()
        assert place_and_kind(tmp_path / kind) == (tmp_path / kind, kind)


def test_text_with_signs_of_yaml_is_written_as_text(desk, tmp_path):
    shutil.copytree(desk.folder / "zip/photos", tmp_path / "a: [b] #1")
    called = edc("init", "a: [b] #1", "--student", "wrn10x1", "--threads", "1", "--device", "cpu", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    (written,) = tmp_path.glob("*.yaml")
    assert yaml_from_text(written.read_text())["data"]["root"] == "a: [b] #1"


def test_images_without_labels_become_extra_images_of_the_recipe_with_what_is_wrong_with_them(desk, tmp_path):
    shutil.copytree(desk.folder / "zip/photos", tmp_path / "photos")
    for number in range(20):
        where = tmp_path / f"found/2024/{number}.png"
        where.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (number, 0, 0)).save(where)
    shutil.copy(tmp_path / "photos/test/class1/000.png", tmp_path / "found/known.png")
    (tmp_path / "found/cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    arguments = ("init", "photos", "--extra", "found", "--student", "wrn10x1", "--threads", "1", "--device", "cpu")
    called = edc(*arguments, "--json", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    assert "without labels: 22 images in found" in called.stderr
    assert called.document["splits"]["extra"]["unreadable"].keys() == {"cut.png"}
    assert called.document["duplicates"]["extra and test"] == {"found": 1, "looked_at": 22}
    (extra,) = load_recipe(tmp_path / "photos.yaml").data.extra
    assert (extra.kind, str(extra.root)) == ("image_folder", "found")
    assert 1 / 22 < extra.max_bad_fraction < 0.1
    assert "22 images without labels: students learn the teachers' answers" in (tmp_path / "photos.yaml").read_text()
    assert "1 of 22 images looked at are in both extra and test" in (tmp_path / "photos.yaml").read_text()


def test_folder_without_images_is_no_extra_images_and_nothing_is_written(desk, tmp_path):
    (tmp_path / "photos").symlink_to(desk.folder / "zip/photos")
    (tmp_path / "found").mkdir()
    for where, message in (("found", "found: no images"), ("lost", "lost: no such folder of images")):
        called = edc("init", "photos", "--extra", where, "--threads", "1", "--device", "cpu", cwd=tmp_path)
        assert (called.exit_code, called.stdout) == (2, "")
        assert message in called.stderr
    assert not (tmp_path / "photos.yaml").exists()


def test_student_of_a_teacher_that_is_read_otherwise_starts_at_random_and_the_recipe_says_why():
    data = load_data(DataSection(kind="synthetic", num_images=8, image_size=8, num_classes=3))
    network = NetworkSection(name="cifar_resnet8")

    def found(name: str, **fields: Any) -> CheckpointFound:
        section = CheckpointSection(file=Path(name), network=network, **fields)
        return CheckpointFound(Path(name), "state_dict", section=section)

    other = CheckpointFound(
        Path("c.pt"),
        "state_dict",
        section=CheckpointSection(file=Path("c.pt"), network=NetworkSection(name="wrn10x2"), weights="raw"),
    )
    ordered, plain = found("a.pt", classes="natural"), found("b.pt")
    student, why = network_and_start(None, data, [other, ordered])
    assert student == network
    assert why.endswith("It starts from random weights, because its teacher has an order of classes of its own, and a "
                        "student has the data's")  # fmt: skip
    student, why = network_and_start(None, data, [other, ordered, plain])
    assert (student.name, student.start) == ("cifar_resnet8", "b.pt")
    assert why.endswith("It starts from the weights of the best teacher of that network")


def test_student_of_a_teacher_with_another_normalisation_or_raw_weights_starts_from_it_read_so():
    """It started from random weights, "because its teacher has mean of its own", which a student may have, too."""
    data = load_data(DataSection(kind="synthetic", num_images=8, image_size=8, num_classes=3))
    own: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "weights": "raw"}
    used = [
        CheckpointFound(Path(name), "state_dict", section=CheckpointSection(file=Path(name), network=network, **fields))
        for name, network, fields in (("a.pt", "cifar_resnet8", own), ("b.pt", "wrn10x2", {}))
    ]
    student, _ = network_and_start(None, data, used)
    assert student == NetworkSection(name="cifar_resnet8", start="a.pt", **own)
    choices = Choices("photos", student, "", has_batchnorm=True, num_labelled=100, num_extra=0, several=True)
    text = recipe_text(DataSection(kind="cifar10", root="data"), [], choices, head=[])
    assert recipe_from_document(yaml_from_text(text), source="here").network == student


@pytest.mark.parametrize(("accs", "better"), [((0.9, 0.8), "timm/resnet18"), ((0.8, 0.9), "torchvision/resnet18")])
def test_of_networks_of_one_size_the_student_is_that_of_the_better_teacher(accs, better):
    """It depended on the hash of their names, which is another one in each process."""
    data = load_data(DataSection(kind="synthetic", num_images=8, image_size=32, num_classes=3))
    used = [
        CheckpointFound(
            Path(f"{number}.pt"),
            "state_dict",
            section=CheckpointSection(file=Path(f"{number}.pt"), network=NetworkSection(name=name)),
            answered=Answered(number, name, acc, chance=0.3, nll=1.0, reading=Reading((0.5,), (0.5,), "data")),
        )
        for number, (name, acc) in enumerate(zip(("timm/resnet18", "torchvision/resnet18"), accs, strict=True))
    ]
    assert network_and_start(None, data, used)[0].name == better


def images_seen(schedule: Schedule, num_labelled: int, *, extra: bool) -> int:
    """Returns how many images pass through a student in all."""
    return schedule.epochs * num_labelled * (2 if extra else 1)


@pytest.mark.parametrize("from_weights", [True, False])
@pytest.mark.parametrize("num_labelled", [240, 700, 4_000])
def test_images_without_labels_never_shorten_the_training(from_weights, num_labelled):
    """More of them had meant larger batches and half the epochs: 210 steps in place of 900."""
    without = schedule_for(from_weights=from_weights, has_batchnorm=True, num_labelled=num_labelled)
    for num_extra in (100, 5_600, 50_000):
        found = schedule_for(
            from_weights=from_weights, has_batchnorm=True, num_labelled=num_labelled, num_extra=num_extra
        )
        assert found.epochs >= without.epochs
        seen = images_seen(found, num_labelled, extra=True)
        assert seen / found.batch_size >= images_seen(without, num_labelled, extra=False) / without.batch_size
        if found.epochs < 1000:
            as_many = schedule_for(from_weights=from_weights, has_batchnorm=True, num_labelled=num_labelled + num_extra)
            assert seen >= 0.99 * images_seen(as_many, num_labelled + num_extra, extra=False)
        assert 1 <= found.epochs // found.validate_every <= 199


def test_epochs_from_weights_have_no_step_between_few_and_many_images():
    steps = [
        (s := schedule_for(from_weights=True, has_batchnorm=True, num_labelled=n)).epochs * n / s.batch_size
        for n in (4_999, 5_000)
    ]
    assert steps[1] >= steps[0]
    epochs = [
        schedule_for(from_weights=True, has_batchnorm=True, num_labelled=n).epochs
        for n in (100, 5_000, 7_500, 10_000, 1_000_000)
    ]
    assert epochs == [60, 60, 40, 30, 30]


def test_no_recipe_is_written_if_no_checkpoint_can_be_used_and_a_word_is_said_of_each_that_is_not(desk, tmp_path):
    torch.save({"weight": torch.zeros(3, 3)}, tmp_path / "strange.pth")
    named = ("--network", "timm/test_resnet", "--out", tmp_path / "mine.yaml", "--device", "cpu", "--threads", "1")
    called = edc("init", desk.folder / "zip", tmp_path / "strange.pth", *named, cwd=tmp_path)
    assert called.exit_code == 2
    assert "none of the 1 checkpoints can be used, so no recipe is written:\n  strange.pth: " in called.stderr
    assert not (tmp_path / "mine.yaml").exists()
    good = desk.folder / "models/test_resnet_fold2.pth"
    called = edc("init", desk.folder / "zip", tmp_path / "strange.pth", good, *named, cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    assert (
        "warning: 1 of 2 checkpoints are not used, for the reasons above: strange.pth. The recipe is" in called.stdout
    )


def test_list_of_names_and_labels_is_named_where_there_are_no_class_folders(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("file,label\na.jpg,0\n")
    for place in (tmp_path, tmp_path / "labels.csv"):
        called = edc("init", place, "--out", tmp_path / "mine.yaml", cwd=tmp_path)
        assert called.exit_code == 2
        assert "labels.csv: a list of names and labels is not read: make a folder per class of it" in called.stderr
