"""edc: turn a deep ensemble into one deployable network, with the evidence.

What is named here is edc's interface for Python; everything else may change. A name is loaded when it is first used:
`import edc` itself loads neither torch nor anything else that is heavy.

    recipe = edc.load_recipe("recipes/digits.yaml")     the whole job, as the commands do it
    edc.distill(recipe, run="runs/digits")
    edc.export("runs/digits", "export/digits")
    edc.bench("export/digits")

    student = edc.to_batch_ensemble(network, len(teachers))  a piece of it in your own loop: examples/own_loop.py
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edc import metrics as metrics
    from edc.benchmark.bench import bench
    from edc.benchmark.options import BenchOptions
    from edc.deploy.export import ExportOptions, export
    from edc.method.batch_ensemble import fold, member_logits, select_members, to_batch_ensemble
    from edc.method.losses import kd_loss, latent_be_loss
    from edc.method.perturb import perturb
    from edc.recipe.loading import load_recipe
    from edc.runs.distill import distill

__all__ = [
    "BenchOptions",
    "ExportOptions",
    "bench",
    "distill",
    "export",
    "fold",
    "kd_loss",
    "latent_be_loss",
    "load_recipe",
    "member_logits",
    "metrics",
    "perturb",
    "select_members",
    "to_batch_ensemble",
]
__version__ = "0.1.0"

_HOMES = {
    "edc.benchmark.bench": ("bench",),
    "edc.benchmark.options": ("BenchOptions",),
    "edc.deploy.export": ("ExportOptions", "export"),
    "edc.method.batch_ensemble": ("fold", "member_logits", "select_members", "to_batch_ensemble"),
    "edc.method.losses": ("kd_loss", "latent_be_loss"),
    "edc.method.perturb": ("perturb",),
    "edc.recipe.loading": ("load_recipe",),
    "edc.runs.distill": ("distill",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return import_module("edc.metrics")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'edc' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
