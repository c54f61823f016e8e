"""The proposed recipe as YAML, with the reason for each choice beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from edc.proposal.checkpoints_found import CheckpointFound
from edc.proposal.schedule import schedule_for
from edc.recipe import CheckpointSection, DataSection, NetworkSection

__all__ = ["Choices", "recipe_text"]

WIDTH = 100
"""Of a line of comments."""


@dataclass(frozen=True)
class Choices:
    """What the recipe says beside data and teachers, and why."""

    name: str
    network: NetworkSection
    """The student's, and what it starts from."""
    why_network: str
    has_batchnorm: bool
    """Whether the network has BatchNorm."""
    num_labelled: int
    """Training images."""
    num_extra: int
    """Images without labels."""
    several: bool
    """Whether there are two teachers or more, so that images can be divided among them."""
    why_no_members: str = ""
    """Why several teachers get no student with members; empty if they get one."""
    reasons_of_data: dict[str, str] = field(default_factory=dict)
    """By field of the data section."""


def recipe_text(data: DataSection, found: Sequence[CheckpointFound], choices: Choices, *, head: Sequence[str]) -> str:
    """Returns the recipe. `head` are the lines of comments at its beginning."""
    lines = [f"# {line}".rstrip() for line in head]
    lines += [f"name: {_flow(choices.name)}", "data:"]
    given = data.model_dump(mode="json", exclude_defaults=True)
    for name, value in (given | {"augmentation": data.augmentation}).items():
        lines.append(_with_reason(f"  {name}: {_flow(value)}", choices.reasons_of_data.get(name, "")))
    network = choices.network.model_dump(mode="json", exclude_defaults=True)
    lines += [*_comment(choices.why_network), f"network: {_flow(network if len(network) > 1 else network['name'])}"]
    lines += [*_training(choices), "teachers:", *_teachers(found), *_students(choices)]
    return "\n".join(lines) + "\n"


def _training(choices: Choices) -> list[str]:
    """Returns the section `training`, with what an epoch is."""
    labelled, extra = choices.num_labelled, choices.num_extra
    schedule = schedule_for(
        from_weights=choices.network.start is not None,
        has_batchnorm=choices.has_batchnorm,
        num_labelled=labelled,
        num_extra=extra,
    )
    begins = "weights that know such images" if choices.network.start else "random weights"
    why = f"a start to change: students begin from {begins}; an epoch goes through {labelled:,} images"
    if extra:
        times = schedule.epochs * labelled / extra
        times_in_words = f"{times:,.0f}" if times >= 10 else f"{times:.1f}"
        why += f" and as many of the {extra:,} without labels, each of which comes {times_in_words} times in all"
    fields = {name: value for name, value in asdict(schedule).items() if (name, value) != ("validate_every", 1)}
    why += ". More epochs are better ones, as many as you can afford"
    if choices.network.start:
        why += ". A third of the learning rate, or three times it, may be better, too: docs/choosing.md says how to try"
    return [*_comment(why), "training:", *(f"  {name}: {value}" for name, value in fields.items())]


def _students(choices: Choices) -> list[str]:
    """Returns the students that docs/choosing.md recommends for such teachers and such a start."""
    if not choices.several:
        why = "kd: one network learns from the one teacher; a student with members needs two or more"
        return [*_comment(why), "students:", "  kd:", "    method: kd"]
    split = choices.network.start is not None
    one = "kd_split: one network, each image answered by one teacher" if split else "kd: one network learns from all"
    average = [] if split else ["    ema: auto"]
    name, answers = ("kd_split", ["    answers: split"]) if split else ("kd", [])
    lines = ["students:", f"  {name}:", "    method: kd", *answers, *average]
    if choices.why_no_members:
        return [*_comment(f"{one}. No student with members: {choices.why_no_members}"), *lines]
    rate, of_what = (0.1, "that start from weights ") if split else (0.25, "")
    why = (
        f"{one}. latent_be_split: members that share weights, each image to one teacher and its member, folded into "
        "one network. Both cost the same."
    )
    together = f"members {of_what}stay close enough together to be averaged (docs/choosing.md)"
    if average:
        why += " ema: a moving average of each goes along, and is taken where validation images prefer it."
    return [
        *_comment(why),
        *lines,
        "    epochs: {as_long_as: latent_be_split}",
        "  latent_be_split:",
        "    method: latent_be",
        "    answers: split",
        _with_reason(f"    training: {{factor_rate: {rate}}}", together),
        *average,
        *_control(choices),
        _with_reason("deploy: best", "the student with the best calibrated NLL on validation images"),
    ]


def _control(choices: Choices) -> list[str]:
    """Returns a student to uncomment: without it nobody knows whether a longer training of one network does as well."""
    extra = "extra: false, " if choices.num_extra else ""
    return [
        "  # one network on labels alone, for the same cost: what comes without any teacher",
        f"  # labels: {{method: kd, alpha: 0.0, {extra}epochs: {{as_long_as: latent_be_split}}}}",
    ]


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
