"""Teachers that are state dicts: the network is the recipe's, its weights and perhaps its normalisation the file's."""

from pathlib import Path

from edc.networks import Classifier, Normalisation, build_network, of_timm
from edc.recipe import CheckpointSection, NetworkSection
from edc.teachers.reading import Reading
from edc.teachers.weights_file import load_weights_file

__all__ = ["network_from_state_dict"]


def network_from_state_dict(
    checkpoint: CheckpointSection,
    path: Path,
    *,
    source: str,
    default_network: NetworkSection,
    num_classes: int,
    image_shape: tuple[int, int, int],
    of_data: Normalisation,
) -> tuple[Classifier, Reading]:
    """Returns the network with the weights in `path`, in eval mode, and what normalises its images.

    That is the recipe's mean and std, else the file's (which edc saves), else timm's for a network of timm, else the
    data's.

    Args:
        image_shape: (C, H, W) of what goes into the network.

    Raises:
        CheckpointError: a file that cannot be read, or does not fit.
        RecipeError: no such network.
    """
    asked = checkpoint.network or default_network
    own = {"mean": checkpoint.mean, "std": checkpoint.std} if checkpoint.mean else {}
    section: NetworkSection = asked.bare().model_copy(update=own)
    library = of_timm(section.name, image_shape[0])
    mean, std = library or of_data
    network = build_network(section, num_classes=num_classes, image_shape=image_shape, mean=mean, std=std)
    as_asked = network.mean.clone(), network.std.clone()
    which = checkpoint.weights or "auto"
    taken = load_weights_file(network, path, source=source, num_classes=num_classes, which=which)
    says = "the recipe" if section.mean else "timm" if library else "the data"
    in_file = None
    if "mean" in taken.state and "std" in taken.state:
        says = "the recipe" if section.mean else "the file"
        if section.mean:  # loading has put the file's in its place
            in_file = _normalisation_of(network)
            network.mean.copy_(as_asked[0])
            network.std.copy_(as_asked[1])
    mean, std = _normalisation_of(network)
    in_file = None if in_file == (mean, std) else in_file
    note = "the recipe's mean and std replace others that its file has" if in_file else ""
    reading = Reading(
        mean=mean,
        std=std,
        normalisation_of=says,
        in_file=in_file,
        input_size=checkpoint.input_size,
        weights=taken.words,
        is_ema=taken.is_ema,
        has_both=taken.has_both,
        weights_name=taken.name if taken.has_both else "",
    )
    return network.eval(), reading.noting(note)


def _normalisation_of(network: Classifier) -> Normalisation:
    return tuple(network.mean.flatten().tolist()), tuple(network.std.flatten().tolist())
