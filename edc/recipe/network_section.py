"""The network section of a recipe: the architecture, and the weights that it starts from."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, PositiveFloat, model_validator

from edc.errors import shown
from edc.recipe.data_section import Section

__all__ = ["NETWORK_NAME", "NetworkSection", "Start"]

NETWORK_NAME = re.compile(
    r"(wrn(?P<depth>[0-9]{1,9})x(?P<width>[0-9]{1,9})"
    r"|cifar_resnet(?P<rdepth>[0-9]{1,9})(x(?P<rwidth>[0-9]{1,9}))?|(torchvision|timm)/\S+)\Z"
)
MOST_LAYERS, MOST_WIDTH = 2000, 100
START_WORDS = ("random", "pretrained", "teacher")


def _word_or_file(start: str) -> str:
    if start not in START_WORDS and not Path(start).suffix:
        raise ValueError(
            f"found {start!r}; expected random, pretrained, teacher or a file of weights (.safetensors, .pt, .pth)"
        )
    return start


Start = Annotated[str, AfterValidator(_word_or_file)]
"""`random`; `pretrained`: the library's weights; `teacher`: the best teacher on validation; or a file of weights."""


class NetworkSection(Section):
    """A network by name, written `network: wrn28x4` or as a mapping."""

    later_than_first: ClassVar[tuple[str, ...]] = ("start", "weights")
    name: str
    pretrained: bool = False
    """Start from the library's own weights (torchvision and timm only; needs the network)."""
    start: Start | None = None
    """What training starts from: `random` (unless given), `pretrained` (which is `pretrained: true`), `teacher`
    (students only: the teacher of the run with the best validation accuracy), or a state dict (.safetensors, .pt, .pth)
    of this network. A file may have another number of classes: its classifier is drawn anew, and the log says so.
    Images are normalised as the weights' were: by the file's or the teacher's own mean and std, by timm's of this
    network where a file has none, by the library's for its own weights, unless `mean` and `std` are given here."""
    weights: Literal["ema", "raw"] | None = None
    """Which weights of a file that training starts from: its moving average, or the raw ones. Unless given (`auto`),
    the average if there is one, as with teachers; the log says which."""
    mean: tuple[float, ...] | None = None
    std: tuple[PositiveFloat, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, value: Any) -> Any:
        """Stores `start: pretrained` as `pretrained: true`, `random` and `weights: auto` as None: one meaning has one
        digest."""
        if isinstance(value, dict) and value.get("weights") == "auto":
            value = {key: held for key, held in value.items() if key != "weights"}
        start = value.get("start") if isinstance(value, dict) else None
        if start not in ("random", "pretrained") or (start == "random" and value.get("pretrained")):
            return value
        return {key: held for key, held in value.items() if key != "start"} | (
            {"pretrained": True} if start == "pretrained" else {}
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        match = NETWORK_NAME.match(self.name)
        if not match:
            raise ValueError(
                f"unknown network {shown(self.name)}; expected wrn<depth>x<width>, cifar_resnet<depth>[x<width>], "
                "torchvision/<name> or timm/<name>"
            )
        if match["depth"] and (int(match["depth"]) < 10 or (int(match["depth"]) - 4) % 6):
            raise ValueError(f"{self.name}: the depth of a WRN is 6n + 4 (10, 16, 22, 28, ...)")
        if match["rdepth"] and (int(match["rdepth"]) < 8 or (int(match["rdepth"]) - 2) % 6):
            raise ValueError(f"{self.name}: the depth of a CIFAR ResNet is 6n + 2 (8, 14, 20, 32, ...)")
        depth, width = (int(match[a] or match[b] or 1) for a, b in (("depth", "rdepth"), ("width", "rwidth")))
        if depth > MOST_LAYERS or not 1 <= width <= MOST_WIDTH:
            limits = f"at most {MOST_LAYERS} layers and a width of 1 to {MOST_WIDTH}"
            raise ValueError(f"{self.name}: found {depth} layers and a width of {width}; expected {limits}")
        if self.pretrained and self.start:
            raise ValueError(f"pretrained: true and start: {self.start} contradict each other; keep one of them")
        if self.pretrained and not self.has_library:
            raise ValueError(
                f"pretrained: {self.name} comes without weights; torchvision/ and timm/ networks have some"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        return self

    @property
    def has_library(self) -> bool:
        """Whether it is a network of torchvision or timm; most of these have weights."""
        return "/" in self.name

    @property
    def start_file(self) -> Path | None:
        """The file of weights that training starts from, if any."""
        return None if self.start in (None, *START_WORDS) else Path(str(self.start))

    def started(self, start: str | None) -> "NetworkSection":
        """Returns this network with another start; None keeps its own."""
        if start is None:
            return self
        word = None if start in ("random", "pretrained") else start
        return self.model_copy(update={"pretrained": start == "pretrained", "start": word})

    def bare(self) -> "NetworkSection":
        """Returns this network with random weights, which need no file and no download."""
        return self.started("random").model_copy(update={"weights": None})
