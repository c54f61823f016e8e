"""`manifest.json`: what an artifact holds, how to feed it, and how well its files were checked.

A consumer needs this file and the files it lists, nothing else of edc; `export/README.md` explains it to people and
`export/manifest.schema.json` to programs.
"""

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_serializer, model_validator

from edc.deploy.artifact.folder import MANIFEST_NAME, put_back
from edc.errors import ArtifactError, cut, first_line, shown
from edc.system.documents import json_from_text, read_text, require_regular
from edc.system.files import sha256_of, write_atomically

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "ArtifactFile",
    "FilePrecision",
    "Majority",
    "Manifest",
    "MissingFile",
    "ParityFigures",
    "Preprocessing",
    "TensorInfo",
    "load_manifest",
    "manifest_schema",
    "verify_files",
    "write_manifest",
]

SCHEMA_VERSION = 1
MOST_MISTAKES = 20
"""That a message lists."""

Positive = Annotated[int, Field(gt=0)]
NOT_FOR_OPENVINO = "not_for_openvino"
FilePrecision = Literal["fp32", "fp16", "int8-cpu", "int8-trt", "tf32", "none"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorInfo(_Section):
    """One input or output of a file; a free dimension is named instead of counted."""

    name: str
    shape: tuple[Positive | str, ...]
    dtype: Literal["float32", "float16", "uint8"]


class ParityFigures(_Section):
    """How far this file's outputs are from the float32 torch network's, on real images."""

    max_abs_diff: float
    mean_abs_diff: float
    logit_scale: float
    cosine_min: float
    argmax_agreement: float
    num_images: Positive
    batch_sizes: tuple[Positive, ...]


class ArtifactFile(_Section):
    """One file of the artifact."""

    path: Annotated[str, Field(description="relative to the manifest, with forward slashes")]
    role: Annotated[str, Field(description="student, teacher, ensemble, recipe, triton or engine description")]
    member: Annotated[
        int | None, Field(ge=0, description="which teacher, from 0; null: not a teacher's, or not said")
    ] = None
    format: Literal["onnx", "tensorrt", "tensorrt_rtx", "other"]
    precision: FilePrecision
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Positive
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    max_batch: Positive | None = None
    parity: Annotated[ParityFigures | None, Field(description="null: built here and not run here")] = None
    metrics: dict[str, float] = {}
    notes: dict[str, str] = {}

    @property
    def not_for_openvino(self) -> str | None:
        """Why OpenVINO should not run this file, after its name, as it was judged at export; None: it may."""
        reason = self.notes.get(NOT_FOR_OPENVINO)
        return reason and f"{PurePosixPath(self.path).name}: {reason}"

    @field_validator("path")
    @classmethod
    def _inside_the_folder(cls, path: str) -> str:
        parts = PurePosixPath(path).parts
        leaves = ".." in parts or PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive
        if not parts or leaves or "\\" in path or "\0" in path:
            raise ValueError(f"{path!r} is not a path inside the artifact's folder")
        return path


class MissingFile(_Section):
    """A file that was asked for and is not there, because it did not pass its gate."""

    path: Annotated[str, Field(description="where it would be")]
    role: Annotated[str, Field(description="student, teacher or ensemble")]
    member: Annotated[int | None, Field(ge=0)] = None
    precision: FilePrecision
    reason: Annotated[str, Field(description="the gate's figures, or what a library says")]


class Majority(_Section):
    """The most frequent class of the run's test images; its share is the accuracy of always saying so."""

    name: Annotated[str, Field(alias="class")]
    share: Annotated[float, Field(gt=0, le=1)]

    @model_serializer
    def _as_read(self) -> dict[str, str | float]:
        return {"class": self.name, "share": self.share}


class Preprocessing(_Section):
    """What turns an image file into the network's input; normalisation is inside the graph and not listed."""

    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    color: Literal["RGB", "L"]
    value_range: tuple[float, float] = (0.0, 1.0)
    image_size: Annotated[tuple[Positive, Positive], Field(description="height, width")]
    resize: Annotated[
        Literal["shorter_side_then_center_crop", "exact", "none"],
        Field(description="exact: to image_size, whatever the aspect ratio; none: images must have that size"),
    ]
    resize_shorter_side: Positive | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    orientation: Annotated[
        Literal["exif", "stored"],
        Field(description="exif: turn the decoded image as its EXIF data says; stored, as in older artifacts: do not"),
    ] = "stored"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        cropping = self.resize == "shorter_side_then_center_crop"
        if cropping and (self.resize_shorter_side is None or self.resize_shorter_side < max(self.image_size)):
            raise ValueError("resize_shorter_side must be at least as large as image_size to crop from")
        if not cropping and self.resize_shorter_side is not None:
            raise ValueError(f"resize_shorter_side has no meaning with resize: {self.resize}")
        return self


class Manifest(_Section):
    """The whole of `manifest.json`."""

    schema_version: Literal[1] = 1
    run: str
    recipe_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: Annotated[datetime, Field(description="UTC, ISO 8601")]
    versions: Annotated[dict[str, str], Field(description="edc, torch, onnx and whatever else made the files")]
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    preprocessing: Preprocessing
    calibration_temperature: Annotated[float, Field(gt=0, description="the student's, fitted on validation images")]
    member_temperature: Annotated[
        float,
        Field(gt=0, description="divides each teacher's logits before the ensemble averages; the merged file does so"),
    ] = 1.0
    temperature_folded: Annotated[bool, Field(description="true: the student's logits are already divided by it")]
    batchnorm_folded: bool = True
    differences: Annotated[
        dict[str, ParityFigures],
        Field(description="on validation images: the student fused from unfused, and folded from its members' mean"),
    ] = {}
    files: Annotated[tuple[ArtifactFile, ...], Field(min_length=1)]
    missing: Annotated[tuple[MissingFile, ...], Field(description="what was asked for and failed its gate")] = ()
    ensemble_calibrated_nll_by_size: Annotated[
        tuple[float, ...],
        Field(description="of the first 1, 2, ... teachers on test images: what a DEE is read off"),
    ] = ()
    majority: Annotated[Majority | None, Field(description="null: an older edc made the run or the artifact")] = None
    notes: dict[str, str] = {}

    @property
    def num_teachers(self) -> int:
        """How many teachers the ensemble has, also if files of some are missing."""
        members = [*(file.member for file in self.files), *(file.member for file in self.missing)]
        return 1 + max((member for member in members if member is not None), default=-1)

    @field_validator("files")
    @classmethod
    def _teachers_numbered(cls, files: tuple[ArtifactFile, ...]) -> tuple[ArtifactFile, ...]:
        """Numbers the teachers of a manifest that does not: an older edc listed them in their order."""
        seen: dict[tuple[str, str], int] = {}
        numbered = []
        for file in files:
            if file.role == "teacher":
                number = seen.get((file.format, file.precision), 0)
                seen[file.format, file.precision] = number + 1
                file = file if file.member is not None else file.model_copy(update={"member": number})  # noqa: PLW2901
            numbered.append(file)
        return tuple(numbered)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        (path, times), *_ = Counter(file.path for file in self.files).most_common(1)
        if times > 1:
            raise ValueError(f"files: {path} is listed twice")
        for file in self.files:
            for output in file.outputs[:1]:
                num_classes = output.shape[-1] if output.shape else None
                if isinstance(num_classes, int) and num_classes != len(self.classes):
                    raise ValueError(f"classes: {len(self.classes)} names, but {file.path} has {num_classes} outputs")
        if self.created.utcoffset() != timedelta(0):
            raise ValueError(f"created: {self.created.isoformat()} is not in UTC")
        return self


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Writes `manifest.json` into `folder`, whole or not at all, and return its path."""
    path = folder / MANIFEST_NAME
    with write_atomically(path) as temporary:
        text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


def load_manifest(folder: Path) -> Manifest:
    """Returns the manifest of the artifact in `folder`; the files it lists are not looked at.

    Raises:
        ArtifactError: it is missing, not JSON, of another version, or does not fit the schema; a listed path is
            absolute or leaves the folder.
    """
    put_back(folder)
    path = folder / MANIFEST_NAME
    try:
        content = json_from_text(read_text(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: not found; an artifact is a folder that `edc export` wrote") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON ({error}); export the run again") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(f"{path}: schema_version is {shown(version)}, this edc reads {SCHEMA_VERSION}")
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        wrong = [
            cut(f"{'.'.join(str(part) for part in item['loc']) or 'manifest'}: {item['msg']}", 400)
            for item in error.errors()[:MOST_MISTAKES]
        ]
        raise ArtifactError(f"{path}: {'; '.join(wrong)}") from error


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Checks that every listed file is there, inside the folder, with the listed size and SHA-256.

    Raises:
        ArtifactError: naming every file that is not.
    """
    wrong = [problem for file in manifest.files if (problem := _problem(folder, file))]
    if wrong:
        raise ArtifactError(f"{folder}: {'; '.join(wrong)}; fetch or export the artifact again")


def _problem(folder: Path, file: ArtifactFile) -> str | None:
    path = folder / file.path
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{file.path} is a link out of the folder"
        require_regular(path)
    except FileNotFoundError:
        return f"{file.path} is missing"
    except (OSError, RuntimeError) as error:  # the latter is pathlib's word for links in a circle
        return f"{cut(file.path, 200)} cannot be read ({first_line(error)})"
    num_bytes = path.stat().st_size
    if num_bytes != file.bytes:
        return f"{file.path} has {num_bytes} bytes, the manifest says {file.bytes}"
    if sha256_of(path) != file.sha256:
        return f"{file.path} has another SHA-256 than the manifest says: it was changed after the export"
    return None


def manifest_schema() -> dict[str, Any]:
    """Returns the JSON Schema of `manifest.json`, which is shipped as `export/manifest.schema.json`."""
    schema = Manifest.model_json_schema(mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
