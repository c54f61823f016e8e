"""Teachers' files that run code, made to leave a trace when they do."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

__all__ = ["NUM_CLASSES", "SHAPE", "Flat", "save_onnx_graph", "save_script", "save_tracing_program"]

NUM_CLASSES, SHAPE = 4, (3, 8, 8)


class Flat(nn.Module):
    """The smallest teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 8 * 8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(x, 1))


class Trace:
    """Unpickled, it appends the number of its process to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import os\nwith open({str(self.path)!r}, 'a') as f: f.write(f'{{os.getpid()}} ')",)


def save_script(network: nn.Module, path: Path, *, traced: bool = True) -> None:
    """Writes the network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(network, torch.rand(2, *SHAPE)) if traced else torch.jit.script(network)
        script.save(str(path))


def save_tracing_program(path: Path, trace: Path) -> None:
    """Writes an exported program whose archive holds a pickle that leaves a trace, where torch keeps sample inputs."""
    plain = path.with_name("plain.pt2")
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(Flat().eval(), (torch.rand(2, *SHAPE),), dynamic_shapes=dynamic), plain)
    payload = path.with_name("payload.pt")
    torch.save((([Trace(trace)],), {}), payload)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, payload.read_bytes() if name.endswith("sample_inputs/model.pt") else old.read(name))
    plain.unlink()
    payload.unlink()


def save_onnx_graph(path: Path, nodes: list[Any], *, inputs: int = 1, functions: Any = (), outputs: int = 1) -> None:
    """Writes an ONNX file of these nodes from x0, x1, ... to y0, ..."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, ["batch", *SHAPE]) for k in range(inputs)],
        [helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT, ["batch", NUM_CLASSES]) for k in range(outputs)],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=9), path)
