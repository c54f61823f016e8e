"""Classify an image, or a folder of them: `python classify.py ARTIFACT IMAGE [--file NAME] [--top 5] [--json]`.

ONNX files run in ONNX Runtime (or OpenVINO with --backend openvino), engines in TensorRT or TensorRT-RTX. Needs numpy,
Pillow and what runs the file (engines: cuda-python too), not edc or torch. A reference for a consumer of your own.
"""

import argparse
import hashlib
import importlib
import json
import os
import sys
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

MOST_PIXELS = 89_478_485  # after scaling; Pillow warns of files of more
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
            ".gif")  # fmt: skip
BY_MACHINES = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")  # like names that begin with a dot


class UserError(Exception):
    """Shown as one line; the program ends with exit code 2."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Classify images with an exported artifact.")
    parser.add_argument("artifact", type=Path, help="the folder that holds manifest.json")
    parser.add_argument("image", type=Path, help="an image, or a folder: all images below it")
    parser.add_argument("--top", type=int, default=5, help="how many classes to show (default: 5)")
    parser.add_argument("--file", help="which file of the artifact (default: the student's fp32 ONNX)")
    parser.add_argument("--backend", choices=("onnxruntime", "openvino"), default="onnxruntime", help="for ONNX files")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    asked = {"top": arguments.top, "file": arguments.file, "backend": arguments.backend}
    try:
        if arguments.image.is_dir():
            return classify_folder(arguments.artifact, arguments.image, as_json=arguments.json, **asked)
        result = Classifier(arguments.artifact, **asked).classify(arguments.image)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    width = max(len(row["label"]) for row in result["top"])
    lines = [f"{row['label']:<{width}}  {row['probability']:.2%}" for row in result["top"]]
    print(json.dumps(result, ensure_ascii=False) if arguments.json else "\n".join(lines))
    return 0


def classify_folder(artifact: Path, folder: Path, *, as_json: bool, **asked) -> int:
    """Print a line for each image below the folder, or one JSON document; return 1 if any could not be read."""
    classifier, images = Classifier(artifact, **asked), images_below(folder)
    results, unreadable = [], []
    for image in images:
        try:
            results.append(classifier.classify(image))
        except UserError as error:
            unreadable.append({"image": str(image), "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
        else:
            top = [f"{row['label']} {row['probability']:.2%}" for row in results[-1]["top"]]
            if not as_json:
                print(image, *top, sep="\t")
    if as_json:
        print(json.dumps({"images": results, "unreadable": unreadable}, ensure_ascii=False))
    if unreadable:
        print(f"error: {len(unreadable)} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def images_below(folder: Path) -> list[Path]:
    """Return the images anywhere below the folder, by their suffix, without what machines leave there."""
    paths = [path for path in sorted(folder.rglob("*")) if not path.is_dir() and not is_by_machine(path, folder)]
    found = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if len(found) < len(paths):
        print(f"left out {len(paths) - len(found)} files that are no images by their suffix", file=sys.stderr)
    if not found:
        raise UserError(f"{folder}: no images ({', '.join(SUFFIXES)}) in this folder")
    return found


def is_by_machine(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part.lower() in BY_MACHINES for part in path.relative_to(folder).parts)


class Classifier:
    """One file of an artifact, opened once."""

    def __init__(self, artifact: Path, *, top: int = 5, file: str | None = None, backend: str = "onnxruntime"):
        if top < 1:
            raise UserError(f"--top: {top}, expected at least 1")
        self.manifest, self.top = load_manifest(artifact), top
        self.entry = choose_file(self.manifest, file)
        if backend == "openvino" and (why := self.entry.get("notes", {}).get("not_for_openvino")):
            raise UserError(f"{self.entry['path']}: not for OpenVINO: {why}")
        open_model = {"onnxruntime": open_onnx, "openvino": open_openvino}[backend]
        open_file = open_model if self.entry["format"] == "onnx" else open_engine
        self.run = open_file(verified_path(artifact, self.entry), self.entry)

    def classify(self, image: Path) -> dict:
        """Return the `top` classes of the image with their calibrated probabilities."""
        if image.exists() and not image.is_file():  # a pipe or a device would never end
            raise UserError(f"{image}: not a regular file")
        logits = self.run(preprocess(image, self.manifest["preprocessing"]))
        probabilities = softmax(logits / temperature_left(self.manifest, self.entry))
        best = np.argsort(-probabilities, kind="stable")[: self.top]
        classes = self.manifest["classes"]
        rows = [{"label": classes[i], "index": int(i), "probability": float(probabilities[i])} for i in best]
        return {"image": str(image), "file": self.entry["path"], "top": rows}


def load_manifest(artifact: Path) -> dict:
    path = artifact / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema_version") != 1:
        raise UserError(f"{path}: not a manifest with schema_version 1")
    missing = [key for key in ("files", "classes", "preprocessing", "calibration_temperature") if key not in manifest]
    if missing:
        raise UserError(f"{path}: {missing[0]} is missing")
    return manifest


def choose_file(manifest: dict, wanted: str | None) -> dict:
    models = [entry for entry in manifest["files"] if entry["format"] in ("onnx", "tensorrt", "tensorrt_rtx")]
    asked = {"role": "student", "format": "onnx", "precision": "fp32"} if wanted is None else {"path": wanted}
    chosen = [entry for entry in models if asked.items() <= entry.items()]
    if not chosen:
        names = ", ".join(entry["path"] for entry in models) or "none"
        raise UserError(f"{wanted or 'a student in fp32'}: not a model of this artifact, which has {names}")
    return chosen[0]


def verified_path(artifact: Path, entry: dict) -> Path:
    """Return the file's path after checking that it is the one that was exported."""
    relative = PurePosixPath(entry["path"])
    path = artifact / relative
    if relative.is_absolute() or ".." in relative.parts or not path.resolve().is_relative_to(artifact.resolve()):
        raise UserError(f"{entry['path']}: leaves the artifact's folder")
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if digest != entry["sha256"]:
        raise UserError(f"{path}: SHA-256 differs from the manifest's; the file was changed after the export")
    return path


def preprocess(path: Path, how: dict) -> np.ndarray:
    """Return the image as a batch of one, as the manifest says; normalisation is inside the network."""
    try:
        with Image.open(path) as opened:
            turn = turn_of(opened) if how.get("orientation") == "exif" else None  # older manifests do not say: stored
            image = in_8_bits(opened, path).convert(how["color"])
            image = image if turn is None else image.transpose(turn)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that Pillow can read") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that Pillow can read: {error}") from error
    height, width = how["image_size"]
    interpolation = Image.Resampling[how["interpolation"].upper()]
    if how["resize"] == "shorter_side_then_center_crop":
        if how["resize_shorter_side"] ** 2 * max(image.size) // min(image.size) > MOST_PIXELS:
            raise UserError(f"{path}: {image.width}x{image.height} pixels are too long to scale; crop it")
        image = resize_shorter_side(image, how["resize_shorter_side"], interpolation)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    elif how["resize"] == "exact" and image.size != (width, height):
        image = image.resize((width, height), interpolation)
    if image.size != (width, height):
        raise UserError(f"{path}: {image.width}x{image.height} pixels, this network takes {width}x{height} only")
    pixels = np.asarray(image, dtype=np.uint8).reshape(1, height, width, -1)
    if how["layout"] == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    if how["dtype"] == "uint8":
        return np.ascontiguousarray(pixels)
    low, high = how["value_range"]
    return np.ascontiguousarray(pixels.astype(np.float32) / np.float32(255) * np.float32(high - low) + np.float32(low))


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return what brings the opened image upright, as its EXIF data says; Pillow turns TIFF files by itself."""
    turns = (None, None, "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE",
             "ROTATE_90")  # fmt: skip
    image.load()  # a file that breaks off says so here
    try:
        orientation = 1 if image.format == "TIFF" else image.getexif().get(0x0112)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError):
        return None  # data that cannot be read says nothing
    return Image.Transpose[turns[orientation]] if orientation in range(2, 9) else None


def in_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """Return the opened image, of grey pixels of 16 bits the upper 8; Pillow would cut them off at 255."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image.load()
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(258, (16,))[0]  # 12 in some TIFF files
        pixels = np.asarray(image).astype(np.int64).clip(0, 2**bits - 1) >> (bits - 8)
        white_is_zero = tags.get(262) == 0
        return Image.fromarray((255 - pixels if white_is_zero else pixels).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: the file does not say which of its values (mode {image.mode}) are black and white")
    return image


def resize_shorter_side(image: Image.Image, size: int, interpolation: Image.Resampling) -> Image.Image:
    """Return the image scaled so that its shorter side is `size`; the longer side is rounded down."""
    new_size = tuple(int(size * side / min(image.size)) for side in image.size)
    return image if image.size == new_size else image.resize(new_size, interpolation)


def open_onnx(path: Path, _entry: dict):
    """Return what makes the logits of one image, in ONNX Runtime."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: Linux wheels send telemetry by default
    onnxruntime = imported("onnxruntime", "pip install onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0][0].astype(np.float64)


def open_openvino(path: Path, _entry: dict):
    """Return what makes the logits of one image, in OpenVINO; left to itself it would compute fp32 in bfloat16."""
    sys.modules.setdefault("openvino_telemetry", None)  # importing OpenVINO would send an event
    openvino = imported("openvino", "pip install openvino")
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled([images])[0][0].astype(np.float64)


def open_engine(path: Path, entry: dict):
    """Return what makes the logits of one image, in TensorRT or TensorRT-RTX on the first GPU."""
    trt = imported(entry["format"], f"pip install {'tensorrt-rtx-cu13' if 'rtx' in entry['format'] else 'tensorrt'}")
    cuda = imported("cuda.bindings.runtime", "pip install cuda-python")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes()) if runtime is not None else None
    if engine is None:  # never raised: the library only logs
        raise UserError(f"{path}: {entry['format']} {trt.__version__} cannot load it here; build it again on this GPU")
    context = engine.create_execution_context()
    return lambda images: run_engine(context, cuda, path, images, entry)


def run_engine(context, cuda, path: Path, images: np.ndarray, entry: dict) -> np.ndarray:
    """Return the logits of one image."""
    logits = np.empty((1, entry["outputs"][0]["shape"][-1]), np.float32)
    context.set_input_shape(entry["inputs"][0]["name"], images.shape)
    stream = checked(cuda.cudaStreamCreate())
    on_device = [checked(cuda.cudaMalloc(array.nbytes)) for array in (images, logits)]
    try:
        to_device, to_host = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice, cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(cuda.cudaMemcpy(on_device[0], images.ctypes.data, images.nbytes, to_device))
        context.set_tensor_address(entry["inputs"][0]["name"], int(on_device[0]))
        context.set_tensor_address(entry["outputs"][0]["name"], int(on_device[1]))
        if not context.execute_async_v3(int(stream)):
            raise UserError(f"{path}: the engine refused to run")
        checked(cuda.cudaStreamSynchronize(stream))
        checked(cuda.cudaMemcpy(logits.ctypes.data, on_device[1], logits.nbytes, to_host))
    finally:
        for pointer in on_device:
            cuda.cudaFree(pointer)
        cuda.cudaStreamDestroy(stream)
    return logits[0].astype(np.float64)


def imported(name: str, install: str):
    """Return a module, or say how to get it."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise UserError(f"{name}: cannot be imported ({error}); {install}") from error


def checked(result: tuple):
    """Return the value of a CUDA call, or its error as ours."""
    if int(result[0]) != 0:
        raise UserError(f"CUDA: {result[0]}")
    return result[1] if len(result) > 1 else None


def temperature_left(manifest: dict, entry: dict) -> float:
    """Return what the logits must still be divided by: the temperature belongs to the student."""
    if entry["role"] != "student" or manifest["temperature_folded"]:
        return 1.0
    return float(manifest["calibration_temperature"])


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


if __name__ == "__main__":
    sys.exit(main())
