"""The tour of an owner (`make tour`): what its trainers save is read as the owner's own code reads it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from command_line import edc
from conftest import TESTS

from edc.recipe.loading import load_recipe

PLACE = TESTS.parent / "examples/tour"
NAMES = ("photos", "teachers", "check", "tour")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The files of the tour, imported as they import one another."""
    sys.path.insert(0, str(PLACE))
    before = {name: sys.modules.pop(name, None) for name in NAMES}
    yield {name: __import__(name) for name in NAMES}
    sys.path.remove(str(PLACE))
    for name in NAMES:
        del sys.modules[name]
        if before[name] is not None:
            sys.modules[name] = before[name]


def test_init_reads_every_trainer_s_file_as_its_owner_does(modules, tmp_path, capsys):
    check, owner = modules["check"], modules["teachers"].Owner
    owners = [
        owner("timm", "model_best.pth.tar", "timm/test_resnet", 12, 5e-3),
        owner("lightning", "last.ckpt", "timm/test_resnet", 1, 5e-3),
    ]
    sizes = {"train": 320, "val": 100, "test": 30, "unlabelled": 40}
    modules["photos"].write_photos(tmp_path / "photos", tmp_path / "unlabelled", sizes=sizes, side=24)
    names = [path.name for folder in ("photos", "unlabelled") for path in (tmp_path / folder).rglob("*.png")]
    assert len(set(names)) == len(names) == sum(sizes.values())
    teachers, models = modules["teachers"], tmp_path / "models"
    teachers.train_teachers(owners[:1], tmp_path / "photos", models, side=24)
    trained = teachers.build(owners[1])  # the same weights, as the other trainer saves them
    trained.load_state_dict(torch.load(models / "model_best.pth.tar", weights_only=False)["state_dict"])
    torch.save(teachers.as_saved(owners[1], trained, trained, step=120, side=24), models / "last.ckpt")
    arguments = ("--extra", "unlabelled", "--image-size", "24", "--device", "cpu", "--threads", "1", "--json")
    called = edc("init", "photos", "models", *arguments, cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    labels = torch.tensor(check.ImageFolder(tmp_path / "photos/val").targets)
    found = {Path(one["file"]).name: one for one in called.document["checkpoints"]}
    for one in owners:
        probabilities = check.probabilities_of(one, models / one.file, tmp_path / "photos/val", side=24)
        assert found[one.file]["not_used"] is None
        assert found[one.file]["section"]["network"]["name"] == one.network
        assert found[one.file]["acc"] == pytest.approx(check.accuracy(probabilities, labels), abs=1e-9)
    recipe = load_recipe(tmp_path / "photos.yaml")
    assert [str(extra.root) for extra in recipe.data.extra] == ["unlabelled"]
    assert (recipe.network.name, recipe.network.start) == ("timm/test_resnet", "teacher")
    teachers.train_teachers(owners, tmp_path / "photos", models, side=24)
    assert capsys.readouterr().out.count(": is there") == len(owners)


@pytest.mark.slow
def test_whole_tour_ends_with_the_owner_s_own_figures(modules, tmp_path, capsys):
    def run(work: Path, arguments: list[str]) -> None:
        called = edc(*arguments, cwd=work)
        assert called.exit_code == 0, called.stderr

    tour = modules["tour"]
    for _ in range(2):  # the second time all is there
        assert tour.tour(tmp_path / "work", tour.FROM_SCRATCH, tour.TINY, run)
    shown = capsys.readouterr().out
    assert "DIFFERENT" not in shown
    for file in ("student.onnx", "baseline/ensemble.onnx", "model_best.pth.tar"):
        assert shown.count(f"{file} ") >= 2
    assert (tmp_path / "work/export/photos/report.html").is_file()
