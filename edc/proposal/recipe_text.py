"""The proposed recipe as YAML, with the reason for each choice beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from edc.proposal.checkpoints_found import CheckpointFound
from edc.recipe import CheckpointSection, DataSection

__all__ = ["Choices", "recipe_text"]

WIDTH = 100
"""Of a line of comments."""


@dataclass(frozen=True)
class Choices:
    """What the recipe says beside data and teachers, and why."""

    name: str
    network: str
    start: str | None
    why_network: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_epochs: int
    why_training: str
    with_members: bool
    """Whether a student with members is among the students."""
    why_students: str
    reasons_of_data: dict[str, str] = field(default_factory=dict)
    """By field of the data section."""


def recipe_text(data: DataSection, found: Sequence[CheckpointFound], choices: Choices, *, head: Sequence[str]) -> str:
    """Returns the recipe. `head` are the lines of comments at its beginning."""
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"name: {_flow(choices.name)}", "data:"]
    for name, value in data.model_dump(mode="json", exclude_defaults=True).items():
        lines.append(_with_reason(f"  {name}: {_flow(value)}", choices.reasons_of_data.get(name, "")))
    network = {"name": choices.network, "start": choices.start} if choices.start else choices.network
    lines += [*_comment(choices.why_network), f"network: {_flow(network)}"]
    lines += [*_comment(choices.why_training), "training:"]
    lines += [
        f"  {name}: {getattr(choices, name)}" for name in ("epochs", "warmup_epochs", "batch_size", "learning_rate")
    ]
    lines += ["teachers:", *_teachers(found)]
    lines += [*_comment(choices.why_students), "students:", "  kd:", "    method: kd"]
    if choices.with_members:
        lines.append("    epochs: {as_long_as: latent_be_split}")
        lines += ["  latent_be_split:", "    method: latent_be", "    answers: split"]
        rate, of_what = (0.1, "members that start from weights") if choices.start else (0.25, "members")
        why = f"{of_what} stay close enough together to be averaged (docs/choosing.md)"
        lines.append(_with_reason(f"    training: {{factor_rate: {rate}}}", why))
        lines.append(_with_reason("deploy: best", "the student with the best calibrated NLL on validation images"))
    return "\n".join(lines) + "\n"


def _teachers(found: Sequence[CheckpointFound]) -> list[str]:
    if not any(not one.why_not for one in found):
        return [_with_reason("  ensemble_size: 4", "trained here, from four seeds"), *_left_out(found)]
    lines = ["  checkpoints:"]
    for one in found:
        if one.why_not or one.section is None:
            continue
        right = f"right on {100 * one.answered.acc:.1f} % of the validation images" if one.answered else ""
        for reason in filter(None, (right, *one.reasons)):
            lines += _comment(reason, indent="    ")
        lines.append(f"    - {_flow(_as_written(one.section))}")
    return [*lines, *_left_out(found)]


def _left_out(found: Sequence[CheckpointFound]) -> list[str]:
    return [
        line for one in found if one.why_not for line in _comment(f"left out: {one.file.name}: {one.why_not}", "    ")
    ]


def _as_written(section: CheckpointSection) -> dict[str, Any]:
    document = section.model_dump(mode="json", exclude_defaults=True)
    if section.network and set(document["network"]) == {"name"}:
        document["network"] = section.network.name
    return document


def _flow(value: Any) -> str:
    """Returns a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _with_reason(line: str, reason: str) -> str:
    return f"{line:<30}  # {' '.join(reason.split())}" if reason else line


def _comment(text: str, indent: str = "") -> list[str]:
    """Returns a text as lines of comments."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) >= WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [f"{indent}# {each}" for each in [*lines, line] if each]
