"""The artifact's README.md: a model card for people, with the front matter that the Hugging Face hub reads."""

from collections.abc import Sequence
from typing import Any

from edc.deploy.artifact.manifest import Manifest, Preprocessing
from edc.recipe import Recipe, StudentSection
from edc.runs.rows import rows_by_subject
from edc.subject import Subject

__all__ = ["CARD_NAME", "model_card"]

CARD_NAME = "README.md"

TEXT = """\
---
{front_matter}
---

# {run}

One network, distilled from an ensemble of {size} and folded into one plain `{network}`: one forward pass an image.
Made by edc {version}.

| network | forward passes an image | accuracy % | NLL | calibrated NLL | calibrated ECE |
|---|---|---|---|---|---|
{rows}

On {num_test:,} test images of the data that it was trained on (`{data}`). Calibrated: by temperatures that were
fitted on validation images. Nothing is known about other images.{by_class}{notes}

## Use

```sh
edc predict . photos --out preds.csv
```

- **Images**: {images}. Normalisation is inside the network.
- **Answers**: logits of {num_classes} classes, listed in `manifest.json`; their softmax{temperature} is the
  probabilities.

## Files

| file | what | precision | bytes |
|---|---|---|---|
{files}

## How it was made

{made} on {num_train:,} training images; `recipe.yaml` has everything else.

The licences of the data and of the teachers' weights apply to this network. This card names none: put `license:`
into the lines at its top. `manifest.json` does not list it, so you may edit it; a new export writes it anew.
"""


def model_card(manifest: Manifest, recipe: Recipe, summary: dict[str, Any]) -> str:
    """Returns the card, in Markdown, of an artifact of the run that `recipe` and `summary` are of."""
    rows, size = rows_by_subject(summary), summary["ensemble_size"]
    student = rows[Subject("student", name=recipe.deploy)]
    teachers = [row for subject, row in rows.items() if subject.role == "teacher"]
    table = [
        _row(f"one teacher (mean of {len(teachers)})", teachers),
        _row(f"ensemble of {size}", [rows[Subject("ensemble")]]),
        _row("**this network**", [student]),
    ]
    files = [f"| `{file.path}` | {file.role} | {file.precision} | {file.bytes:,} |" for file in manifest.files]
    kept = manifest.calibration_temperature
    return TEXT.format(
        front_matter=_front_matter(manifest, recipe, student),
        run=manifest.run,
        size=size,
        network=recipe.network.name,
        version=manifest.versions["edc"],
        rows="\n".join(table),
        num_test=summary["data"]["test"],
        num_train=summary["data"]["train"],
        data=summary["data"]["kind"],
        images=_images(manifest.preprocessing),
        num_classes=len(manifest.classes),
        temperature="" if manifest.temperature_folded else f" (after a division by the temperature {kept:.4g})",
        by_class=_by_class(manifest, student["raw"]),
        notes="".join(f"\n\n**{about}**: {note}" for about, note in manifest.notes.items()),
        files="\n".join(files),
        made=_made(recipe.students[recipe.deploy]),
    )


def _front_matter(manifest: Manifest, recipe: Recipe, student: dict[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    figures = {
        "accuracy": student["raw"]["acc"],
        "nll": student["calibrated"]["nll"],
        "ece": student["calibrated"]["ece"],
    }
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=recipe.data.kind,
            dataset_name=recipe.name,
            dataset_split="test",
            metric_type=name,
            metric_value=round(value, 6),
        )
        for name, value in figures.items()
    ]
    data = ModelCardData(
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["edc", "knowledge-distillation", "deep-ensemble", "onnx"],
        model_name=manifest.run,
        eval_results=results,
    )
    return data.to_yaml().strip()


def _row(label: str, rows: Sequence[dict[str, Any]]) -> str:
    figures = [
        (row["raw"]["acc"], row["raw"]["nll"], row["calibrated"]["nll"], row["calibrated"]["ece"]) for row in rows
    ]
    acc, *others = (sum(column) / len(rows) for column in zip(*figures, strict=True))
    return f"| {label} | {rows[0]['forwards']} | {100 * acc:.2f} | {' | '.join(f'{value:.3f}' for value in others)} |"


def _by_class(manifest: Manifest, figures: dict[str, float]) -> str:
    """Returns what the network is right on class by class, and what always saying one class is right on."""
    said = []
    if {"balanced_acc", "macro_f1"} <= figures.keys():  # older runs have neither
        balanced, macro_f1 = (f"{100 * figures[key]:.2f} %" for key in ("balanced_acc", "macro_f1"))
        said.append(
            f"Over classes, this network's mean recall (balanced accuracy) is {balanced}, its mean F1 {macro_f1}."
        )
    if (most := manifest.majority) is not None:
        said.append(f"Always saying `{most.name}` is right on {100 * most.share:.2f} %.")
    return "\n\n" + " ".join(said) if said else ""


def _images(how: Preprocessing) -> str:
    height, width = how.image_size
    words = [f"turned as their EXIF data says, {how.color}" if how.orientation == "exif" else f"as stored, {how.color}"]
    if how.resize_shorter_side is not None:
        words.append(f"shorter side to {how.resize_shorter_side} ({how.interpolation}), the middle {height} x {width}")
    elif how.resize == "exact":
        words.append(f"resized to {height} x {width} ({how.interpolation})")
    else:
        words.append(f"of {height} x {width} pixels")
    low, high = how.value_range
    return ", ".join([*words, f"{how.layout} {how.dtype} in [{low:g}, {high:g}]"])


def _made(student: StudentSection) -> str:
    method = {"kd": "Knowledge distillation", "latent_be": "LatentBE (members that share weights, then their mean)"}
    split = ", each image to one teacher" if student.answers == "split" else ""
    moved = f", images moved by {student.perturbation}" if student.perturbation != "none" else ""
    return f"{method[student.method]}{split}{moved},"
