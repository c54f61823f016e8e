"""Makes a network ready to train."""

from accelerate import Accelerator
from torch import nn

from edc.recipe import TrainingSection
from edc.train.compiling import compile_network, example_for
from edc.train.placement import place, say_precision
from edc.train.sync_batchnorm import convert_sync_batchnorm, require_batchnorm_rows, require_sharable

__all__ = ["prepared"]


def prepared(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    training: TrainingSection,
    *,
    label: str,
    accelerator: Accelerator,
) -> nn.Module:
    """Returns the network ready to train: on its device, in its memory format, BatchNorm synchronised, compiled.

    Raises:
        RecipeError: the processes cannot share the batch, or BatchNorm would see a single image.
    """
    num_processes = accelerator.num_processes
    require_sharable(training, num_processes=num_processes)
    require_batchnorm_rows(network, training, num_processes=num_processes, label=label)
    if accelerator.is_main_process:
        say_precision(training, accelerator.device, label=label)
    network = place(network, accelerator.device, training)
    if training.compile:  # tried before the conversion, because a trial must not wait for other processes
        example = example_for(network, image_shape, training=training, num_processes=num_processes)
        compile_network(network, example, training=training, label=label, accelerator=accelerator)
    if num_processes > 1 and training.sync_batchnorm:
        network = convert_sync_batchnorm(network, accelerator.device)
    return network
