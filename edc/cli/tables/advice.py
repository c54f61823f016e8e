"""What a dry run says of the teachers; the one place for sentences about what pays in which case."""

from collections.abc import Sequence

from rich.console import Console

from edc.metrics.intervals import Interval
from edc.runs.why.advice import FITTED_FROM, Advice, Case

__all__ = ["print_advice"]

CASES: dict[Case, str] = {
    "fitted": (
        "The teachers have fitted their training images. Whether they are trained out, one network on labels alone for "
        "the students' cost would tell (kd with alpha: 0; docs/choosing.md): on CIFAR-10 at 32 px it was better than "
        "their ensemble."
    ),
    "not_fitted": f"The teachers have not fitted their training images (from {FITTED_FROM:.0%} on they have).",
    "unknown": "Whether the teachers have fitted their training images is not known: those have no labels here.",
}
MAYBE_OTHERS = (
    "Whether the teachers have fitted their own training images is not known: edc did not train them, and the training "
    "images of this recipe may be others."
)
PAYS: dict[Case, str] = {
    "fitted": (
        "Where edc measured such a case, with students as large as a teacher and from random weights, one whose images "
        "go to one teacher and its member each (method: latent_be, answers: split) kept the most at equal cost on "
        "CIFAR-10, at two sizes, and as much as plain distillation on Fashion-MNIST; the perturbation did not pay. "
        "Other starts and sizes: docs/choosing.md."
    ),
    "not_fitted": (
        "Where edc measured such a case, with students as large as a teacher and from random weights, plain "
        "distillation (method: kd) that trains longer kept the most at equal cost: docs/choosing.md."
    ),
    "unknown": "What edc measured in either case: docs/choosing.md.",
}
FROM_WEIGHTS = (
    "Where edc measured students that start from weights, plain distillation whose images go to one teacher each "
    "(method: kd, answers: split) was ahead of plain distillation in likelihood at equal cost, and no other was shown "
    "to be ahead of it; the learning rate decided more: docs/choosing.md."
)


def print_advice(advice: Advice | str, *, console: Console) -> None:
    """Prints what the teachers are like, or why that cannot be said yet."""
    if isinstance(advice, str):
        console.print(f"teachers: cannot be looked at yet: {advice}", highlight=False, markup=False)
        return
    one = f"teachers (mean of {advice.num_teachers}): "
    if advice.train_acc is not None:
        one += f"right on {advice.train_acc:.1%} of {advice.num_train:,} training images and "
    else:
        one += "right "
    best = f"teacher {advice.best_teacher}"
    one += f"on {advice.validation_acc:.1%} of {advice.num_validation:,} validation images, "
    one += f"calibrated NLL {advice.calibrated_nll:.3f}"
    if advice.num_teachers == 1:
        _say([one, "there is one teacher, so no ensemble, and no gain for a student to keep"], console)
        return
    ensemble = f"ensemble: {advice.ensemble_validation_acc:.1%}, calibrated NLL {advice.ensemble_calibrated_nll:.3f}"
    gains = f"{_gain(advice.gain_acc, 100, 1)} points of accuracy and {_gain(advice.gain_calibrated_nll, 1, 3)} nats"
    if advice.best_validation_acc > advice.ensemble_validation_acc:
        one = f"{best} alone is better than the ensemble: {advice.best_validation_acc:.1%}\n{one}"
    else:
        one += f"; the best, {best}: {advice.best_validation_acc:.1%}"
    lines = [one, ensemble, f"to be won over one teacher, by a student worth its ensemble: {gains} (95 % intervals)"]
    by_name = {"accuracy": advice.gain_acc, "calibrated NLL": advice.gain_calibrated_nll}
    if lost := [name for name, gain in by_name.items() if gain.high is not None and gain.high < 0]:
        lines.append(f"on these images the ensemble is worse than its teachers' mean in {' and in '.join(lost)}")
    if any(not gain.excludes(0) for gain in by_name.values()):
        lines.append("a gain whose interval holds 0 cannot be told from none on these images")
    are_others = advice.case == "unknown" and advice.train_acc is not None
    pays = FROM_WEIGHTS if advice.from_weights else PAYS[advice.case]
    _say([*lines, MAYBE_OTHERS if are_others else CASES[advice.case], pays], console)


def _say(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _gain(gain: Interval, factor: float, digits: int) -> str:
    value = f"{factor * gain.value:+.{digits}f}"
    if gain.low is None or gain.high is None:
        return value
    return f"{value} ({factor * gain.low:+.{digits}f} to {factor * gain.high:+.{digits}f})"
