"""What `edc init` found: images by split and class, and each checkpoint."""

import dataclasses
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from edc.proposal.budget import time_in_words
from edc.proposal.checkpoints_found import CheckpointFound
from edc.proposal.data_found import SplitFound
from edc.proposal.propose import Proposal

__all__ = ["print_found", "proposal_document"]

MOST_CLASSES, MOST_NAMED = 30, 5


def print_found(proposal: Proposal, *, console: Console) -> None:
    """Prints the table of classes, what is wrong with the images, and one paragraph for each checkpoint."""
    splits, section = proposal.data.splits, proposal.data.section
    console.print(f"images: {section.kind} in {section.root}", highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("class", overflow="fold")
    for split in splits:
        table.add_column(split.name, justify="right")
    names = list(splits[0].num_by_class)
    for name in names[:MOST_CLASSES]:
        table.add_row(name, *(f"{split.num_by_class[name]:,}" for split in splits))
    if len(names) > MOST_CLASSES:
        table.add_row(f"and {len(names) - MOST_CLASSES} more", *("" for _ in splits))
    table.add_row("all", *(f"{split.num_images:,}" for split in splits), style="bold")
    table.add_row("most frequent", *(f"{split.majority:.1%}" for split in splits))
    console.print(table, highlight=False)
    extra = proposal.data.extra
    lines = [f"without labels: {extra.num_images:,} images in {section.extra[0].root}"] if extra else []
    lines += [line for split in (*splits, *([extra] if extra else ())) for line in _unreadable(split)]
    lines += [line for one in proposal.checkpoints for line in _checkpoint(one)]
    lines += [f"warning: {warning}" for warning in proposal.warnings]
    if unused := [one.file.name for one in proposal.checkpoints if one.why_not]:
        lines.append(
            f"warning: {len(unused)} of {len(proposal.checkpoints)} checkpoints are not used, for the reasons above: "
            f"{', '.join(unused)}. The recipe is of the others"
        )
    lines += [f"timed: {one.name}: {time_in_words(one)}, {one.num_parameters:,} parameters" for one in proposal.timed]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _unreadable(split: SplitFound) -> list[str]:
    found = [*split.unreadable.values()]
    lines = [f"unreadable: {reason}" for reason in found[:MOST_NAMED]]
    return lines + ([f"... and {len(found) - MOST_NAMED:,} more in {split.name}"] if len(found) > MOST_NAMED else [])


def _checkpoint(one: CheckpointFound) -> list[str]:
    network = one.section.network.name if one.section and one.section.network else one.kind
    if one.why_not:
        return [f"{one.file.name}: not used: {one.why_not}"]
    right = f", right on {100 * one.answered.acc:.2f} % of the validation images" if one.answered else ""
    return [f"{one.file.name}: {network}{right}", *(f"  {reason}" for reason in one.reasons)]


def proposal_document(proposal: Proposal) -> dict[str, Any]:
    """Returns what was found as a JSON document."""
    data = proposal.data
    splits = {
        split.name: {
            "images": split.num_images,
            "by_class": split.num_by_class,
            "majority": split.majority,
            "images_read": split.num_read,
            "unreadable": split.unreadable,
        }
        for split in (*data.splits, *([data.extra] if data.extra else ()))
    }
    duplicates = {pair: {"found": num, "looked_at": most} for pair, (num, most) in data.duplicates.items()}
    checkpoints = [
        {
            "file": str(one.file),
            "kind": one.kind,
            "section": one.section.model_dump(mode="json", exclude_none=True) if one.section else None,
            "reasons": list(one.reasons),
            "acc": one.answered.acc if one.answered else None,
            "not_used": one.why_not or None,
        }
        for one in proposal.checkpoints
    ]
    timed = [dataclasses.asdict(one) for one in proposal.timed]
    return {
        "timed": timed,
        "kind": data.section.kind,
        "splits": splits,
        "duplicates": duplicates,
        "checkpoints": checkpoints,
    }
