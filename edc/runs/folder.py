"""A run folder: everything `edc distill` leaves on disk, and the networks in it.

runs/<name>/
    recipe.yaml              the resolved recipe
    inputs.json              not in the recipe: which images and which teachers the students learn from
    students/<student>/      weights.safetensors, metrics.jsonl, tensorboard/ (checkpoint.pt while it trains); if
                             there was something to choose (edc/runs/choice.py), chosen.json and the candidates
    predictions.npz          what each network made of each test image; that of a student lies in its folder
    summary.json             metrics of every network; its presence means that the run is finished
runs/teachers/<key>/         one trained teacher, its key derived from what determines it; all runs share it
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edc.console import console
from edc.errors import RunError, edc_command, shown
from edc.recipe import BestBy, Recipe
from edc.recipe.loading import recipe_from_document
from edc.runs.documents.summary import SavedSummary
from edc.system.files import LOCK, holds_nothing, write_atomically, write_json
from edc.system.saved import read_saved

if TYPE_CHECKING:
    from edc.data import DataSet

__all__ = [
    "HOW_EPOCHS_ARE_CHOSEN",
    "HOW_IMAGES_ARE_READ",
    "TEST_IMAGES",
    "RunFolder",
    "first_difference",
    "newest_run",
    "run_folder",
]

TEACHERS = "teachers"
TEST_IMAGES = "the test images"
HOW_IMAGES_ARE_READ = "how images are read"
HOW_EPOCHS_ARE_CHOSEN = "how epochs of students are chosen"
OLDER_IMAGES = (
    " If the files are the same, an older edc read them otherwise: it turned none by EXIF (data.orientation: stored, "
    "in the run's recipe.yaml too, still does so), and showed grey images of 16 bits as white."
)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def inputs_path(self) -> Path:
        return self.path / "inputs.json"

    @property
    def lock_path(self) -> Path:
        """The lock of the process that works in the folder."""
        return self.path / LOCK

    @property
    def teachers_path(self) -> Path:
        """Where trained teachers are kept: beside the runs, so that they share them."""
        return self.path.parent / TEACHERS

    @property
    def _anew(self) -> str:
        return f"remove it and run {edc_command('distill', self.recipe_path)} again"

    def student_path(self, name: str) -> Path:
        return self.path / "students" / name

    def require_claimable(self, recipe: Recipe) -> None:
        """Raises `RunError` if the folder holds another recipe, or something that is no run; writes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: is a file, expected a folder for the run; choose another with --run")
        if self.path.absolute().name.casefold() == TEACHERS and not self.recipe_path.is_file():
            raise RunError(f"{self.path}: is where the runs beside it keep their teachers; choose another with --run")
        if self.recipe_path.is_file():
            held = self.recipe()
            if held.digest() != recipe.digest():
                raise RunError(
                    f"{self.path}: already holds another recipe; it differs in {first_difference(held, recipe)}. "
                    "Choose another folder with --run, or remove this one."
                )
        elif self.path.is_dir() and not holds_nothing(self.path):
            raise RunError(f"{self.path}: is not empty and holds no recipe.yaml; choose another folder with --run")

    def claim(self, recipe: Recipe, inputs: Mapping[str, str] | None = None) -> None:
        """Claims the folder for this recipe, or continues the run in it; an error leaves it as it was.

        If the run continues with its data elsewhere, or with another limit for bad images, the folder keeps the latest
        values, because other commands read the data later.

        Args:
            inputs: what the students learn from ("teacher 0", "the images") to a digest of its content.

        Raises:
            RunError: as `require_claimable` does, or the students have begun to learn from something else.
        """
        self.require_claimable(recipe)
        if inputs and self.has_begun:
            self._require_same({name: digest for name, digest in inputs.items() if name != TEST_IMAGES})
            self.warn_of_other_images(test=inputs.get(TEST_IMAGES))
        held = self.recipe() if self.recipe_path.is_file() else None
        kept = held.operated_as(recipe) if held else recipe
        if kept != held:
            with write_atomically(self.recipe_path) as temporary:
                temporary.write_text(kept.as_yaml())
        if inputs and inputs != self.inputs():
            write_json(self.inputs_path, dict(inputs))

    def _require_same(self, inputs: Mapping[str, str]) -> None:
        held = self.inputs()
        changed = [name for name, digest in inputs.items() if held and held.get(name) != digest]
        if changed:
            raise RunError(
                f"{self.path}: its students began to learn from other content of {', '.join(changed)} than there "
                "is now, and would mix the two if they continued. Restore that content, choose another folder with "
                f"--run, or remove this one.{OLDER_IMAGES if 'the images' in changed else ''}"
            )

    def warn_of_other_images(self, digest: str | None = None, *, test: str | None = None) -> None:
        """Warns if the images with this digest are not those that the run's students learned from, or the test images
        others than when it was trained.
        """
        held = self.inputs() or {}
        said = []
        if digest is not None and held.get("the images", digest) != digest:
            said.append(f"its students learned from other images than there are now.{OLDER_IMAGES}")
        if test is not None and held.get(TEST_IMAGES, test) != test:
            said.append("its test images are others than when it was trained.")
        for words in said:
            console.print(
                f"warning: {self.path}: {words} All that is measured here is of those that there are now.",
                highlight=False,
                markup=False,
            )

    def warn_of_other_data(self, data: "DataSet") -> None:
        """Warns of images that are others, or read otherwise, than when this run was made."""
        self.warn_of_other_images(data.fingerprint(), test=data.test.fingerprint())
        self.warn_of_images_read_otherwise(data)

    def warn_of_images_read_otherwise(self, data: "DataSet") -> None:
        """Warns if the edc that made this run did not say how it read images, and some are read otherwise now.

        Of training and validation images the digest tells that, too, where it was kept; of test images nothing does.
        """
        from edc.data import FileImages  # it loads torch, before which a run is refused that lacks a file

        if HOW_IMAGES_ARE_READ in (self.inputs() or {}):
            return
        splits = {"training": data.train, "validation": data.validation, "test": data.test}
        found = {
            name: images.read_otherwise
            for name, images in splits.items()
            if isinstance(images, FileImages) and images.read_otherwise
        }
        if found:
            words = "; ".join(f"{name} images: {' and '.join(kinds)}" for name, kinds in found.items())
            console.print(
                f"warning: {self.path}: an older edc made this run and read some of its images otherwise ({words}). "
                "What is measured here is of images as they are read now; data.orientation: stored, in the run's "
                "recipe.yaml, turns none.",
                highlight=False,
                markup=False,
            )

    @property
    def has_begun(self) -> bool:
        """Whether a student has learned from something here."""
        return any(path.is_file() for path in self.path.glob("students/*/*"))

    def records(self, name: str) -> bool:
        """Returns whether inputs.json says `name`, or will: that of a run begun by an older edc does not."""
        return not self.has_begun or name in (self.inputs() or {})

    def best_by(self, recipe: Recipe) -> BestBy:
        """Returns the measure of best epochs here: in a run that an older edc began, students may have been chosen by
        accuracy already, and others that are chosen otherwise could not be compared with them.
        """
        return recipe.best_by if self.records(HOW_EPOCHS_ARE_CHOSEN) else "accuracy"

    def inputs(self) -> dict[str, str] | None:
        """Returns what inputs.json says of what the students learn from; None if there is none."""
        if not self.inputs_path.is_file():
            return None
        return read_saved(dict[str, str], self.inputs_path, advice=self._anew)[0]

    def recipe(self, *, data_root: Path | None = None) -> Recipe:
        """Returns the run's recipe, with its images in `data_root` if given; raises `RunError` if this is no run."""
        try:
            document = read_saved(dict[str, Any], self.recipe_path, language="yaml", advice="restore or remove it")[0]
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path}: not a run (no recipe.yaml); make one with: edc distill RECIPE") from None
        recipe = recipe_from_document(document, source=str(self.recipe_path))
        if data_root is None:
            return recipe
        return recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": data_root})})

    def summary(self) -> dict[str, Any]:
        """Returns summary.json; raises `RunError` if the run is not finished."""
        if not self.summary_path.is_file():
            self.recipe()  # says so if this is no run at all
            raise RunError(
                f"{self.path}: the run is not finished (no summary.json); "
                f"continue with: {edc_command('distill', self.recipe_path, '--run', self.path)}"
            )
        document: dict[str, Any] = read_saved(SavedSummary, self.summary_path, advice=self._anew)[1]
        return document

    def write_summary(self, document: dict[str, Any]) -> None:
        write_json(self.summary_path, document)


def run_folder(run: RunFolder | Path | str) -> RunFolder:
    """Returns the run that a caller in Python names, by its path or as a `RunFolder`."""
    return run if isinstance(run, RunFolder) else RunFolder(Path(run))


def newest_run(runs: Path) -> RunFolder:
    """Returns the finished run that was finished last."""
    finished = sorted(runs.glob("*/summary.json"), key=lambda path: path.stat().st_mtime)
    if not finished:
        raise RunError(
            f"{runs.absolute()}: no finished run here; make one with: edc recipes digits && edc distill digits.yaml"
        )
    return RunFolder(finished[-1].parent)


MOST_NAMED = 4
"""Of further fields in which two recipes differ."""


def first_difference(held: Recipe, asked: Recipe) -> str:
    """Returns the first field in which two recipes differ, with both values, and the names of a few others; of a list,
    the entry that differs.
    """
    different = list(_differences(held.identity(), asked.identity(), ""))
    if not different:
        return "nothing but the order of its fields"
    field, before, after = different[0]
    # Of a whole entry of a list that one of them has, every field differs: it is named once.
    places = dict.fromkeys(re.sub(r"(\.\d+)\.\w+$", r"\1", name) for name, _, _ in different)
    others = list(places)[1:]
    left = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    also = f", and in {', '.join(others[:MOST_NAMED])}{left}" if others else ""
    return f"{field} ({shown(before)} there, {shown(after)} asked for){also}"


def _differences(before: Any, after: Any, field: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the fields in which two documents differ; what only one of them has is None in the other."""
    if isinstance(before, dict) or isinstance(after, dict):
        before, after = ({} if each is None else each for each in (before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            yield from _differences(before.get(key), after.get(key), f"{field}.{key}".strip("."))
    elif isinstance(before, list) and isinstance(after, list):
        keys = [[json.dumps(entry, sort_keys=True) for entry in each] for each in (before, after)]
        for kind, i, i_end, j, j_end in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
            pairs = () if kind == "equal" else zip_longest(before[i:i_end], after[j:j_end])
            for number, (old, new) in enumerate(pairs):
                yield from _differences(old, new, f"{field}.{(j if old is None else i) + number}")
    elif before != after:
        yield field, before, after
