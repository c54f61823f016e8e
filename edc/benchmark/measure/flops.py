"""FLOPs of networks per image, counted in their ONNX files: a speed-up that exceeds the saving is suspicious."""

import math
from pathlib import Path
from typing import Any

import onnx
from onnx import shape_inference

from edc.deploy.artifact.manifest import Manifest
from edc.deploy.onnx.precision import HEAVY_OPERATORS
from edc.recipe import Recipe
from edc.subject import Subject

__all__ = ["flops_by_subject", "flops_of_graph"]


def flops_by_subject(artifact: Path, manifest: Manifest, recipe: Recipe) -> dict[Subject, int]:
    """Returns the FLOPs per image by `Subject.base`, for subjects whose fp32 file is in the artifact.

    All students of a run have one architecture; one with its members unfolded runs it once per member.
    """
    files: dict[str, list[int]] = {}
    teachers: dict[Subject, int] = {}
    for file in manifest.files:
        if file.format == "onnx" and file.precision == "fp32":
            files.setdefault(file.role, []).append(flops_of_graph(artifact / file.path))
            if file.role == "teacher":
                teachers[Subject("teacher", member=file.member)] = files["teacher"][-1]
    found = dict(teachers)
    if teachers:
        found[Subject("ensemble", ensemble_form="in turn")] = sum(teachers.values())
    if ensemble := files.get("ensemble"):
        found[Subject("ensemble", ensemble_form="merged")] = ensemble[0]
    for flops in files.get("student", []):
        for name in recipe.students:
            found[Subject("student", name=name)] = flops
            found[Subject("members", name=name)] = recipe.teachers.size * flops
    return found


def flops_of_graph(path: Path) -> int:
    """Returns the floating-point operations of convolutions and matrix products for one image, two per multiply-add."""
    model = onnx.load(path)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return sum(_flops_of_node(node, shapes) for node in graph.node)


def _flops_of_node(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    if node.op_type not in HEAVY_OPERATORS:
        return 0
    first, second, output = (shapes[name] for name in (*node.input[:2], node.output[0]))
    match node.op_type:
        case "Conv":  # each output is a product with one filter (C_out, C_in / groups, ...)
            return 2 * math.prod(output) * math.prod(second[1:])
        case "ConvTranspose":  # each input is spread by one filter (C_in, C_out / groups, ...)
            return 2 * math.prod(first) * math.prod(second[1:])
        case "Gemm":
            transposed = any(each.name == "transA" and each.i for each in node.attribute)
            return 2 * math.prod(output) * first[0 if transposed else 1]
        case _:
            return 2 * math.prod(output) * first[-1]
