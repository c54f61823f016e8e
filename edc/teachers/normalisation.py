"""Means and standard deviations that images are normalised by: a library's of its network, and those in use."""

from edc.networks import Normalisation, of_timm, takes_transform_input, with_transform_input

__all__ = ["before_transform_input", "in_use"]


def before_transform_input(name: str, says: str, now: Normalisation) -> dict[str, Normalisation]:
    """Returns what stands for `now`, which `says` names, with torchvision's `transform_input` after it; by its name.

    A state dict does not say whether its network had that, and who trained it may well have said `now` alone.
    """
    if not takes_transform_input(name) or len(now[0]) != 3:
        return {}
    return {f"{says}'s mean and std with torchvision's transform_input after them": with_transform_input(*now)}


def in_use(name: str, of_data: Normalisation, *, every: bool) -> dict[str, Normalisation]:
    """Returns the normalisations that a teacher of network `name` may have been trained with, by their names.

    Args:
        name: of the network; "" if it is not known.
        of_data: the data's own.
        every: all that timm has, and images from 0 to 1 or 255 as they are; else those that trainers use by default.
    """
    from timm.data import constants as known

    channels = len(of_data[0])
    found: dict[str, Normalisation] = {"the data's own": of_data}
    if (timms := of_timm(name, channels)) is not None:
        found["timm's of this network"] = timms
    if channels == 3:
        found["ImageNet's"] = known.IMAGENET_DEFAULT_MEAN, known.IMAGENET_DEFAULT_STD
        found["0.5 (Inception's; ImageNet's with torchvision's transform_input)"] = (
            known.IMAGENET_INCEPTION_MEAN,
            known.IMAGENET_INCEPTION_STD,
        )
    else:
        found["0.5"] = (0.5,) * channels, (0.5,) * channels
    if every:
        if channels == 3:
            found["CLIP's"] = known.OPENAI_CLIP_MEAN, known.OPENAI_CLIP_STD
            found["DPN's"] = known.IMAGENET_DPN_MEAN, known.IMAGENET_DPN_STD
        found["none (images from 0 to 1)"] = (0.0,) * channels, (1.0,) * channels
        found["none (images from 0 to 255)"] = (0.0,) * channels, (1 / 255,) * channels
    first = {value: name for name, value in reversed(found.items())}  # two names of one: the first
    return {name: value for name, value in found.items() if first[value] == name}
