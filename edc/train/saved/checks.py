"""What a state that was read from disk must be before anything trains from it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["require_finite", "require_state_of"]


def require_finite(state: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` if a tensor holds NaN or infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds NaN or infinity")


def require_state_of(optimizer: torch.optim.Optimizer, document: Any) -> None:
    """Raises `ValueError` unless the state is of these parameters: torch checks no shape, and its kernels crash."""
    groups, held = optimizer.state_dict()["param_groups"], document["param_groups"]
    if len(held) != len(groups) or any(a["params"] != b["params"] for a, b in zip(held, groups, strict=True)):
        raise ValueError("the optimizer has other groups of parameters")
    for group, mine in zip(held, groups, strict=True):
        for name in group.keys() & mine.keys():
            if not _of_one_kind(group[name], mine[name]):
                raise ValueError(f"{name} of the optimizer is {group[name]!r}, expected one like {mine[name]!r}")
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))
    states = document["state"]
    if not states.keys() <= parameters.keys():  # one that never had a gradient has no state
        raise ValueError("the optimizer has state for other parameters")
    for number, state in states.items():
        for name, value in state.items():
            if not isinstance(value, Tensor) and (value is not None or name == "step"):
                raise ValueError(f"{name} of parameter {number} is {type(value).__name__}, expected a tensor")
            if isinstance(value, Tensor) and value.ndim and value.shape != parameters[number].shape:
                found, expected = tuple(value.shape), tuple(parameters[number].shape)
                raise ValueError(f"{name} of parameter {number} has shape {found}, expected {expected}")
        require_finite({name: value for name, value in state.items() if isinstance(value, Tensor)})
    kinds = {tuple((name, type(value)) for name, value in sorted(state.items())) for state in states.values()}
    if len(kinds) > 1:
        raise ValueError("the optimizer's state is of several kinds")


def _of_one_kind(held: Any, mine: Any) -> bool:
    numbers = (int, float)
    return mine is None or type(held) is type(mine) or (isinstance(held, numbers) and isinstance(mine, numbers))
