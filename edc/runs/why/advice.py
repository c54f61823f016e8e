"""What the teachers of a run are like on a sample of images, before any student is trained.

A student can win over one teacher what the ensemble gains over one teacher. Whether the teachers have fitted their
training images tells two cases apart. Nothing is chosen by it, and nothing refused that the run itself would take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from accelerate import Accelerator

from edc import metrics
from edc.data import DataSet
from edc.errors import EdcError
from edc.method.losses import wide
from edc.metrics.ensemble import ensemble_log_probs
from edc.metrics.intervals import Interval, mean_interval
from edc.recipe import NetworkSection, Recipe
from edc.runs.folder import RunFolder
from edc.runs.own_teachers import own_teachers_of
from edc.runs.why.sample import Array, ask, read_sample
from edc.teachers.ensemble import TeacherEnsemble, load_teachers, teacher_key
from edc.teachers.from_library import has_library_weights
from edc.teachers.reading import OwnTeacher
from edc.teachers.roll_call.call import FEW_IMAGES, RollCall, call_roll
from edc.train.distributed import by_main, one_of_a_machine_first

__all__ = ["FITTED_FROM", "Advice", "Case", "advice_of", "rehearse_roll_call"]

NUM_IMAGES = 1000
"""Images of each split that are looked at, at most."""
FITTED_FROM = 0.95
"""Teachers whose mean accuracy on training images is at least this have fitted them."""
Case = Literal["fitted", "not_fitted", "unknown"]


@dataclass(frozen=True)
class Advice:
    """Figures of the teachers; `train_acc` and `validation_acc` are means over them.

    Calibrated NLL: each teacher, and the ensemble, with the temperature that is best on these validation images.
    Gains are of the ensemble over the mean of its teachers, with 95 % intervals over images; more is better in both.
    """

    case: Case
    from_weights: bool
    """Whether all students start from weights, and not at random."""
    num_teachers: int
    num_train: int
    num_validation: int
    train_acc: float | None
    """None: the training images have no labels."""
    validation_acc: float
    ensemble_validation_acc: float
    best_teacher: int
    """The one with the best accuracy on these validation images, which is `best_validation_acc`."""
    best_validation_acc: float
    calibrated_nll: float
    ensemble_calibrated_nll: float
    gain_acc: Interval
    gain_calibrated_nll: Interval


def rehearse_roll_call(
    recipe: Recipe, data: DataSet, *, run: RunFolder, accelerator: Accelerator
) -> tuple[list[OwnTeacher], RollCall | None]:
    """Returns the user's own teachers, and their roll call on at most as many validation images as one has with many.

    Without all of their files, or the weights of a library here, there is none. It raises what `edc distill` would.
    """
    files = [checkpoint.file for checkpoint in recipe.teachers.checkpoints if checkpoint.file]

    def can_be_called() -> bool:
        return bool(recipe.teachers.checkpoints) and all(f.is_file() for f in files) and not _missing(recipe, data, run)

    if not by_main(can_be_called, accelerator):  # for all: a process alone would let the others wait
        return [], None
    own = one_of_a_machine_first(lambda: own_teachers_of(recipe, data, run), accelerator)
    teachers = _loaded(recipe, data, run, own, accelerator)
    return own, call_roll(recipe, data, teachers, own, accelerator=accelerator, most_images=FEW_IMAGES)


def advice_of(
    recipe: Recipe, data: DataSet, *, run: RunFolder, accelerator: Accelerator, own: Sequence[OwnTeacher] = ()
) -> Advice | str:
    """Returns what the teachers are like, or why that cannot be said yet. Trains, fetches and writes nothing.

    Args:
        own: the user's own teachers, if they have been read already.
    """
    missing = by_main(lambda: _missing(recipe, data, run), accelerator)
    if missing:
        return missing
    try:
        read = own or one_of_a_machine_first(lambda: own_teachers_of(recipe, data, run), accelerator)
        return _looked_at(recipe, data, _loaded(recipe, data, run, read, accelerator), accelerator)
    except EdcError as error:
        return str(error)


def _loaded(
    recipe: Recipe, data: DataSet, run: RunFolder, own: Sequence[OwnTeacher], accelerator: Accelerator
) -> TeacherEnsemble:
    networks = [one.network for one in own]
    return load_teachers(recipe, data, teachers_path=run.teachers_path, accelerator=accelerator, own=networks)


def _missing(recipe: Recipe, data: DataSet, run: RunFolder) -> str:
    """Returns which teachers are not there yet, in words; nothing if all are."""
    if recipe.teachers.checkpoints:
        unfetched = [
            checkpoint.network.name
            for checkpoint in recipe.teachers.checkpoints
            if checkpoint.file is None and checkpoint.network and not has_library_weights(checkpoint.network.name)
        ]
        return f"the library has not fetched the weights of {', '.join(unfetched)} yet" if unfetched else ""
    keys = [teacher_key(recipe, data, m)[0] for m in range(recipe.teachers.size)]
    num_trained = sum((run.teachers_path / key / "weights.safetensors").is_file() for key in keys)
    return f"{num_trained} of {len(keys)} teachers are trained" if num_trained < len(keys) else ""


def _looked_at(recipe: Recipe, data: DataSet, teachers: TeacherEnsemble, accelerator: Accelerator) -> Advice:
    answers, labels = {}, {}
    for name, images in (("train", data.train), ("validation", data.validation)):
        sample = read_sample([images], name, NUM_IMAGES, num_workers=recipe.data.num_workers, accelerator=accelerator)
        training = recipe.training_of(recipe.teachers)
        asked = ask(lambda pixels, _: wide(teachers(pixels)), sample, training=training, accelerator=accelerator)
        answers[name], labels[name] = asked, images.labels[sample.indices].numpy()
    train_acc = None if recipe.data.unlabelled else float(_right(answers["train"], labels["train"]).mean())
    one, ensemble = answers["validation"], ensemble_log_probs(answers["validation"])
    right, ensemble_right = _right(one, labels["validation"]), _right(ensemble[None], labels["validation"])[0]
    nlls = np.stack([_calibrated_nlls(teacher[None], labels["validation"]) for teacher in one])
    ensemble_nlls = _calibrated_nlls(one, labels["validation"])
    return Advice(
        case=_case(train_acc, are_own=bool(recipe.teachers.checkpoints)),
        from_weights=all(_starts(recipe.network_of(student)) for student in recipe.students.values()),
        num_teachers=len(teachers),
        num_train=len(labels["train"]),
        num_validation=len(labels["validation"]),
        train_acc=train_acc,
        validation_acc=float(right.mean()),
        ensemble_validation_acc=float(ensemble_right.mean()),
        best_teacher=int(right.mean(1).argmax()),
        best_validation_acc=float(right.mean(1).max()),
        calibrated_nll=float(nlls.mean()),
        ensemble_calibrated_nll=float(ensemble_nlls.mean()),
        gain_acc=mean_interval(ensemble_right - right.mean(0)),
        gain_calibrated_nll=mean_interval(nlls.mean(0) - ensemble_nlls),
    )


def _starts(network: NetworkSection) -> bool:
    return network.pretrained or network.start is not None


def _case(train_acc: float | None, *, are_own: bool) -> Case:
    """Returns what the teachers' accuracy on these training images tells.

    The user's own teachers may have been trained on others: then they fit these no better than any new images.
    """
    if train_acc is None or (are_own and train_acc < FITTED_FROM):
        return "unknown"
    return "fitted" if train_acc >= FITTED_FROM else "not_fitted"


def _right(log_probs: Array, labels: metrics.Labels) -> Array:
    """Returns 1 where the most probable class is the label, else 0. Shapes: (M, N, K) to (M, N)."""
    right: Array = (log_probs.argmax(-1) == labels).astype(np.float64)
    return right


def _calibrated_nlls(log_probs: Array, labels: metrics.Labels) -> Array:
    """Returns -log p(label) of each image (N,) of members (M, N, K), calibrated on these images."""
    before, after = metrics.fit_temperatures(log_probs, labels)
    calibrated = metrics.calibrated_log_probs(log_probs, after, member_temperature=before)
    nlls: Array = -calibrated[np.arange(len(labels)), labels]
    return nlls
