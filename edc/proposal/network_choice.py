"""The student's network and what it starts from, for a recipe that is proposed."""

from collections.abc import Sequence

from edc.data import DataSet
from edc.networks import count_parameters, network_for
from edc.proposal.checkpoints_found import CheckpointFound
from edc.recipe import NetworkSection

__all__ = ["network_and_start"]


def network_and_start(
    student: tuple[str, str] | None, data: DataSet, used: Sequence[CheckpointFound]
) -> tuple[NetworkSection, str]:
    """Returns the student's network with what it starts from, and why.

    Args:
        student: the network that was asked for, if one was, and why it is the one.
    """
    names = [one.section.network.name if one.section and one.section.network else "" for one in used]
    by_acc = sorted(zip(names, used, strict=True), key=lambda pair: -_accuracy(pair[1]))
    own = dict.fromkeys(name for name, _ in by_acc if name)  # of one size, the best teacher's first
    if student:
        network, why = student
    elif own:
        network = min(own, key=lambda name: _num_parameters(name, data))
        why = (
            "the student: the teachers' own network" if len(own) == 1 else "the student: the smallest of the teachers'"
        )
        why += ", so that serving it costs as much as one such teacher; --student names a smaller one"
    else:
        network = "torchvision/resnet18" if data.image_shape[1] >= 64 else "wrn16x2"
        why = "the student: a small network that takes such images; --student names another"
    if names and set(names) == {network}:
        started = NetworkSection(name=network, start="teacher")
        return started, f"{why}. It starts from the best teacher on validation images"
    same = [one.section for name, one in by_acc if name == network and one.section and one.section.file]
    best = next((section for section in same if not section.classes), None)
    if best is not None:  # its weights say the same only for images that are normalised as it was taught
        started = NetworkSection(name=network, start=str(best.file), weights=best.weights, mean=best.mean, std=best.std)
        return started, f"{why}. It starts from the weights of the best teacher of that network"
    hint = "; start: pretrained would take the library's weights, if they can be fetched" if "/" in network else ""
    if same:
        hint = f", because its teacher has an order of classes of its own, and a student has the data's{hint}"
    return NetworkSection(name=network), f"{why}. It starts from random weights{hint}"


def _accuracy(one: CheckpointFound) -> float:
    return one.answered.acc if one.answered else 0.0


def _num_parameters(name: str, data: DataSet) -> int:
    return count_parameters(network_for(NetworkSection(name=name), data))
