"""Teachers that come as files: state dicts of named networks, TorchScript, exported programs and ONNX.

Every kind of file becomes a module from images (N, C, H, W) in [0, 1] at the data's size to logits (N, K),
differentiable with respect to the images (the perturbation needs that), with its own image size and normalisation.

onnx2pytorch converts ONNX to torch operators, because ONNX Runtime cannot differentiate. The conversion is compared
with ONNX Runtime's own answers before it is used.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edc.errors import CheckpointError, NotInstalledError, RecipeError, cut, first_line
from edc.networks import build_network, load_weights
from edc.recipe import CheckpointSection, NetworkSection
from edc.system.onnx_content import read_onnx
from edc.teachers.formats import FileFormat, format_of, trusted_format
from edc.train.checkpoint import load_state

__all__ = ["FileTeacher", "format_of", "load_file_teacher", "require_classifier"]

ONNX_TOLERANCE = 1e-3
"""Largest difference between the converted network and ONNX Runtime, relative to the largest logit (at least 1)."""
TESTED_BATCHES = (1, 3)


class FileTeacher(nn.Module):
    """A frozen network with its own image size and normalisation, never in train mode.

    Images are resized bilinearly with antialiasing, inside the network, so that gradients reach the images as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        input_size: int | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        output: Literal["logits", "probabilities"] = "logits",
        exportable: bool = True,
    ) -> None:
        super().__init__()
        self.exportable = exportable
        """Whether torch's exporter can write it as ONNX; TorchScript and converted ONNX can only teach."""
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.network, self.input_size, self.output = network, input_size, output
        for parameter in network.parameters():  # a ScriptModule has no requires_grad_ of its own
            parameter.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FileTeacher":
        # An exported program has no train() and eval(); its modes were fixed at export.
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits (N, K); of probabilities, their logarithm, whose softmax they are."""
        size = self.input_size
        if size is not None and tuple(images.shape[-2:]) != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        answer: Tensor = self.network((images - self.mean) / self.std)
        if self.output == "probabilities":
            answer = answer.clamp_min(torch.finfo(answer.dtype).tiny).log()
        return answer


def load_file_teacher(
    checkpoint: CheckpointSection,
    *,
    field: str,
    default_network: NetworkSection,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    """Returns the teacher in `checkpoint.file`, frozen, in eval mode, and tried on images.

    Args:
        field: what messages call it, for example teachers.checkpoints.0.
        default_network, mean, std: what a state dict belongs to, and its normalisation, unless `checkpoint` says more.
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
    kind = trusted_format(checkpoint, source=source)
    if kind == "state_dict":
        teacher = _from_state_dict(
            checkpoint, checkpoint.file, source, default_network, num_classes, image_shape, mean, std
        )
    else:
        teacher = _from_whole_network(checkpoint, checkpoint.file, kind, source, image_shape[0])
    require_classifier(teacher, source, image_shape, num_classes, checkpoint.output)
    if kind == "onnx" and isinstance(teacher, FileTeacher):
        _require_parity(teacher, checkpoint.file, source, image_shape)
    return teacher


def _from_state_dict(
    checkpoint: CheckpointSection,
    path: Path,
    source: str,
    default_network: NetworkSection,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> nn.Module:
    own: dict[str, Any] = {"mean": checkpoint.mean, "std": checkpoint.std} if checkpoint.mean else {}
    section = (checkpoint.network or default_network).bare().model_copy(update=own)
    size = checkpoint.input_size
    shape = (image_shape[0], size, size) if size else image_shape
    network = build_network(section, num_classes=num_classes, image_shape=shape, mean=mean, std=std)
    load_weights(network, load_state(path), source=source, num_classes=num_classes)
    if shape == image_shape and checkpoint.output == "logits":
        return network.eval().requires_grad_(False)
    nothing = (0.0,) * image_shape[0], (1.0,) * image_shape[0]  # the network normalises by itself
    return FileTeacher(network.eval(), input_size=size, mean=nothing[0], std=nothing[1], output=checkpoint.output)


def _from_whole_network(
    checkpoint: CheckpointSection, path: Path, kind: FileFormat, source: str, channels: int
) -> FileTeacher:
    if checkpoint.network is not None:
        raise RecipeError(f"{source}: network has no effect on a file that is a whole network ({kind}); leave it out")
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
    return FileTeacher(
        _READERS[kind](path, source),
        input_size=checkpoint.input_size,
        mean=checkpoint.mean,
        std=checkpoint.std,
        output=checkpoint.output,
        exportable=kind == "exported_program",
    )


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
    if output == "logits" and _are_probabilities(logits):
        raise RecipeError(f"{source}: returns probabilities (rows of sum 1), not logits; set output: probabilities")


def _are_probabilities(answers: Tensor) -> bool:
    return bool((answers >= 0).all() and (answers.sum(1) - 1).abs().max() < 1e-4)


def _require_parity(teacher: FileTeacher, path: Path, source: str, image_shape: tuple[int, int, int]) -> None:
    """Raises unless the converted network answers as ONNX Runtime does, image by image."""
    import onnxruntime

    size = teacher.input_size or image_shape[1], teacher.input_size or image_shape[2]
    images = torch.rand(4, image_shape[0], *size, generator=torch.Generator().manual_seed(1))
    inputs = (images - teacher.mean) / teacher.std
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    expected = torch.cat([torch.from_numpy(session.run(None, {name: row[None].numpy()})[0]) for row in inputs])
    with torch.no_grad():
        found = teacher.network(inputs)
    difference = float((found - expected).abs().max())
    if not difference <= ONNX_TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RecipeError(
            f"{source}: its conversion to torch differs from ONNX Runtime by {difference:.2g}; give this teacher as a "
            "state dict, TorchScript or an exported program (torch.export.save)"
        )
