"""Trackers are mirrors of metrics.jsonl, whatever a training went through; they are no part of what a run is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from command_line import edc
from conftest import TINY_RECIPE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_cases import raise_signal_at, run_case

from edc.errors import FailedError, Interrupted
from edc.recipe.loading import load_recipe
from edc.train.saved.epochs import read_metrics
from edc.train.tracking.trackers import Tracked

TEACHER = "teacher, float32"
ABOUT = Tracked("runs/teacher", {"seed": 7, "training": {"epochs": 6, "optimizer": "sgd"}})


class Notebook(GeneralTracker):
    """A tracker of the user's own: it writes what it is told, and fails if a file says so."""

    name = "notebook"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.title, self.folder = run_name, Path(logging_dir)

    def start(self) -> None:
        if (self.folder / "no licence").exists():
            raise ConnectionError("no licence for notebook")
        self.pages = self.folder / f"notebook{len([*self.folder.glob('notebook*')])}.jsonl"
        self._write({"title": self.title})

    @property
    def tracker(self) -> "Notebook":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._write({"hyper-parameters": values})

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        if (self.folder / "offline").exists():
            raise ConnectionError("no network\nand more")
        self._write({**values, "step": step})

    def finish(self) -> None:
        self._write({"finished": True})

    def _write(self, line: dict[str, Any]) -> None:
        with self.pages.open("a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def notebook() -> Iterator[None]:
    LOGGER_TYPE_TO_CLASS[Notebook.name] = Notebook
    yield
    del LOGGER_TYPE_TO_CLASS[Notebook.name]


def tracking(name: str, place: Path) -> Accelerator:
    return Accelerator(cpu=True, log_with=name, project_dir=place)


def flat(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns lines of metrics.jsonl as trackers show them."""
    return [
        {key: value for key, value in line.items() if key != "observed"}
        | {f"observed/{key}": value for key, value in line.get("observed", {}).items()}
        for line in lines
    ]


def pages(place: Path) -> list[list[dict[str, Any]]]:
    """Returns the lines of each run that the notebook holds."""
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(place.glob("notebook*"))]


def test_tensorboard_of_accelerate_has_each_epoch_once_after_two_interruptions(tmp_path):
    run, place = tmp_path / "run", tmp_path / "place"
    for first, stop in ((0, 9), (10, 18)):
        with pytest.raises(Interrupted):
            run_case(
                TEACHER,
                run,
                tracking("tensorboard", place),
                before_step=raise_signal_at(stop),
                first_step=first,
                tracked=ABOUT,
            )
    run_case(TEACHER, run, tracking("tensorboard", place), first_step=19, tracked=ABOUT)
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [4, 8, 12, 16, 20, 24]
    found = EventAccumulator(str(place / "runs/teacher")).Reload()
    for tag in ("loss", "validation_acc", "learning_rate", "epoch"):
        shown = {event.step: event.value for event in found.Scalars(tag)}
        assert len(found.Scalars(tag)) == len(lines)
        assert shown == {line["step"]: pytest.approx(line[tag], rel=1e-6) for line in lines}
    (told,) = (place / "runs/teacher").glob("*/hparams.yml")
    assert "training.epochs: 6" in told.read_text()


def test_tracker_that_cannot_be_reached_or_is_asked_for_late_gets_all_epochs(tmp_path, notebook, capfd):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_case(TEACHER, run, Accelerator(cpu=True), before_step=raise_signal_at(9), tracked=ABOUT)
    (tmp_path / "offline").touch()

    def back_online(step: int) -> None:
        if step == 17:
            (tmp_path / "offline").unlink()

    run_case(TEACHER, run, tracking("notebook", tmp_path), before_step=back_online, first_step=10, tracked=ABOUT)
    title, told, *epochs, end = pages(tmp_path)[0]
    assert title == {"title": "runs/teacher"}
    assert told == {"hyper-parameters": {"seed": 7, "training.epochs": 6, "training.optimizer": "sgd"}}
    assert epochs == flat(read_metrics(run / "metrics.jsonl"))
    assert (len(epochs), end) == (6, {"finished": True})
    said = "".join(capfd.readouterr().err.split())
    assert said.count("warning:notebook:nonetwork;thefiguresarein") == 3  # on beginning, and after two epochs


def test_run_that_its_tracker_cannot_continue_is_told_anew_from_its_first_epoch(tmp_path, notebook, capfd):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        run_case(TEACHER, run, tracking("notebook", tmp_path), before_step=raise_signal_at(9), tracked=ABOUT)
    run_case(TEACHER, run, tracking("notebook", tmp_path), first_step=10, tracked=ABOUT)
    lines = flat(read_metrics(run / "metrics.jsonl"))
    assert [page[2:-1] for page in pages(tmp_path)] == [lines[:2], lines]
    assert "cannot continue a run of it" in capfd.readouterr().err


def test_tracker_that_does_not_begin_ends_the_training_before_its_first_step(tmp_path, notebook):
    (tmp_path / "no licence").touch()
    with pytest.raises(FailedError, match="--track: notebook does not begin: no licence for notebook"):
        run_case(TEACHER, tmp_path / "run", tracking("notebook", tmp_path), tracked=ABOUT)
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_command_tracks_every_training_and_the_recipe_is_the_same(tmp_path, notebook):
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    called = edc("distill", "tiny.yaml", "--track", "notebook", "--device", "cpu", "--json", cwd=tmp_path)
    assert called.exit_code == 0, called.stderr
    told = {page[0]["title"]: page for page in pages(tmp_path / "runs")}
    trainings = {path.parent.name: path.parent for path in (tmp_path / "runs").glob("**/metrics.jsonl")}
    assert len(trainings) == 4
    for title, page in told.items():
        folder = trainings.pop(title.rpartition("/")[2])
        assert page[2:-1] == flat(read_metrics(folder / "metrics.jsonl"))
    assert not trainings
    assert told["tiny/latent_be"][1]["hyper-parameters"]["student.perturbation"] == "tdiv_sdiv"
    assert load_recipe(tmp_path / "runs/tiny/recipe.yaml").digest() == load_recipe(tmp_path / "tiny.yaml").digest()
    again = edc("distill", "tiny.yaml", "--device", "cpu", "--json", cwd=tmp_path)
    assert again.document == called.document
    assert "tracker" not in again.stderr
    late = edc("distill", "tiny.yaml", "--track", "notebook", "--device", "cpu", "--json", cwd=tmp_path)
    assert "runs/tiny: is finished, so nothing is sent to a tracker" in late.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--track", "mlfow"), "--track: found 'mlfow', expected one of aim, "),
        (("--track", "tensorboard"), "which is always written: tensorboard/ in the folder of each training"),
        (("--track", "mlflow", "--dry-run"), "--track: has no effect with --dry-run and --profile"),
        (("--track", "MISSING"), "is not installed here (pip install"),
    ],
)
def test_tracker_that_cannot_be_used_is_refused_before_anything_trains(arguments, message, tmp_path):
    missing = {"aim", "clearml", "dvclive", "mlflow", "wandb"} - {str(name) for name in get_available_trackers()}
    if "MISSING" in arguments and not missing:
        pytest.skip("all of aim, clearml, dvclive, mlflow, wandb are installed")
    (tmp_path / "tiny.yaml").write_text(TINY_RECIPE)
    arguments = [min(missing) if argument == "MISSING" else argument for argument in arguments]
    called = edc("distill", "tiny.yaml", *arguments, "--device", "cpu", cwd=tmp_path)
    assert (called.exit_code, called.stdout) == (2, "")
    assert message in called.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
