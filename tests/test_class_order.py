"""The order of a teacher's answers: held against timm's and torchvision's own readers of one folder of images."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torch import nn
from torchvision.datasets import ImageFolder

from edc.data import load_data
from edc.errors import RecipeError
from edc.networks import build_network
from edc.recipe import CheckpointSection, DataSection, NetworkSection
from edc.teachers.class_order import known_orders, order_of
from edc.teachers.from_file import load_file_teacher
from edc.teachers.start import start_from_teacher

NAMES = (*(f"class{k}" for k in range(12)), "Zebra", "ant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split in ("train", "val", "test"):
        for name in NAMES:
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{i}.png")
    return root


def names_of(folder: Path) -> tuple[str, ...]:
    return load_data(DataSection(kind="image_folder", root=folder, image_size=8, num_workers=0)).class_names


def test_orders_are_those_of_the_libraries_readers(folder):
    names = names_of(folder)
    timms = find_images_and_targets(str(folder / "train"))[1]
    torchvisions = ImageFolder(folder / "train").class_to_idx
    assert order_of("natural", names, field="t") == tuple(timms[name] for name in names)
    assert tuple(torchvisions[name] for name in names) == tuple(range(len(names)))
    assert order_of("lexicographic", names, field="t") is None  # as the data's
    assert known_orders(names) == {"natural": tuple(timms[name] for name in names), "lexicographic": None}


@pytest.mark.parametrize("form", ["list", "txt", "list.json", "id2label.json", "class_to_idx.json"])
def test_names_in_any_form_give_the_same_columns(tmp_path, form):
    names, theirs = ("a", "b", "c"), ["c", "a", "b"]
    contents: dict[str, Any] = {
        "txt": "\ufeffc\na\nb\n\n",
        "list.json": json.dumps(theirs),
        "id2label.json": json.dumps({"2": "b", "0": "c", "1": "a"}),
        "class_to_idx.json": json.dumps({"a": 1, "b": 2, "c": 0}),
    }
    classes: Any = theirs
    if form != "list":
        classes = str(tmp_path / f"names.{form}")
        Path(classes).write_text(contents[form])
    section = CheckpointSection(file=Path("w.pt"), classes=classes)
    assert order_of(section.classes, names, field="t") == (1, 2, 0)


def teacher(path: Path, **options: Any) -> Any:
    return load_file_teacher(
        CheckpointSection(file=path, **options),
        field="teachers.checkpoints.0",
        default_network=NetworkSection(name="wrn10x1"),
        class_names=("a", "b", "c", "d"),
        image_shape=(3, 8, 8),
        of_data=((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)),
    )


@pytest.fixture
def network(tmp_path) -> nn.Module:
    torch.manual_seed(0)
    of_data: Any = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.2)}
    found = build_network(NetworkSection(name="wrn10x1"), num_classes=4, image_shape=(3, 8, 8), **of_data).eval()
    torch.save(found.network.state_dict(), tmp_path / "w.pt")
    return found


PROBABILITIES: dict[str, Any] = {"output": "probabilities", "trust": True, "mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize("options", [{}, {"input_size": 8}, PROBABILITIES])
def test_answers_come_in_the_datas_order(network, tmp_path, options):
    images, theirs = torch.rand(5, 3, 8, 8), ["d", "b", "a", "c"]
    if "output" in options:
        batch = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.export.export(nn.Sequential(network, nn.Softmax(1)), (images,), dynamic_shapes=batch)
        torch.export.save(program, tmp_path / "w.pt2")
    path = tmp_path / ("w.pt2" if "output" in options else "w.pt")
    found, plain = (teacher(path, **options, **more).network for more in ({"classes": theirs}, {}))
    with torch.no_grad():
        answers, as_in_file = found(images), plain(images)
        for k, name in enumerate("abcd"):
            assert torch.equal(answers[:, k], as_in_file[:, theirs.index(name)])


def test_student_that_starts_from_such_a_teacher_answers_in_the_datas_order(network, tmp_path):
    one = teacher(tmp_path / "w.pt", classes=["d", "b", "a", "c"]).network
    section = NetworkSection(name="wrn10x1")
    student = build_network(section, num_classes=4, image_shape=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3).eval()
    start_from_teacher(student, section, one, source="students.kd.start")
    images = torch.rand(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(student(images), one(images))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b", "c"], r"t.classes: found 3 classes without d; expected the 4 classes of the data"),
        (["a", "b", "c", "x"], r"without d and with x, which the data has not"),
        (["a", "b", "c", "d", "d"], r"found 5 classes with names that come twice"),
        ("nowhere.txt", r"nowhere.txt: cannot be read \(No such file or directory\); expected names of classes"),
    ],
)
def test_names_that_are_not_the_datas_are_refused(classes, message):
    with pytest.raises(RecipeError, match=message):
        order_of(CheckpointSection(file=Path("w.pt"), classes=classes).classes, ("a", "b", "c", "d"), field="t")


def test_accents_of_macos_and_of_linux_are_one_name():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert order_of(("tea", decomposed), (composed, "tea"), field="t") == (1, 0)
    assert order_of(("tea", composed), (decomposed, "tea"), field="t") == (1, 0)
    assert order_of((decomposed, "tea"), (composed, "tea"), field="t") is None


def test_rule_by_which_two_classes_are_equal_is_refused():
    with pytest.raises(RecipeError, match=r"t.classes: found 'natural', in which 'A1' and 'a1' have one place"):
        order_of("natural", ("A1", "a1", "b"), field="t")


def test_another_word_is_refused_by_the_recipe():
    with pytest.raises(ValueError, match=r"found 'alphabetic'; expected a list of names, natural, lexicographic or a"):
        CheckpointSection(file=Path("w.pt"), classes="alphabetic")
