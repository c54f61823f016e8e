"""The owner's own figures beside edc's: plain torch, onnxruntime and Pillow; of edc only documents are read.

Every teacher, the mean of their probabilities, every exported ONNX file, and the classes in the predictions, on all
test images. The figures must be equal to the printed digits.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import yaml
from teachers import Owner, build, in_memory, transform_of
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

__all__ = ["print_figures", "probabilities_of"]

AT_ONCE = 50


def probabilities_of(owner: Owner, file: Path, photos: Path, *, side: int) -> Tensor:
    """Returns what a teacher's file makes of the images in `photos` (N, 10); of timm's, the moving average counts."""
    document: Any = torch.load(file, map_location="cpu", weights_only=False)
    state = document.get("state_dict_ema") or document.get("state_dict") or document
    state = {key.removeprefix("model."): value for key, value in state.items() if not key.startswith("criterion.")}
    network = build(owner)
    network.load_state_dict(state)
    images, _ = in_memory(ImageFolder(photos, transform_of(network, side)))
    with torch.inference_mode():
        return torch.cat([network.eval()(batch).softmax(1) for batch in images.split(AT_ONCE)])


def print_figures(owners: list[Owner], work: Path, *, side: int) -> bool:
    """Prints the accuracy of everything as found here and as edc says; returns whether all are equal."""
    photos, artifact = work / "photos/test", work / "export/photos"
    test = ImageFolder(photos, v2.Compose([v2.Resize(side), v2.CenterCrop(side), v2.PILToTensor()]))
    pixels, labels = in_memory(test)
    summary = json.loads((work / "runs/photos/summary.json").read_text())
    said = {row["subject"]: row["raw"]["acc"] for row in summary["rows"]}
    used = yaml.safe_load((work / "runs/photos/recipe.yaml").read_text())["teachers"]["checkpoints"]
    by_file = {owner.file: owner for owner in owners}
    found, each = [], []
    for number, checkpoint in enumerate(used):
        name = Path(checkpoint["file"]).name
        each.append(probabilities_of(by_file[name], work / "models" / name, photos, side=side))
        found.append((f"teacher {number}: {name}", accuracy(each[-1], labels), said[f"teacher {number}"]))
    found.append(("ensemble: mean of probabilities", accuracy(torch.stack(each).mean(0), labels), said["ensemble"]))
    answers = {}
    for file in json.loads((artifact / "manifest.json").read_text())["files"]:
        if file["format"] == "onnx" and file["precision"] != "int8-trt":  # which is for TensorRT
            answers[file["path"]] = answers_of(artifact / file["path"], pixels)
            found.append((file["path"], accuracy(answers[file["path"]], labels), file["metrics"]["acc"]))
    with (work / "preds.csv").open(newline="", encoding="utf-8") as file:
        predicted = {row["image"]: row for row in csv.DictReader(file)}
    names = [Path(path).relative_to(photos).as_posix() for path, _ in test.samples]
    classes = torch.tensor([test.class_to_idx[predicted[name]["class"]] for name in names])
    same = (classes == answers["student.onnx"].argmax(1)).double().mean().item()
    found.append(("preds.csv: classes as student.onnx's", same, 1.0))
    width = max(len(name) for name, *_ in found)
    print(f"{'on ' + str(len(labels)) + ' test images, %':{width}}   own code        edc")
    for name, own, its in found:
        print(f"{name:{width}} {100 * own:10.2f} {100 * its:10.2f}{'' if equal(own, its) else '   DIFFERENT'}")
    return all(equal(own, its) for _, own, its in found)


def answers_of(file: Path, pixels: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (fed,) = session.get_inputs()
    batches = [
        session.run(None, {fed.name: batch.numpy().astype(np.float32) / 255})[0] for batch in pixels.split(AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(batches))


def accuracy(answers: Tensor, labels: Tensor) -> float:
    return (answers.argmax(1) == labels).double().mean().item()


def equal(own: float, its: float) -> bool:
    return f"{100 * own:.2f}" == f"{100 * its:.2f}"
