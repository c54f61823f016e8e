"""Checks on an artifact that arrived from elsewhere."""

import json
from pathlib import Path

import onnx

from edc.deploy.artifact.manifest import ArtifactFile, Manifest, Preprocessing, load_manifest, verify_files
from edc.deploy.engine.description import sidecar_path
from edc.deploy.onnx.checked import REFUSALS, read_arithmetic
from edc.deploy.onnx.precision import require_precision
from edc.errors import ArtifactError, first_line, shown

__all__ = ["verify"]

DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, LookupError, TypeError, RuntimeError)
"""What ONNX's readers raise, beside REFUSALS, for a graph that contradicts itself."""


def verify(artifact: Path, *, run: Path | None = None, data_root: Path | None = None) -> list[str]:
    """Returns the checks, one line each; executes nothing in the artifact unless `run` asks for parity again.

    Raises:
        ArtifactError: the first difference from the manifest.
        ParityError: with `run`, a file that does not compute what the network of the run computes.
    """
    manifest = load_manifest(artifact)
    done = [f"manifest: schema {manifest.schema_version}, {len(manifest.files)} files, {len(manifest.classes)} classes"]
    verify_files(artifact, manifest)
    done.append("files: present, inside the folder, size and SHA-256 as listed")
    num_onnx = 0
    for file in manifest.files:
        if file.path.endswith(".onnx"):  # also what a server would load
            _check_onnx(artifact / file.path, file, manifest)
            num_onnx += 1
        elif file.format in ("tensorrt", "tensorrt_rtx") and not sidecar_path(artifact / file.path).is_file():
            raise ArtifactError(f"{file.path}: an engine without its description {sidecar_path(Path(file.path)).name}")
    _require_copies(manifest)
    done.append(f"onnx: {num_onnx} files pass the checker, stand alone, and are what the manifest says")
    if run is not None:
        done.append(_parity_again(artifact, manifest, run, data_root))
    return done


def _require_copies(manifest: Manifest) -> None:
    """Raises unless each network in the Triton repository is a file that the artifact has, and that was checked."""
    checked = {file.sha256 for file in manifest.files if file.format != "other"}
    for file in manifest.files:
        if file.format == "other" and file.path.endswith((".onnx", ".plan")) and file.sha256 not in checked:
            raise ArtifactError(f"{file.path}: is no copy of a network of this artifact, which files of a server are")


def _check_onnx(path: Path, file: ArtifactFile, manifest: Manifest) -> None:
    """Raises unless the file is sound ONNX that stands alone, is arithmetic alone, and is what the manifest says."""
    try:
        model = read_arithmetic(path)
        onnx.checker.check_model(model, full_check=True)
        _require_interface(model, path, file)
        _require_same_metadata(model, path, manifest)
        if file.precision in ("fp32", "fp16", "int8-cpu", "int8-trt"):
            require_precision(path, file.precision)
    except (*REFUSALS, *DAMAGE) as error:
        raise ArtifactError(f"{path}: not a valid ONNX file ({first_line(error)})") from None


def _require_interface(model: onnx.ModelProto, path: Path, file: ArtifactFile) -> None:
    """Raises unless the graph takes and returns the tensors that the manifest lists; a free dimension has any name."""
    initialised = {tensor.name for tensor in model.graph.initializer}
    taken = [value for value in model.graph.input if value.name not in initialised]
    for what, values, listed in (("inputs", taken, file.inputs), ("outputs", model.graph.output, file.outputs)):
        found = [_described(value) for value in values]
        expected = [
            (tensor.name, tensor.dtype, [size if isinstance(size, int) else None for size in tensor.shape])
            for tensor in listed
        ]
        if listed and found != expected:
            raise ArtifactError(f"{path}: its {what} are {shown(found)}, the manifest says {shown(expected)}")


def _require_same_metadata(model: onnx.ModelProto, path: Path, manifest: Manifest) -> None:
    """Raises if what the graph says of its classes and images is not what the manifest says; it may say nothing."""
    said = {entry.key: entry.value for entry in model.metadata_props}
    if "class_names" in said and json.loads(said["class_names"]) != list(manifest.classes):
        found, expected = shown(json.loads(said["class_names"])), shown(list(manifest.classes))
        raise ArtifactError(f"{path}: its classes are {found}, the manifest says {expected}")
    if "preprocessing" in said and Preprocessing(**json.loads(said["preprocessing"])) != manifest.preprocessing:
        found, expected = (
            shown(json.loads(said["preprocessing"])),
            shown(manifest.preprocessing.model_dump(mode="json")),
        )
        raise ArtifactError(f"{path}: its preprocessing is {found}, the manifest says {expected}")


def _described(value: onnx.ValueInfoProto) -> tuple[str, str, list[int | None]]:
    tensor = value.type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    dimensions = [dimension.dim_value if dimension.HasField("dim_value") else None for dimension in tensor.shape.dim]
    return value.name, {"float": "float32"}.get(dtype, dtype), dimensions


def _parity_again(artifact: Path, manifest: Manifest, run: Path, data_root: Path | None) -> str:
    """Compares the fp32 and fp16 files with the run's networks again."""
    from edc.data import load_data
    from edc.deploy.networks import references_of
    from edc.deploy.onnx.parity import check_onnx_parity
    from edc.deploy.samples import sample_images
    from edc.runs.folder import RunFolder

    folder = RunFolder(run)
    if folder.summary()["recipe_sha256"] != manifest.recipe_sha256:
        raise ArtifactError(f"{artifact}: was made from another recipe than {run} (recipe_sha256 differs)")
    recipe = folder.recipe(data_root=data_root).deploying(folder.summary())
    if (artifact / "recipe.yaml").is_file():  # which says whose student the artifact holds
        recipe = recipe.deploying_student(RunFolder(artifact).recipe().deploy)
    data = load_data(recipe.data)
    folder.warn_of_other_data(data)
    images, _ = sample_images(data.validation, 512, seed=0)
    if tuple(data.class_names) != manifest.classes:
        found, expected = shown(list(manifest.classes)), shown(list(data.class_names))
        raise ArtifactError(f"{artifact}: its classes are {found}, those of {run} are {expected}")
    of_baseline = any(file.role in ("teacher", "ensemble") for file in manifest.files)
    references = references_of(folder, recipe, data, fold_temperature=manifest.temperature_folded, baseline=of_baseline)
    checked, others = 0, 0
    for file in manifest.files:
        if file.format == "onnx" and file.precision in ("fp32", "fp16"):
            reference = references.get((file.role, file.member))
            if reference is None:
                which = file.role if file.member is None else f"{file.role} {file.member}"
                raise ArtifactError(f"{file.path}: the manifest says {which!r}, and {run} has no such network")
            check_onnx_parity(
                artifact / file.path,
                reference,
                images,
                max_batch=file.max_batch or 1,
                precision="fp16" if file.precision == "fp16" else "fp32",
                how=manifest.preprocessing,
            )
            checked += 1
        elif file.format != "other":
            others += 1
    not_run = f"; {others} in int8 or of engines not compared" if others else ""
    return f"parity: {checked} files compute what the networks of {run} compute{not_run}"
