"""What a training left on disk, read back: its checkpoint, and files of weights, also those that others wrote."""

import math
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edc.errors import CheckpointError, first_line, shown
from edc.system.archives import unpacks_to_much_more, zip_entries
from edc.system.files import write_atomically
from edc.system.saved import fault_of
from edc.train.average import RunningAverage
from edc.train.distributed import by_main, raised_together
from edc.train.saved.checks import require_finite, require_state_of
from edc.train.saved.writer import FORMAT, CheckpointWriter, Position, save_checkpoint

__all__ = [
    "CheckpointWriter",
    "NotLoaded",
    "Position",
    "held_in",
    "load_checkpoint",
    "load_document",
    "load_state",
    "resumed",
    "save_checkpoint",
    "save_state",
]


def load_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: RunningAverage | None = None
) -> Position:
    """Loads network, optimizer and average from `path` and returns the position to continue from.

    Raises:
        CheckpointError: it is damaged, or of another network, or holds NaN; nothing that trains has changed then.
    """
    try:
        document: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if document["format"] != FORMAT:
            raise CheckpointError(f"{path}: checkpoint format {document['format']}, this edc reads {FORMAT}")
        position = TypeAdapter(Position).validate_python(_with_score(document["position"]))
        require_finite(document["network"])
        require_finite(position.best_state)
        require_state_of(optimizer, document["optimizer"])
        network.load_state_dict(document["network"])
        optimizer.load_state_dict(document["optimizer"])
        if average is not None:
            average.load(_with_score(document["average"]))
    except (*_UNREADABLE, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path}: cannot continue from this checkpoint ({_fault(error)}); remove it to start over"
        ) from None
    return position


def _with_score(state: dict[str, Any]) -> dict[str, Any]:
    """Returns `state` with the best score; an edc that knew accuracy alone wrote that, of which more is better."""
    acc = state.get("best_validation_acc")
    rest = {key: value for key, value in state.items() if key != "best_validation_acc"}
    return rest if acc is None else {**rest, "best_score": -acc if acc >= 0 else math.inf}


_UNREADABLE = (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError)


def _fault(error: Exception) -> str:
    return fault_of(error) if isinstance(error, ValueError) else first_line(error)


def load_finished(path: Path, network: nn.Module, *, advice: str) -> None:
    """Loads the weights of a training that is finished.

    Raises:
        CheckpointError: they are damaged, of another network, or hold NaN; with `advice`, what to do about it.
    """
    state = load_state(path)
    try:
        require_finite(state)
        network.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be used ({first_line(error)}); {advice}") from None


def resumed(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: RunningAverage | None,
    *,
    accelerator: Accelerator,
) -> Position:
    """Returns where all processes go on, with what trains as it was there: at the start without a checkpoint."""
    if not by_main(path.is_file, accelerator):
        return Position()
    with raised_together(accelerator):
        return load_checkpoint(path, network, optimizer, average)


def save_state(path: Path, state: dict[str, Tensor]) -> None:
    """Writes a state dict as safetensors, atomically."""
    with write_atomically(path) as temporary:
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in state.items()}, temporary)


def load_state(path: Path) -> dict[str, Tensor]:
    """Returns the state dict in a .safetensors, .pt or .pth file that holds nothing else, as edc writes them.

    Raises:
        CheckpointError: missing, unreadable, or no state dict.
    """
    document = load_document(path)
    if not isinstance(document, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in document.items()
    ):
        raise CheckpointError(f"{path}: holds {held_in(document)}, expected a state dict (names to tensors)")
    return document


def load_document(path: Path) -> Any:
    """Returns what a .safetensors, .pt or .pth file holds: tensors as they are, and in place of each object of any
    class that torch does not know as safe (argparse's options, numpy's scalars) an empty `NotLoaded`.

    Nothing that such a class could do is done, whatever it is: its code is not even imported.

    Raises:
        CheckpointError: missing or unreadable.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.absolute()}: no such checkpoint")
    if unpacks_to_much_more(path):
        raise CheckpointError(f"{path}: unpacks to many times its size, which no file of torch.save does; not opened")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of unknown protocols, which are no pickles
            with torch.serialization.safe_globals(_stand_ins(path)):
                document = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - the two libraries raise a dozen kinds for a bad file, in words of their own
        raise CheckpointError(
            f"{path}: not readable as weights: {_what_it_is(path)}. Expected a state dict saved with torch.save or "
            "safetensors."
        ) from None
    if isinstance(document, NotLoaded):
        raise CheckpointError(
            f"{path}: not readable as weights: it holds more than tensors, a pickled {document.of}, which could run "
            "any code; save its state_dict(). Expected a state dict saved with torch.save or safetensors."
        )
    return document


def held_in(document: object) -> str:
    """Returns what a document is, with its first keys, for messages."""
    found = document.of if isinstance(document, NotLoaded) else type(document).__name__
    if isinstance(document, dict):
        keys = (key if isinstance(key, str) and len(key) < 100 else shown(key) for key in [*document][:5])
        found += f" ({', '.join(keys)}{', ...' if len(document) > 5 else ''})"
    return found


class NotLoaded(list[Any]):
    """Stands for an object that a file of weights holds beside them; `of` names its class. It does nothing.

    A list, because torch's reader appends to lists alone.
    """

    of = ""
    held: object = None
    """What the object held, by name: the options of an `argparse.Namespace`. Plain values, read as all others."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> "NotLoaded":
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        self.held = state

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key


class _Mapping:
    """Stands for a class that is a dict by its name; torch's reader sets items of dicts alone."""

    def __new__(cls, *_arguments: Any, **_options: Any) -> Any:
        return OrderedDict()


USUAL = (
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("numpy.dtype", "numpy.ndarray"),
)
"""What trainers put beside weights. Files in the format of torch before 1.6 do not list what they hold."""


BEFORE_1_6 = bytes.fromhex("80028a0a6cfc9c46f920")


def _stand_ins(path: Path) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Returns a class that does nothing for every class or function that the file names and torch would not load."""
    named = set(USUAL)
    with suppress(ValueError):  # a file in the older format
        named |= set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return [(_stand_in(name), name) for name in sorted(named)]


def _stand_in(name: str) -> type:
    last = name.rpartition(".")[2]
    if re.search("dict|node|bunch|munch|config$", last, re.IGNORECASE):
        return type(last, (_Mapping,), {})
    return type(last, (NotLoaded,), {"of": name})


def _what_it_is(path: Path) -> str:
    """Returns what an unreadable weights file really is, and what to do about it."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.decode("utf-8", "ignore")
    is_text = len(text.encode()) > len(head) - 4 and all(c.isprintable() or c.isspace() for c in text)
    named_safetensors, is_zip = path.suffix == ".safetensors", bool(zip_entries(path))
    is_safetensors = head[8:9] == b"{"  # after eight bytes of its length comes a header in JSON
    kinds = [
        (not head, "it is empty"),
        (
            head.startswith(b"version https://git-lfs"),
            "it is a Git LFS pointer, not the file itself; fetch that with: git lfs pull",
        ),
        (
            head.lstrip().lower().startswith((b"<!doctype html", b"<html")),
            "it is a web page (HTML), perhaps from a download that needs a login",
        ),
        (is_text, f"it is text, which begins {text[:30]!r}"),
        (is_zip and named_safetensors, "torch.save wrote it, not safetensors; name it .pt"),
        (
            is_zip,
            "it holds more than tensors, perhaps a whole pickled network, which could run any code; save its "
            "state_dict()",
        ),
        (head.startswith(b"PK"), "it is a file of torch.save that is cut short or damaged"),
        (
            head.startswith(BEFORE_1_6),
            "it is in the format of torch before 1.6, and holds more than tensors or is damaged; load it where it was "
            "made and save its state_dict()",
        ),
        (
            is_safetensors and not named_safetensors,
            "it is a safetensors file under another name; name it .safetensors",
        ),
        (is_safetensors, "it is a safetensors file that is cut short or damaged"),
        (True, f"it begins with the bytes {head[:8].hex(' ')}, unlike either kind of file"),
    ]
    return next(words for applies, words in kinds if applies)
