"""The user's trackers (mlflow, wandb, ...), through accelerate's `log_with`: mirrors of metrics.jsonl.

A tracker gets the lines of metrics.jsonl that it has not got yet. tracked.json beside it says, by tracker, which of its
runs that is and how many epochs it has, so that a training that goes on duplicates nothing and loses nothing: a tracker
that could not be reached, or was asked for late, is sent the epochs before. Epochs that a training repeats after it was
cut off are not sent again, because they are the same. Only the main process comes here.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from pydantic import BaseModel

from edc.console import console
from edc.errors import FailedError, NotInstalledError, RequestError, first_line
from edc.system.files import write_json
from edc.system.saved import read_saved
from edc.train.saved.epochs import read_metrics

__all__ = ["Tracked", "Trackers", "require_trackers"]

PROJECT = "edc"
KEPT = "tracked.json"
PACKAGES = {"comet_ml": "comet-ml"}


@dataclass(frozen=True)
class Tracked:
    """One training, as trackers show it."""

    title: str
    hyper_parameters: Mapping[str, Any]


class _Sent(BaseModel):
    """What one tracker has got."""

    run: str | None = None
    """Its own name of the run; None: a run of this tracker cannot be continued."""
    epochs: int = 0


def require_trackers(names: Sequence[str]) -> None:
    """Raises an error about the first name that is no tracker's, or whose package is not installed."""
    known = sorted({*LOGGER_TYPE_TO_CLASS, *LoggerType.list()} - {"all", "tensorboard"})
    installed = {str(name) for name in get_available_trackers()} | ({*LOGGER_TYPE_TO_CLASS} - {*LoggerType.list()})
    for name in names:
        if name == "tensorboard":
            raise RequestError(
                "--track: found tensorboard, which is always written: tensorboard/ in the folder of each training"
            )
        if name not in known:
            raise RequestError(f"--track: found {name!r}, expected one of {', '.join(known)}")
        if name not in installed:
            here = ", ".join(sorted(installed - {"tensorboard"})) or "none"
            package = PACKAGES.get(name, name)
            raise NotInstalledError(f"--track: {name} is not installed here (pip install {package}); installed: {here}")


class Trackers:
    """The trackers of one training, begun or continued."""

    def __init__(self, folder: Path, about: Tracked | None, accelerator: Accelerator) -> None:
        self.folder, self.running = folder, dict[str, GeneralTracker]()
        path = folder / KEPT
        names = [str(name) for name in accelerator.log_with] if about else []
        advice = "remove it, and the trackers get all epochs in new runs"
        self.sent = read_saved(dict[str, _Sent], path, advice=advice)[0] if names and path.is_file() else {}
        for name in names:
            if name in self.sent and self.sent[name].run is None:
                console.print(f"{name}: edc cannot continue a run of it; a new one gets all epochs", highlight=False)
                del self.sent[name]
            assert about is not None
            self.running[name] = self._started(name, about, str(accelerator.logging_dir or folder))
        if names:
            self.send()

    def send(self) -> None:
        """Sends each tracker the epochs that it has not got; what fails is said, and tried again with the next."""
        lines = read_metrics(self.folder / "metrics.jsonl")
        for name, tracker in self.running.items():
            try:
                for line in lines[self.sent[name].epochs :]:
                    tracker.log(dict(_figures(line)), step=line["step"])
                    self.sent[name].epochs += 1
            except Exception as error:  # noqa: BLE001 - a library of the user's choice: a training does not end by it
                console.print(
                    f"warning: {name}: {first_line(error)}; the figures are in {self.folder}/metrics.jsonl, and are "
                    "sent with the next epoch",
                    highlight=False,
                    markup=False,
                )
        if self.running:
            write_json(self.folder / KEPT, {name: sent.model_dump() for name, sent in self.sent.items()})

    def finish(self) -> None:
        """Ends the runs of the trackers."""
        for name, tracker in self.running.items():
            try:
                tracker.finish()
            except Exception as error:  # noqa: BLE001 - as above
                console.print(f"warning: {name}: {first_line(error)}", highlight=False, markup=False)

    def _started(self, name: str, about: Tracked, place: str) -> GeneralTracker:
        kind = LOGGER_TYPE_TO_CLASS[name]
        known = self.sent.get(name)
        run = known.run if known else None
        project = PROJECT if name in ("mlflow", "wandb", "trackio", "swanlab", "clearml", "comet_ml") else about.title
        places = [place] if kind.requires_logging_directory else []
        try:
            tracker = kind(project, *places, **_options(name, about, run))
            tracker.start()
            if known is None:
                tracker.store_init_configuration(dict(_flat(about.hyper_parameters)))
                self.sent[name] = _Sent(run=_run_of(name, tracker))
        except Exception as error:
            raise FailedError(
                f"--track: {name} does not begin: {first_line(error)}. Set it up as its documents say, or leave it out"
            ) from error
        return tracker


def _options(name: str, about: Tracked, run: str | None) -> dict[str, Any]:
    """Returns what names a new run of a tracker, or continues `run`."""
    by_name: dict[str, dict[str, Any]] = {
        "mlflow": {"run_id": run} if run else {"run_name": about.title},
        "wandb": {"name": about.title, "id": run or uuid.uuid4().hex, "resume": "allow"},
        "trackio": {"name": about.title, "resume": "allow"},
        "swanlab": {"experiment_name": about.title},
        "clearml": {"task_name": about.title, "reuse_last_task_id": False},
        "dvclive": {"dir": f"dvclive/{about.title}", "resume": True, "save_dvc_exp": False},
    }
    return by_name.get(name, {})


def _run_of(name: str, tracker: GeneralTracker) -> str | None:
    """Returns the tracker's own name of its run, if a run of it can be continued."""
    match name:
        case "mlflow":
            return str(tracker.tracker.info.run_id)
        case "wandb":
            return str(tracker.tracker.id)
        case "trackio" | "dvclive" | "tensorboard":
            return name
        case _:
            return None


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of nested mappings under names like training.epochs, as numbers or text."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value if isinstance(value, int | float | str | bool) else str(value)


def _figures(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the figures of a line of metrics.jsonl; those that were observed have names like observed/agreement."""
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{name}", each) for name, each in value.items() if isinstance(each, int | float))
        elif isinstance(value, int | float) and key != "step":
            yield key, value
