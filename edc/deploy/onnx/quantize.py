"""INT8 ONNX files: one for CPUs, one for TensorRT, because neither runs the other's well.

`int8-cpu` has unsigned activations with a zero point and int32 biases: ONNX Runtime and OpenVINO fuse it fully, and
TensorRT's parser does not accept it. `int8-trt` is symmetric, leaves biases in float and quantises only what
convolutions and matrix products read: TensorRT fuses it, and ONNX Runtime would run it in float.

An INT8 file does not compute what the network computes, so it is judged by its accuracy. If it loses more than is
allowed, the next rung of a ladder is tried; each rung leaves more in float.
"""

import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edc.deploy.onnx.checked import write_checked
from edc.deploy.onnx.parity import PairedAccuracy, paired_accuracy_drop
from edc.deploy.onnx.precision import QUANTIZED_OPERATORS, require_precision
from edc.deploy.onnx.sensitivity import heavy_nodes, noisiest_nodes
from edc.deploy.onnx.session import import_onnxruntime
from edc.errors import FailedError, ParityError
from edc.system.files import write_atomically

__all__ = ["RUNGS", "Quantized", "int8_from_onnx", "int8_within_budget"]

Flavour = Literal["int8-cpu", "int8-trt"]
Calibration = Literal["minmax", "percentile"]
Images = NDArray[np.float32]

RUNGS = ("minmax", "percentile", "ends_float", "quarter_float")
_BATCH = 16
# Those that ONNX Runtime's CPU provider has 8-bit kernels for. Its own default also quantises what it then runs in
# float, normalisation above all, which costs accuracy and buys nothing.
_CPU_OPERATORS = (
    *(*QUANTIZED_OPERATORS, "Add", "Mul", "Relu", "Clip", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "Flatten", "Reshape", "Transpose"),
)


@dataclass(frozen=True)
class Quantized:
    """The first file within the budget: its rung, what stayed in float, and the accuracy of every rung tried."""

    rung: str
    kept_float: tuple[str, ...]
    accuracy: PairedAccuracy
    tried: tuple[tuple[str, PairedAccuracy], ...]
    elsewhere: PairedAccuracy | None = None
    """On the other backend that such a file is for; None: not judged there."""


def int8_within_budget(
    source: Path,
    path: Path,
    *,
    flavour: Flavour,
    images: Images,
    reference_correct: NDArray[np.bool_],
    accuracy_of: Callable[[Path], NDArray[np.bool_]],
    max_drop: float,
    elsewhere_of: Callable[[Path], NDArray[np.bool_]] | None = None,
) -> Quantized:
    """Writes the float32 ONNX file `source` to `path` in INT8, and return how far down the ladder it had to go.

    A rung that is within the budget here and not elsewhere is taken only if none further down is within both.

    The rungs: ranges by minimum and maximum; ranges by the 99.99th percentile, which gives up outliers for finer steps;
    with that, the first convolution and the last matrix product in float; and the noisiest quarter of the layers too.

    Args:
        images: (N, C, H, W), 300 to 512 training images with evaluation preprocessing; they set the ranges.
        reference_correct: which validation images the float32 file gets right.
        accuracy_of: returns which validation images the file at a path gets right.
        max_drop: the largest loss of accuracy, as a share of 1.
        elsewhere_of: as `accuracy_of`, on another backend that such files are for.

    Raises:
        ParityError: the last rung still loses more; nothing is written.
    """
    tried: list[tuple[str, PairedAccuracy]] = []
    here_alone: tuple[Quantized, bytes] | None = None
    with write_atomically(path) as temporary:
        for rung in RUNGS:
            kept = _kept_float(source, rung, images)
            calibration: Calibration = "minmax" if rung == "minmax" else "percentile"
            try:
                int8_from_onnx(
                    source, temporary, flavour=flavour, images=images, calibration=calibration, keep_float=kept
                )
            except ParityError:
                if not tried:
                    raise
                break  # the rung leaves most of so small a network in float
            accuracy = paired_accuracy_drop(reference_correct, accuracy_of(temporary))
            tried.append((rung, accuracy))
            if accuracy.within(max_drop):
                elsewhere = elsewhere_of and paired_accuracy_drop(reference_correct, elsewhere_of(temporary))
                found = Quantized(rung, kept, accuracy, tuple(tried), elsewhere)
                if elsewhere is None or elsewhere.within(max_drop):
                    return found
                here_alone = here_alone or (found, temporary.read_bytes())
        if here_alone is not None:
            temporary.write_bytes(here_alone[1])
            return here_alone[0]
        drops = ", ".join(f"{rung} {100 * accuracy.drop:.2f}" for rung, accuracy in tried)
        raise ParityError(
            f"{path}: with every setting {flavour} loses more than the {100 * max_drop:g} points of accuracy "
            f"allowed ({drops}); allow more with --max-drop, or deploy fp16 or fp32"
        )


def int8_from_onnx(
    source: Path,
    path: Path,
    *,
    flavour: Flavour,
    images: Images,
    calibration: Calibration = "minmax",
    keep_float: tuple[str, ...] = (),
) -> None:
    """Writes the float32 ONNX file `source` to `path` in INT8, with ranges from `images`.

    Weights are symmetric, one scale per output channel; activations have one scale per tensor.

    Args:
        keep_float: names of nodes that stay in float.

    Raises:
        ParityError: less than half of the convolutions and matrix products could be quantised.
    """
    import_onnxruntime()
    from onnxruntime import quantization as q

    options: dict[str, Any] = {"CalibPercentile": 99.99}
    if calibration == "percentile":
        options["CalibStridedMinMax"] = _BATCH  # histograms grow batch by batch; without it all values wait in memory
    if flavour == "int8-trt":
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(QUANTIZED_OPERATORS),
        }
    else:
        # ONNX Runtime 1.31 computes transformers wrongly when a MatMul's output is quantised: on ViT-tiny the cosine
        # with float32 is 0.99 with its graph optimisations off, and 0.59 with them on.
        options |= {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]}
    methods = {"minmax": q.CalibrationMethod.MinMax, "percentile": q.CalibrationMethod.Percentile}
    with write_atomically(path) as temporary, _inferred(source) as typed, _quiet_quantizer():
        q.quantize_static(
            typed,
            temporary,
            _reader(typed, images),
            quant_format=q.QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPERATORS if flavour == "int8-trt" else _CPU_OPERATORS),
            per_channel=True,
            activation_type=q.QuantType.QInt8 if flavour == "int8-trt" else q.QuantType.QUInt8,
            weight_type=q.QuantType.QInt8,
            nodes_to_exclude=list(keep_float),
            calibrate_method=methods[calibration],
            extra_options=options,
        )
        _clean(temporary)
        require_precision(temporary, flavour)


def _kept_float(source: Path, rung: str, images: Images) -> tuple[str, ...]:
    """Returns the nodes that a rung leaves in float."""
    if rung in ("minmax", "percentile"):
        return ()
    nodes = heavy_nodes(source)
    ends = {nodes[0], nodes[-1]}
    if rung == "quarter_float":
        ends |= set(noisiest_nodes(source, images[:64], num_nodes=len(nodes) // 4))
    return tuple(name for name in nodes if name in ends)


def _reader(path: Path, images: Images) -> Any:
    """Returns ONNX Runtime's calibration reader over `images`."""
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(path, load_external_data=False).graph.input[0].name
    batches = [images[start : start + _BATCH] for start in range(0, len(images) - len(images) % _BATCH, _BATCH)]
    if not batches:
        raise FailedError(f"calibration: {len(images)} images, expected at least {_BATCH}")

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Batches in turn. Lengths and ranges are in images' batches, a stride of one batch at a time."""

        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self.left, None)
            return None if batch is None else {name: np.ascontiguousarray(batch)}

        def __len__(self) -> int:
            return len(batches) * _BATCH

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(batches[start_index // _BATCH : end_index // _BATCH])

    return Reader()


@contextmanager
def _inferred(source: Path) -> Iterator[Path]:
    """Yields a temporary copy of the file with the types of all values, which the quantiser looks up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "typed.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(source)), path)
        yield path


def _clean(path: Path) -> None:
    """Removes what the quantiser notes about itself, and checks the file."""
    model = onnx.load(path)
    kept = [entry for entry in model.metadata_props if not entry.key.startswith("onnx.")]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    del model.graph.value_info[:]
    write_checked(model, path, what="the quantised graph")


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Drops what the quantiser prints and its advice to preprocess, which `fuse_batchnorm` and `_inferred` have done.

    It logs to the root logger itself, which would also install a handler there for everybody.
    """
    root, nowhere = logging.getLogger(), logging.NullHandler()

    def drop(_: logging.LogRecord) -> bool:
        return False

    root.addHandler(nowhere)
    root.addFilter(drop)  # a logger's filter sees what is logged to it, not what its children pass up
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(nowhere)
