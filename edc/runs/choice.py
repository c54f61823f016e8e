"""The choice of the candidate that a student is deployed as: made on validation images, kept beside its weights.

students/<student>/
    trained.safetensors      the student as trained: its best epoch
    ema.safetensors          its moving average: its own best epoch
    chosen.json              each candidate's figures on the validation images, and the choice
    weights.safetensors      the chosen weights and BatchNorm statistics, which are folded, evaluated and exported
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from edc import metrics
from edc.data import DataSet
from edc.recipe import BestBy, Recipe, StudentSection
from edc.system.files import write_json
from edc.system.saved import read_saved
from edc.train.checkpoint import load_state, save_state
from edc.train.distributed import by_main, raised_together
from edc.train.evaluate import labels_of, norms_of, predict_logits
from edc.train.loop import EMA_WEIGHTS, WEIGHTS
from edc.train.placement import place

__all__ = [
    "CHOSEN",
    "TRAINED_WEIGHTS",
    "Candidate",
    "Choice",
    "best_of",
    "candidates_of",
    "choose",
    "kept_choice",
    "with_own_statistics",
]

CHOSEN, TRAINED_WEIGHTS = "chosen.json", "trained.safetensors"
FILES = {"trained": TRAINED_WEIGHTS, "ema": EMA_WEIGHTS}


class Candidate(BaseModel):
    """A network that a student could be deployed as, and its figures on the validation images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: Literal["trained", "ema"]
    batchnorm: Literal["trained", "reestimated"]
    validation_acc: float | None = None
    validation_nll: float | None = None
    validation_calibrated_nll: float | None = None
    """None in what an older edc chose, by accuracy."""

    @property
    def label(self) -> str:
        """Its name in tables."""
        weights = "as trained" if self.weights == "trained" else "moving average"
        return weights + (", BatchNorm re-estimated" if self.batchnorm == "reestimated" else "")


class Choice(BaseModel):
    """The document of chosen.json, and of each student in `chosen` of summary.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chosen: Candidate
    candidates: tuple[Candidate, ...]


class PlainOf(Protocol):
    """Returns the plain network of a student, with or without re-estimated BatchNorm statistics."""

    def __call__(self, network: nn.Module, *, reestimate: bool) -> nn.Module: ...


def choose(
    recipe: Recipe,
    name: str,
    data: DataSet,
    *,
    folder: Path,
    build: Callable[[], nn.Module],
    plain_of: PlainOf,
    best_by: BestBy,
    accelerator: Accelerator,
) -> None:
    """Writes the figures of each candidate of a trained student, and the weights of the best.

    The weights are written last, because their file shows that the choice is made.

    Args:
        build: returns the student's network, with any weights.
    """
    labels, training = labels_of(data.validation), recipe.training_of(recipe.students[name])
    found: dict[Candidate, dict[str, Tensor]] = {}
    for candidate in candidates_of(recipe.students[name], has_batchnorm=bool(norms_of(build()))):
        network = place(build(), accelerator.device, training)
        with raised_together(accelerator):
            state = load_state(folder / FILES[candidate.weights])
            network.load_state_dict(state)
        plain = plain_of(network, reestimate=candidate.batchnorm == "reestimated")
        logits = predict_logits(plain, data.validation, recipe.data, training, accelerator)
        log_probs = metrics.log_probs_from_logits(logits[0])
        quality = metrics.evaluate(log_probs, labels, validation_log_probs=log_probs, validation_labels=labels)
        scored = candidate.model_copy(
            update={
                "validation_acc": quality.raw.acc,
                "validation_nll": quality.raw.nll,
                "validation_calibrated_nll": quality.calibrated.nll,
            }
        )
        found[scored] = state | _statistics(plain)
    choice = Choice(chosen=best_of(list(found), by=best_by), candidates=tuple(found))
    by_main(lambda: write_json(folder / CHOSEN, choice.model_dump(mode="json")), accelerator)
    by_main(lambda: save_state(folder / WEIGHTS, found[choice.chosen]), accelerator)


def candidates_of(section: StudentSection, *, has_batchnorm: bool) -> list[Candidate]:
    """Returns the candidates; the student as trained comes first. One alone is what the recipe asks for."""
    both = has_batchnorm and section.chooses
    kinds: list[Literal["trained", "reestimated"]] = ["trained", "reestimated"] if both else ["trained"]
    if section.reestimate_batchnorm:
        kinds = ["reestimated"]
    weights: list[Literal["trained", "ema"]] = ["trained"] if section.ema is None else ["trained", "ema"]
    return [Candidate(weights=each, batchnorm=kind) for each in weights for kind in kinds]


def best_of(candidates: list[Candidate], *, by: BestBy) -> Candidate:
    """Returns the best candidate on validation images; ties in one measure go to the other, then to the first.

    By accuracy, one image decides: a moving average that was right on 1,194 of 2,000 images lost to the network that
    was right on 1,195, and was better on 10,000 test images by 0.8 points (results/student_average.md).
    """

    def measures(candidate: Candidate) -> tuple[float, float]:
        acc, nll = candidate.validation_acc or 0.0, candidate.validation_calibrated_nll
        score = metrics.selection_score(acc, math.nan if nll is None else nll)
        return (-acc, score) if by == "accuracy" else (score, -acc)

    return min(candidates, key=measures)


def kept_choice(folder: Path) -> Choice | None:
    """Returns the choice of the student in `folder`; None if there was nothing to choose."""
    path = folder / CHOSEN
    if not path.is_file():
        return None
    return read_saved(Choice, path, advice=f"remove it and {WEIGHTS} beside it, and edc distill chooses again")[0]


def with_own_statistics(network: nn.Module, folder: Path) -> nn.Module:
    """Returns the members with the BatchNorm statistics that they were trained with, where their fold got others.

    With those of the fold they are another network: fine-tuned members right on 91 % of the images were so on 12 %.

    Args:
        network: the student in `folder` as it was chosen.

    Raises:
        CheckpointError: the candidates beside the choice are gone.
    """
    choice = kept_choice(folder)
    if choice is None or choice.chosen.batchnorm == "trained":
        return network
    own = copy.deepcopy(network)
    own.load_state_dict(load_state(folder / FILES[choice.chosen.weights]))
    return own.eval()


def _statistics(plain: nn.Module) -> dict[str, Tensor]:
    """Returns BatchNorm's buffers; the members share them, under the names that the folded network has."""
    norms = norms_of(plain).items()
    return {f"{name}.{key}": value for name, norm in norms for key, value in norm.named_buffers()}
