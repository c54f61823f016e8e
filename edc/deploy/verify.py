"""Checks on an artifact that arrived from elsewhere."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from edc.deploy.artifact.manifest import Manifest, load_manifest, verify_files
from edc.deploy.engine.description import sidecar_path
from edc.deploy.onnx.checked import REFUSALS
from edc.deploy.onnx.precision import require_precision
from edc.errors import ArtifactError, first_line

__all__ = ["verify"]


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
        if file.format == "onnx":
            _check_onnx(artifact / file.path, file.precision)
            num_onnx += 1
        elif file.format in ("tensorrt", "tensorrt_rtx") and not sidecar_path(artifact / file.path).is_file():
            raise ArtifactError(f"{file.path}: an engine without its description {sidecar_path(Path(file.path)).name}")
    done.append(f"onnx: {num_onnx} files pass the checker, keep no data outside, and have the precision they claim")
    if run is not None:
        done.append(_parity_again(artifact, manifest, run, data_root))
    return done


def _check_onnx(path: Path, precision: str) -> None:
    try:
        model = onnx.load(path, load_external_data=False)
        outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
        if not outside:  # the checker would follow the reference
            onnx.checker.check_model(model, full_check=True)
    except (*REFUSALS, DecodeError, OSError) as error:
        raise ArtifactError(f"{path}: not a valid ONNX file ({first_line(error)})") from None
    if outside:
        place = next((entry.value for entry in outside[0].external_data if entry.key == "location"), "?")
        raise ArtifactError(f"{path}: keeps the weight {outside[0].name} outside the file, in {place!r}; not trusted")
    if precision in ("fp32", "fp16", "int8-cpu", "int8-trt"):
        require_precision(path, precision)  # type: ignore[arg-type]


def _parity_again(artifact: Path, manifest: Manifest, run: Path, data_root: Path | None) -> str:
    """Compares the fp32 and fp16 files with the run's networks again."""
    from edc.data import load_data
    from edc.deploy.export import references_of, sample_images
    from edc.deploy.onnx.parity import check_onnx_parity
    from edc.runs.folder import RunFolder

    folder = RunFolder(run)
    if folder.summary()["recipe_sha256"] != manifest.recipe_sha256:
        raise ArtifactError(f"{artifact}: was made from another recipe than {run} (recipe_sha256 differs)")
    recipe = folder.recipe(data_root=data_root).deploying(folder.summary())
    data = load_data(recipe.data)
    images, _ = sample_images(data.validation, 512, seed=0)
    references = references_of(folder, recipe, data, fold_temperature=manifest.temperature_folded)
    checked = 0
    for file in manifest.files:
        if file.format == "onnx" and file.precision in ("fp32", "fp16"):
            check_onnx_parity(
                artifact / file.path,
                references[file.role, file.member],
                images,
                max_batch=file.max_batch or 1,
                precision="fp16" if file.precision == "fp16" else "fp32",
                how=manifest.preprocessing,
            )
            checked += 1
    return f"parity: {checked} files compute what the networks of {run} compute"
