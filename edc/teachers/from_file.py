"""Teachers that come as files: state dicts of named networks, TorchScript, exported programs and ONNX.

Every kind of file becomes a module from images (N, C, H, W) in [0, 1] at the data's size to logits (N, K),
differentiable with respect to the images (the perturbation needs that), with its own image size and normalisation.

onnx2pytorch converts ONNX to torch operators, because ONNX Runtime cannot differentiate. The conversion is compared
with ONNX Runtime's own answers before it is used.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edc.errors import CheckpointError, NotInstalledError, RecipeError, cut, first_line
from edc.networks import Normalisation
from edc.recipe import CheckpointSection, NetworkSection
from edc.system.onnx_content import read_onnx
from edc.teachers.class_order import order_of
from edc.teachers.file_teacher import FileTeacher, fit_precision, in_order_of_data, look_for_half_probabilities
from edc.teachers.formats import FileFormat, format_of, trusted_format
from edc.teachers.from_state_dict import network_from_state_dict
from edc.teachers.reading import OwnTeacher, Reading

__all__ = ["format_of", "load_file_teacher", "require_classifier"]

ONNX_TOLERANCE = 1e-3
"""Largest difference between the converted network and ONNX Runtime, relative to the largest logit (at least 1)."""
TESTED_BATCHES = (1, 3)
ROUNDED_SUM = 0.02
"""How far from 1 the sum of probabilities may be that were rounded to half precision or bfloat16."""


def load_file_teacher(
    checkpoint: CheckpointSection,
    *,
    field: str,
    default_network: NetworkSection,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    of_data: Normalisation,
) -> OwnTeacher:
    """Returns the teacher in `checkpoint.file`, frozen, in eval mode, and tried on images.

    Args:
        field: what messages call it, for example teachers.checkpoints.0.
        default_network, of_data: what a state dict belongs to, and its normalisation, unless `checkpoint` says more.
        class_names: of the data.
        image_shape: (C, H, W) of the data, before the teacher's own resizing.

    Raises:
        RecipeError: fields that do not fit such a file, or a network that does not take such images.
        CheckpointError: a file that cannot be read, or whose classes are not the data's.
        NotInstalledError: ONNX without onnx2pytorch.
    """
    assert checkpoint.file is not None  # without one it is a teacher of a library
    source = f"{field}: {checkpoint.file}"
    if not checkpoint.file.is_file():
        raise CheckpointError(f"{field}: {checkpoint.file.absolute()}: no such checkpoint")
    order = order_of(checkpoint.classes, class_names, field=field)
    kind = trusted_format(checkpoint, source=source)
    teacher: nn.Module
    if kind == "state_dict":
        teacher, reading = _from_state_dict(checkpoint, source, default_network, len(class_names), image_shape, of_data)
    else:
        teacher, reading = _from_whole_network(checkpoint, checkpoint.file, kind, source, image_shape)
    require_classifier(teacher, source, image_shape, len(class_names), checkpoint.output)
    if isinstance(teacher, FileTeacher):
        if kind == "onnx":
            _require_parity(teacher, checkpoint.file, source, image_shape)
        reading = reading.noting(look_for_half_probabilities(teacher, image_shape))
    return in_order_of_data(teacher, reading, checkpoint, order)


def _from_state_dict(
    checkpoint: CheckpointSection,
    source: str,
    default_network: NetworkSection,
    num_classes: int,
    image_shape: tuple[int, int, int],
    of_data: Normalisation,
) -> tuple[nn.Module, Reading]:
    assert checkpoint.file is not None
    size = checkpoint.input_size
    shape = (image_shape[0], size, size) if size else image_shape
    network, reading = network_from_state_dict(
        checkpoint,
        checkpoint.file,
        source=source,
        default_network=default_network,
        num_classes=num_classes,
        image_shape=shape,
        of_data=of_data,
    )
    if shape == image_shape and checkpoint.output == "logits":
        return network.requires_grad_(False), reading
    nothing = (0.0,) * image_shape[0], (1.0,) * image_shape[0]  # the network normalises by itself
    return FileTeacher(network, input_size=size, mean=nothing[0], std=nothing[1], output=checkpoint.output), reading


def _from_whole_network(
    checkpoint: CheckpointSection, path: Path, kind: FileFormat, source: str, image_shape: tuple[int, int, int]
) -> tuple[FileTeacher, Reading]:
    channels = image_shape[0]
    for name, value in (("network", checkpoint.network), ("weights", checkpoint.weights)):
        if value is not None:
            raise RecipeError(
                f"{source}: {name} has no effect on a file that is a whole network ({kind}); leave it out"
            )
    if checkpoint.mean is None or checkpoint.std is None:
        raise RecipeError(
            f"{source}: mean and std are missing; a whole network ({kind}) needs what it subtracts from images in "
            "[0, 1] and divides by, per channel (zeros and ones if it normalises by itself)"
        )
    if not len(checkpoint.mean) == len(checkpoint.std) == channels:
        raise RecipeError(
            f"{source}: mean and std have {len(checkpoint.mean)} and {len(checkpoint.std)} values, "
            f"the images have {channels} channels"
        )
    teacher = FileTeacher(
        _READERS[kind](path, source),
        input_size=checkpoint.input_size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        output=checkpoint.output,
        exportable=kind == "exported_program",
    )
    precision = fit_precision(teacher, lambda: _READERS[kind](path, source), image_shape)
    return teacher, Reading(checkpoint.mean, checkpoint.std, "the recipe", checkpoint.input_size).noting(precision)


def _from_torchscript(path: Path, source: str) -> nn.Module:
    with warnings.catch_warnings():  # deprecated for writing; files of it will be around for long
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        try:
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{source}: not readable as TorchScript ({first_line(error)})") from None
    return network.eval()


def _from_exported_program(path: Path, source: str) -> nn.Module:
    try:
        network: nn.Module = torch.export.load(path).module()
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{source}: not readable as an exported program ({first_line(error)})") from None
    for module in network.modules():  # only marks: what BatchNorm and dropout do is in the graph
        module.training = False
    return network


def _from_onnx(path: Path, source: str) -> nn.Module:
    import onnx

    try:
        from onnx2pytorch import ConvertModel
    except ImportError:
        raise NotInstalledError(
            f"{source}: ONNX teachers need onnx2pytorch: pip install 'edc[onnx-teachers]'"
        ) from None
    try:
        model = read_onnx(path)
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise CheckpointError(f"{source}: not readable as ONNX ({first_line(error)})") from None
    initialised = {tensor.name for tensor in model.graph.initializer}
    for what, values in (("input", model.graph.input), ("output", model.graph.output)):
        names = [value.name for value in values if value.name not in initialised]
        if len(names) != 1:
            raise CheckpointError(f"{source}: has {len(names)} {what}s ({cut(', '.join(names), 200)}), expected one")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Quiet(ConvertModel(model)).eval()
    except (NotImplementedError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RecipeError(
            f"{source}: cannot be converted to torch ({first_line(error)}); give this teacher as a state dict, "
            "TorchScript or an exported program (torch.export.save)"
        ) from None


_READERS = {"torchscript": _from_torchscript, "exported_program": _from_exported_program, "onnx": _from_onnx}


class _Quiet(nn.Module):
    """Runs a converted network without its warnings about torch's indexing; its values are checked instead."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer: Tensor = self.network(images)
        return answer


def require_classifier(
    teacher: nn.Module, source: str, image_shape: tuple[int, int, int], num_classes: int, output: str
) -> None:
    """Raises unless the teacher makes finite, differentiable logits (N, K) for one image and for several."""
    for batch in TESTED_BATCHES:
        images = torch.rand(batch, *image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
        try:
            logits = teacher(images)
        except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise RecipeError(
                f"{source}: does not take {batch} image{'s' * (batch > 1)} of {image_shape} ({first_line(error)}). "
                "Its image size goes into input_size; a whole network must have been saved for any batch size."
            ) from None
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
            raise RecipeError(f"{source}: returns {shape} for {batch} images, expected logits ({batch}, {num_classes})")
        if logits.shape[1] != num_classes:
            raise CheckpointError(f"{source}: a classifier of {logits.shape[1]} classes, the data has {num_classes}")
        if not logits.isfinite().all():
            raise RecipeError(f"{source}: returns NaN or infinity for images in [0, 1]; look at mean, std and output")
        gradient = torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] if logits.requires_grad else None
        if gradient is None:
            raise RecipeError(
                f"{source}: no gradient flows from its logits to the images, which perturbations need; "
                "save it without torch.no_grad and without quantisation"
            )
    if output == "logits" and _are_probabilities(logits, 1e-4):
        raise RecipeError(f"{source}: returns probabilities (rows of sum 1), not logits; set output: probabilities")
    if output == "probabilities" and isinstance(teacher, FileTeacher):
        with torch.no_grad():
            answers = teacher.answer(images)
        if not _are_probabilities(answers, ROUNDED_SUM):
            (low, high), (least, most) = answers.aminmax(), answers.sum(1).aminmax()
            raise RecipeError(
                f"{source}: output: found 'probabilities', but it returns values from {low:.3g} to {high:.3g} whose "
                f"rows have sums from {least:.3g} to {most:.3g}, expected 0 to 1 and sums of 1; leave output out if "
                "they are logits"
            )


def _are_probabilities(answers: Tensor, tolerance: float) -> bool:
    return bool((answers >= 0).all() and (answers.sum(1) - 1).abs().max() < tolerance)


def _require_parity(teacher: FileTeacher, path: Path, source: str, image_shape: tuple[int, int, int]) -> None:
    """Raises unless the converted network answers as ONNX Runtime does, image by image."""
    import onnxruntime

    size = teacher.input_size or image_shape[1], teacher.input_size or image_shape[2]
    images = torch.rand(4, image_shape[0], *size, generator=torch.Generator().manual_seed(1))
    inputs = (images - teacher.mean) / teacher.std
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    if session.get_inputs()[0].type == "tensor(float16)":
        inputs = inputs.half()
    expected = torch.cat([torch.from_numpy(session.run(None, {name: row[None].numpy()})[0]) for row in inputs])
    with torch.no_grad():
        found = teacher.network(inputs if teacher.in_half else inputs.float())
    difference = float((found - expected).abs().max())
    if not difference <= ONNX_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RecipeError(
            f"{source}: its conversion to torch differs from ONNX Runtime by {difference:.2g}; give this teacher as a "
            "state dict, TorchScript or an exported program (torch.export.save)"
        )
