"""A look at the checkpoints of a user: what kind of file each is, of which network, and how right it is.

Each becomes a section of a recipe. The readers and the roll call are those of a run: a checkpoint that is used here is
used by `edc distill`, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from edc.data import DataSet
from edc.errors import CheckpointError, EdcError, RequestError
from edc.proposal.architecture import Said, architecture_of, said_by
from edc.recipe import CheckpointSection, DataSection, NetworkSection, Recipe, StudentSection, TeachersSection
from edc.teachers.ensemble import TeacherEnsemble, load_own_teachers
from edc.teachers.formats import format_of, what_runs
from edc.teachers.reading import Answered, OwnTeacher
from edc.teachers.roll_call.call import RollCall, TeachersDoubtedError, call_roll
from edc.teachers.roll_call.mirrored import Mirrored
from edc.train.checkpoint import load_document
from edc.train.placement import place

__all__ = [
    "CheckpointFound",
    "files_of",
    "first_look",
    "identified",
    "require_known_files",
    "require_one_used",
    "roll_called",
]

NOTHING_SAID = Said(())
MOST_CHANGES = 2
"""Of how one checkpoint is read."""
SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar", ".onnx", ".pt2")


@dataclass(frozen=True)
class CheckpointFound:
    """One file: the section that reads it, or why it is not used."""

    file: Path
    kind: str
    said: Said = NOTHING_SAID
    section: CheckpointSection | None = None
    reasons: tuple[str, ...] = ()
    """Where its network is said, and what was changed because it fits clearly better."""
    answered: Answered | None = None
    why_not: str = ""
    """Why it is not used; "": it is."""

    def without(self, why: str) -> "CheckpointFound":
        return replace(self, why_not=why)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Returns the files among `paths`, and those of weights in folders among them.

    Raises:
        CheckpointError: one is not there, twice there, or a folder without such files.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        if path.is_dir():  # what machines leave there begins with a dot
            inside = [p for p in inside if p.suffix in SUFFIXES and p.is_file() and not p.name.startswith(".")]
        if not inside or not path.exists():
            kinds = f"no files of weights ({', '.join(SUFFIXES)}) in this folder" if path.is_dir() else "no such file"
            raise CheckpointError(f"{path.absolute()}: {kinds}")
        found += inside
    if twice := [path for path in found if found.count(path) > 1]:
        raise CheckpointError(f"{twice[0]}: is given twice; name every checkpoint once")
    return found


def first_look(file: Path) -> tuple[CheckpointFound, Any]:
    """Returns what kind of file it is and what it says of its network, and what it holds if it holds tensors."""
    try:
        kind = format_of(file)
        document = load_document(file) if kind == "state_dict" else None
        return CheckpointFound(file, kind, said_by(file, document) if document is not None else NOTHING_SAID), document
    except EdcError as error:
        return CheckpointFound(file, "unknown").without(str(error)), None


def identified(
    found: CheckpointFound, document: Any, data: DataSet, *, asked: Sequence[str], known: Sequence[str], trust: bool
) -> CheckpointFound:
    """Returns the checkpoint with the section that reads it, if its network can be told and its classes are the data's.

    `asked` are the user's NAME or FILE=NAME, `known` the networks of other checkpoints.

    A whole network says nothing of its normalisation: ImageNet's is assumed, and the roll call tries the others.
    """
    if found.why_not:
        return found
    if found.kind != "state_dict":
        return _whole_network(found, data, trust=trust)
    channels, _, side = data.image_shape
    try:
        network = architecture_of(
            found.file,
            document,
            found.said,
            num_classes=data.num_classes,
            num_channels=channels,
            image_size=side,
            asked=[(name, "as --network says") for name in network_named(asked, found.file)],
            known=[(name, "as another checkpoint's") for name in known],
        )
    except CheckpointError as error:
        return found.without(str(error))
    if network.num_classes != data.num_classes:
        what = f"is {network.name} with {network.num_classes:,} classes, the data has {data.num_classes}"
        return found.without(f"{what}; train it on your classes first")
    size = None if network.image_size == side else network.image_size
    section = CheckpointSection(file=found.file, network=NetworkSection(name=network.name), input_size=size)
    return replace(found, section=section, reasons=(f"its network: {network.why}",))


def _whole_network(found: CheckpointFound, data: DataSet, *, trust: bool) -> CheckpointFound:
    try:
        runs = what_runs(found.file, found.kind, str(found.file))
    except CheckpointError as error:
        return found.without(str(error))
    if runs and not trust:
        return found.without(f"is {runs}: opened only with --trust, if you know where it comes from")
    section = CheckpointSection(file=found.file, mean=data.mean, std=data.std, trust=True if runs else None)
    return replace(
        found,
        section=section,
        reasons=("a whole network; its normalisation is assumed, others are tried where it is weak",),
    )


def roll_called(
    found: Sequence[CheckpointFound], section: DataSection, data: DataSet, *, accelerator: Accelerator
) -> tuple[list[CheckpointFound], Mirrored | None]:
    """Returns the checkpoints with how right they are, read as fits clearly better, or why they are not used.

    The second value is how right they are on mirrored images.
    """
    found = [_tried(one, section, data) for one in found]
    for _ in range((MOST_CHANGES + 1) * len(found) + 1):  # each is changed, and then left out
        used = [one for one in found if not one.why_not]
        if not used:
            break
        recipe = _recipe_of(used, section)
        own = load_own_teachers(recipe, data)
        try:
            roll = _called(recipe, data, own, accelerator)
        except TeachersDoubtedError as doubts:
            changed = {used[m].file: _otherwise(used[m], doubts, m) for m in doubts.doubted}
            found = [changed.get(one.file, one) for one in found]
            continue
        roll.say(are_own=True)
        said = dict(zip((one.file for one in used), roll.answered, strict=True))
        return [replace(one, answered=said.get(one.file)) for one in found], roll.mirrored
    return found, None


def require_one_used(found: Sequence[CheckpointFound]) -> None:
    """Raises `CheckpointError` if there are checkpoints and none is used: a recipe without them is for another job."""
    if found and all(one.why_not for one in found):
        reasons = "".join(f"\n  {one.file.name}: {one.why_not}" for one in found)
        raise CheckpointError(
            f"none of the {len(found)} checkpoints can be used, so no recipe is written:{reasons}\n"
            "  Called without checkpoints, edc init writes a recipe that trains teachers of its own."
        )


def _called(recipe: Recipe, data: DataSet, own: Sequence[OwnTeacher], accelerator: Accelerator) -> RollCall:
    teachers = place(TeacherEnsemble([one.network for one in own]), accelerator.device, recipe.training)
    return call_roll(recipe, data, teachers, own, accelerator=accelerator, says=False)


def _otherwise(one: CheckpointFound, doubts: TeachersDoubtedError, m: int) -> CheckpointFound:
    """Returns the checkpoint read as is clearly better; if no reading is, or it was changed before, not used."""
    tried, answered = doubts.doubted[m], doubts.roll.answered[m]
    right = f"right on {100 * answered.acc:.1f} % of {doubts.roll.num_images} validation images"
    better = [attempt for attempt in tried if attempt.is_clearly_better]
    if better and len(one.reasons) <= MOST_CHANGES:
        reason = f"{better[0].fields}: {100 * better[0].acc:.1f} %; without it {right}"
        return replace(one, section=better[0].section, reasons=(*one.reasons, reason))
    why = f"{right}, answers at random would be on {100 * answered.chance:.1f} %"
    best = tried[0] if tried and tried[0].gained > tried[0].lost else None
    others = f"no other reading is clearly better (the best: {100 * best.acc:.1f} % with {best.fields})" if best else ""
    return replace(one, answered=answered).without(f"{why}, and {others or 'no other reading is better'}")


def _tried(one: CheckpointFound, section: DataSection, data: DataSet) -> CheckpointFound:
    """Returns the checkpoint, or why it cannot be loaded and tried."""
    if one.why_not:
        return one
    try:
        load_own_teachers(_recipe_of([one], section), data)
    except EdcError as error:
        return one.without(str(error))
    return one


def _recipe_of(found: Sequence[CheckpointFound], section: DataSection) -> Recipe:
    checkpoints = tuple(one.section for one in found if one.section)
    network = next((one.network for one in checkpoints if one.network), None)
    return Recipe(
        name="init",
        data=section,
        network=network or NetworkSection(name="torchvision/resnet18"),
        teachers=TeachersSection(checkpoints=checkpoints),
        students={"kd": StudentSection(method="kd")},
    )


def network_named(asked: Sequence[str], file: Path) -> list[str]:
    """Returns the networks that --network gives for a file: NAME for all, FILE=NAME for one."""
    names = []
    for text in asked:
        of, separator, name = text.rpartition("=")
        if not separator or of in (file.name, str(file)):
            names.append(name)
    return names


def require_known_files(asked: Sequence[str], files: Sequence[Path]) -> None:
    """Raises `RequestError` for a --network FILE=NAME of a file that is not among the checkpoints."""
    for text in asked:
        of, separator, _ = text.rpartition("=")
        if separator and of not in {name for file in files for name in (file.name, str(file))}:
            raise RequestError(f"--network: found {text}, but no checkpoint is called {of}")
