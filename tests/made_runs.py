"""Finished runs that nobody trained: summary.json and predictions.npz with figures that tests choose."""

from pathlib import Path
from typing import Any

import numpy as np

from edc.runs.folder import RunFolder
from edc.runs.per_image import PerImage, write_per_image
from edc.runs.rows import identity_of
from edc.subject import Subject
from edc.system.files import write_json

STUDENTS = ("kd", "paper", "student_with_a_name_of_forty_characters_x")
UNITS = {"kd": 14_000, "paper": 44_000, "student_with_a_name_of_forty_characters_x": 132_000}


def make_run(
    path: Path,
    *,
    seed: int = 0,
    teachers: int = 0,
    num_images: int = 4000,
    by_image: bool = True,
    students: tuple[str, ...] = STUDENTS,
    gain: float = 0.1,
    name: str = "made",
) -> RunFolder:
    """Writes a run of two teachers, their ensemble and students; figures depend on `seed` and `teachers` alone."""
    images = np.random.default_rng(100)
    difficulty, labels = images.uniform(size=num_images), images.integers(10, size=num_images)
    of_teachers, of_students = np.random.default_rng((teachers, 1)), np.random.default_rng((teachers, seed, 2))

    def results(skill: float, generator: np.random.Generator) -> PerImage:
        noise = generator.normal(0, 0.1, num_images)
        return PerImage(difficulty + noise < skill, (difficulty + np.abs(noise) + 1 - skill).astype(np.float32))

    base = 0.55 + 0.03 * teachers
    found = {Subject("teacher", member=m): results(base, of_teachers) for m in range(2)}
    found[Subject("ensemble")] = results(base + gain, of_teachers)
    for number, student in enumerate(students):
        skill = base + gain * (0.5 + 0.4 * number) + of_students.normal(0, 0.01)
        if student == "paper":
            found[Subject("members", name=student)] = results(skill, of_students)
        found[Subject("student", name=student)] = results(skill, of_students)
    run = RunFolder(path)
    run.write_summary(_summary(found, name=name, run=path.name, seed=seed, num_images=num_images))
    if by_image:
        write_per_image(run, found, labels)
    for student in students:
        lines = '{"epoch": 0, "seconds": 10.0}\n{"epoch": 1, "seconds": 7200.0}\n{"epo'
        run.student_path(student).mkdir(parents=True, exist_ok=True)
        (run.student_path(student) / "metrics.jsonl").write_text(lines)
    return run


def _summary(found: dict[Subject, PerImage], *, name: str, run: str, seed: int, num_images: int) -> dict[str, Any]:
    rows = []
    for subject, result in found.items():
        quality = {"acc": float(result.correct.mean()), "nll": float(result.calibrated_nll.mean()), "ece": 0.0}
        row = {
            **identity_of(subject),
            "parameters": 10,
            "forwards": 1,
            "raw": quality,
            "calibrated": quality,
            "dee": 1.0,
        }
        if subject.role == "student":
            row["training"] = {"epochs": 1, "steps": 1, "units_per_step": 1, "units": UNITS[subject.name or ""]}
        rows.append(row)
    return {
        "name": name,
        "run": run,
        "seed": seed,
        "deploy": "kd",
        "recipe_sha256": "0" * 64,
        "ensemble_calibrated_nll_by_size": [1.0, 0.9],
        "data": {"kind": "made", "train": 100, "validation": 10, "test": num_images},
        "ensemble_size": 2,
        "rows": rows,
    }


def rewrite(run: RunFolder, **changes: Any) -> None:
    write_json(run.summary_path, run.summary() | changes)
