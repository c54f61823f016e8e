"""The training section of a recipe: the schedule, and the overrides of one student or the teachers."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from edc.recipe.data_section import Count, CountOrZero, Section

__all__ = ["OPERATION", "TrainingOverrides", "TrainingSection", "UnitInterval", "require_one_of_epochs"]

UnitInterval = Annotated[float, Field(ge=0.0, le=1.0)]
MicroBatchSize = Annotated[int, Field(ge=2, le=1_000_000_000)]
Optimizer = Literal["sgd", "adamw"]
WeightDecay = Annotated[float, Field(ge=0.0)]
Precision = Literal["fp32", "tf32", "bf16"]
LayerDecay = Annotated[float, Field(gt=0.0, le=1.0)]
FactorRate = Annotated[float, Field(gt=0.0, le=1.0)]


OPERATION = ("checkpoint_every", "deterministic")
"""Fields of `training` that say how a run is operated, not what it is."""


class TrainingSection(Section):
    """The schedule, shared by teachers and students; the defaults are the paper's (docs/method.md: 200 epochs, SGD)."""

    later_than_first: ClassVar[tuple[str, ...]] = ("layer_decay", "factor_rate")
    epochs: Count = 200
    batch_size: Count = 128
    """Images in one optimiser step, over all processes."""
    micro_batch_size: MicroBatchSize | None = None
    """Images of one process that run through the networks at once; None: all. Smaller ones save memory. Gradients add
    up to the same, but BatchNorm's batch statistics are those of the smaller batches."""
    optimizer: Optimizer = "sgd"
    learning_rate: PositiveFloat = 0.1
    """The highest one: it rises in a line from 0 in `warmup_epochs`, then falls to 0 in half a cosine, step by step."""
    layer_decay: LayerDecay | None = None
    """Layer-wise learning rates, for networks that do not start from random weights. The last layer, the classifier,
    has `learning_rate`; each layer before it has `layer_decay` times that of the next (docs/method.md defines a
    layer). None: all layers have one rate; 1 is that, for one student where the shared value is another."""
    factor_rate: FactorRate | None = None
    """The learning rate of members' factors, as a multiple of that of the weights which they multiply. None: 1, as
    published. Members that start from weights stay closer with less (0.1), and a short training is then enough for
    their fold; members that drift apart need less, too (0.25; docs/choosing.md). Networks without members, teachers
    too, do not change."""
    momentum: UnitInterval = 0.9
    """Nesterov's, of `sgd`; `adamw` has momenta of its own, and another value here is an error."""
    weight_decay: WeightDecay = 5e-4
    warmup_epochs: CountOrZero = 5
    """Epochs in which the learning rate rises in a line from 0; after them it falls in half a cosine to 0."""
    precision: Precision = "fp32"
    """fp32 is float32 by IEEE also on a GPU, whose convolutions torch would compute in TF32 (ten bits of mantissa).
    tf32 lets a GPU do so, and matrix products with them. bf16 is autocast. Evaluation never uses TF32."""
    channels_last: bool = True
    compile: bool = False
    """torch.compile for teachers and student. If it fails, they run without it and the log says so. Measured once: a
    step of WRN-16-2 on one CPU core went from 1.66 to 1.60 s, after two minutes of compiling (results/step_cost.md);
    not measured on a GPU. The trial does not include SyncBatchNorm's exchange between processes: a failure there
    ends the first step."""
    deterministic: bool = False
    """A GPU computes the same bits again: torch's deterministic algorithms alone, and cuDNN tries none out. Trainings
    then repeat and resume bit by bit on one kind of GPU with the same libraries, as they do on a CPU without it, and
    are slower; an operation that has no such algorithm ends the training. May be changed between two calls of one
    run."""
    sync_batchnorm: bool = True
    """Batch statistics over all processes, so that a run does not depend on their number."""
    checkpoint_every: Count = 1
    """Epochs between checkpoints; may be changed between two calls of one run."""
    validate_every: Count = 1
    """Epochs between two validations; the last epoch is always validated."""

    def rows_at_once(self, num_processes: int) -> tuple[int, int]:
        """Returns how many images of one process go through the networks at once: as a rule, and in the last part."""
        sizes = [end - start for start, end in self.parts(num_processes)]
        return sizes[0], sizes[-1]

    def parts(self, num_processes: int) -> list[tuple[int, int]]:
        """Returns the rows of a batch, from and to, that go through the networks at once, of all processes."""
        share = self.batch_size // num_processes
        micro = min(self.micro_batch_size or share, share)
        firsts = [(rank * share, start) for rank in range(num_processes) for start in range(0, share, micro)]
        return [(first + start, first + min(start + micro, share)) for first, start in firsts]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})")
        return self


class TrainingOverrides(Section):
    """Where one student, or the teachers, differ from the shared `training`; None: no difference.

    It has every field of `training` but those of `OPERATION`, which say how a run is operated, not what it is.
    """

    later_than_first: ClassVar[tuple[str, ...]] = tuple(TrainingSection.model_fields)
    epochs: Count | None = None
    batch_size: Count | None = None
    micro_batch_size: MicroBatchSize | None = None
    optimizer: Optimizer | None = None
    learning_rate: PositiveFloat | None = None
    layer_decay: LayerDecay | None = None
    factor_rate: FactorRate | None = None
    momentum: UnitInterval | None = None
    weight_decay: WeightDecay | None = None
    warmup_epochs: CountOrZero | None = None
    precision: Precision | None = None
    channels_last: bool | None = None
    compile: bool | None = None
    sync_batchnorm: bool | None = None
    validate_every: Count | None = None

    def given(self) -> dict[str, Any]:
        """Returns the fields that are given."""
        return {name: value for name, value in self if value is not None}

    def without(self, *fields: str) -> "TrainingOverrides":
        """Returns these overrides without some fields, which get the shared values again."""
        return self.model_copy(update=dict.fromkeys(fields))


def require_one_of_epochs(epochs: int | None, training: TrainingOverrides | None) -> None:
    """Raises if a section gives its number of epochs twice."""
    if training and None not in (epochs, training.epochs):
        raise ValueError(f"epochs ({epochs}) and training.epochs ({training.epochs}) are both given; keep one of them")
