"""The moving average of a network over its training steps (EMA), and the average's best state.

    average_1 = network_1        average_t = decay * average_{t-1} + (1 - decay) * network_t

network_t is the network after step t: its parameters, its members' parameters and its buffers. So BatchNorm's running
statistics are averaged too; only re-estimation gives the statistics of the averaged weights themselves.
"""

import math
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["LEAST_STEPS", "Ema", "RunningAverage", "average_of", "copy_of_state", "decay_of"]

Ema = float | Literal["auto"]
SHARE = 0.03
"""What `auto` averages over, of the steps of a training (results/student_average.md)."""
LEAST_STEPS = 2
"""That `auto` averages over in the shortest training."""


def decay_of(ema: Ema, *, num_steps: int) -> float:
    """Returns the decay per step; `auto`: of an average over 3 % of `num_steps`, and over `LEAST_STEPS` at least.

    An average of decay d is mostly of the last 1 / (1 - d) steps.
    """
    return 1 - 1 / max(SHARE * num_steps, LEAST_STEPS) if ema == "auto" else ema


class RunningAverage:
    """The moving average of a network, and its state in the epoch of the best score; ties go to the later.

    It lives on the network's device and in its memory format; on disk it is part of the training's checkpoint.
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self._averaged = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
        self._averaged.requires_grad_(False)
        self.best_score = math.inf
        self.best_state: dict[str, Tensor] = {}

    @property
    def network(self) -> nn.Module:
        """The average itself: a network like the one that is averaged."""
        return self._averaged.module

    def update(self, network: nn.Module) -> None:
        """Adds the network, after one more step, to the average."""
        self._averaged.update_parameters(network)

    def keep_if_best(self, score: float) -> None:
        """Remembers the average as it is, unless it had a better score before; lower is better."""
        if score <= self.best_score:
            self.best_score, self.best_state = score, copy_of_state(self.network)

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint: all that the next step depends on."""
        best = {"best_score": self.best_score, "best_state": self.best_state}
        return {"averaged": self._averaged.state_dict(), **best}

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self._averaged.load_state_dict(state["averaged"])
        self.best_score, self.best_state = state["best_score"], state["best_state"]


def average_of(network: nn.Module, ema: Ema | None, *, num_steps: int) -> RunningAverage | None:
    """Returns the average of a training that begins now and has `num_steps`; None where `ema` is."""
    return None if ema is None else RunningAverage(network, decay=decay_of(ema, num_steps=num_steps))


def copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of the state dict of `network` in CPU memory."""
    return {key: value.detach().to("cpu", copy=True) for key, value in network.state_dict().items()}
