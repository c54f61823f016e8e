"""Which share of a student's training do the looks at it take (edc/runs/why/observer.py)? In CPU time.

    OMP_NUM_THREADS=1 python benchmarks/looks.py [EPOCHS] [STUDENT ...]

2,000 training and 2,000 validation images of 16 px made of noise, WRN-10-1, 4 untrained teachers, batches of 128: the
smallest setting in which students were compared, where looks weigh most.
"""

import sys
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from torch import nn

from edc.data import load_training_data
from edc.recipe import Recipe
from edc.runs.folder import RunFolder
from edc.runs.student import train_student
from edc.runs.why.observer import Observer
from edc.teachers.ensemble import TeacherEnsemble, build_teacher

DATA = {"kind": "synthetic", "image_size": 16, "num_images": 2000, "num_classes": 10, "validation": 2000, "test": 20}
STUDENTS = {
    "kd": {"method": "kd"},
    "kd_split": {"method": "kd", "answers": "split"},
    "latent_be_tdiv_sdiv": {"perturbation": "tdiv_sdiv"},
    "latent_be_split_tdiv_sdiv": {"answers": "split", "perturbation": "tdiv_sdiv"},
}


def main(epochs: int, students: list[str]) -> None:
    """Trains each student and prints its line."""
    training = {"epochs": epochs, "warmup_epochs": 1}
    document = {"name": "looks", "data": DATA, "network": "wrn10x1", "training": training, "students": STUDENTS}
    recipe, accelerator, looks = Recipe.model_validate(document), Accelerator(cpu=True), list[float]()
    data = load_training_data(recipe.data)
    teachers = TeacherEnsemble([build_teacher(recipe, data) for _ in range(recipe.teachers.size)])
    look = Observer.__call__

    def timed(self: Observer, network: nn.Module, epoch: int) -> dict[str, float]:
        started = time.process_time()
        found = look(self, network, epoch)
        looks.extend([time.process_time() - started] if found else [])
        return found

    Observer.__call__ = timed  # type: ignore[method-assign]
    for name in students:
        looks.clear()
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()
            train_student(recipe, name, data, teachers, run=RunFolder(Path(folder)), accelerator=accelerator)
            total = time.process_time() - started
        print(f"{name}: {len(looks)} of {epochs} epochs, {sum(looks):.1f} of {total:.1f} s, {sum(looks) / total:.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:] or list(STUDENTS))
