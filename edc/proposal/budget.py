"""Which networks answer within a time, here: candidates with random weights, exported and timed as in a bench."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edc.benchmark.backends import BackendName, require_installed
from edc.benchmark.backends.contract import OnnxSource
from edc.benchmark.judge.rows import latency
from edc.benchmark.judge.statistics import Estimate
from edc.benchmark.measure.quality import float_batches
from edc.benchmark.options import QUICK
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing, WorkerPool
from edc.data import DataSet
from edc.deploy.onnx.from_network import onnx_from_network
from edc.errors import FailedError, RecipeError, RequestError
from edc.networks import count_parameters, network_for
from edc.progress import step
from edc.recipe import NetworkSection
from edc.subject import Subject

__all__ = [
    "BUDGET_BACKENDS",
    "Budget",
    "TimedNetwork",
    "chosen",
    "in_words",
    "require_backend",
    "time_in_words",
    "timed_networks",
]

BUDGET_BACKENDS: tuple[BackendName, ...] = ("onnxruntime", "openvino", "onnxruntime-cuda")
"""Those that run an ONNX file as it is."""
OF_SMALL_IMAGES = ("cifar_resnet8", "wrn10x1", "wrn16x1", "wrn16x2", "wrn28x2", "wrn28x4")
OF_PHOTOGRAPHS = (
    "timm/mobilenetv3_small_100",
    "timm/mobilenetv3_large_100",
    "timm/tf_efficientnet_lite0",
    "torchvision/resnet18",
    "torchvision/resnet50",
)
"""From fast to slow on a CPU, of kinds that every backend runs well and that eight bits do not hurt much."""
SMALL_SIDE = 64
WIDE = 1.5
"""An interval that ends at so many times its median is of a machine that does other things, too."""


@dataclass(frozen=True)
class Budget:
    """How long one image may take: the median at batch 1."""

    ms: float
    backend: BackendName = "onnxruntime"
    threads: int = 1


@dataclass(frozen=True)
class TimedNetwork:
    """A candidate: its median at batch 1 with its interval, or why it has none."""

    name: str
    num_parameters: int = 0
    p50_ms: Estimate | None = None
    why_not: str = ""


def require_backend(name: str) -> BackendName:
    """Returns the backend of that name; raises `RequestError` or `NotInstalledError` if nothing can be timed on it."""
    for backend in BUDGET_BACKENDS:
        if backend == name:
            require_installed(backend)
            return backend
    raise RequestError(f"--backend: found {name}, expected one of {', '.join(BUDGET_BACKENDS)}")


def timed_networks(own: Sequence[str], data: DataSet, budget: Budget) -> list[TimedNetwork]:
    """Returns the candidates for such images and the teachers' `own` networks, the fastest first."""
    names = dict.fromkeys((*own, *(OF_SMALL_IMAGES if data.image_shape[1] < SMALL_SIDE else OF_PHOTOGRAPHS)))
    images = next(float_batches(data.validation, batch_size=64))
    with TemporaryDirectory(prefix="edc-budget-") as folder:
        with step(f"building {len(names)} networks with random weights"):
            found = [_exported(name, data, Path(folder) / f"{number}.onnx") for number, name in enumerate(names)]
        specs = {
            one.name: RowSpec(Subject("student", name=one.name), budget.backend, OnnxSource((path,)))
            for number, one in enumerate(found)
            if (path := Path(folder) / f"{number}.onnx").is_file()
        }
        doing = f"timing {len(specs)} networks in turn on {budget.backend} at batch 1"
        with WorkerPool(images=images, threads=budget.threads) as pool, step(doing):
            for spec in specs.values():
                pool.load(spec)
            timings = pool.time(list(specs.values()), batch=1, plan=QUICK.timing, seed=0, with_memory=False)
    timed = []
    for one in found:
        timing = timings.get(specs[one.name]) if one.name in specs else None
        p50 = _p50_ms(timing)
        why = one.why_not or ("" if p50 else timing.reason if isinstance(timing, NotRun) else "too few samples")
        timed.append(TimedNetwork(one.name, one.num_parameters, p50, why))
    return sorted(timed, key=lambda one: one.p50_ms.value if one.p50_ms else float("inf"))


def _p50_ms(timing: Timing | NotRun | None) -> Estimate | None:
    if not isinstance(timing, Timing):
        return None
    return latency(timing.samples, 0.5, factor=timing.probe.factor_of_wait)


def _exported(name: str, data: DataSet, path: Path) -> TimedNetwork:
    try:
        network = network_for(NetworkSection(name=name), data)
        onnx_from_network(
            network, path, input_shape=data.image_shape, class_names=data.class_names, metadata={"of": "edc init"}
        )
    except (RecipeError, FailedError) as error:
        with suppress(OSError):
            path.unlink()
        return TimedNetwork(name, why_not=str(error))
    return TimedNetwork(name, count_parameters(network))


def chosen(timed: Sequence[TimedNetwork], budget: Budget) -> TimedNetwork:
    """Returns the slowest network that is surely within the budget: it makes the most of it.

    Raises:
        RequestError: none is, with what they take.
    """
    within = [one for one in timed if one.p50_ms and _surely(one.p50_ms) <= budget.ms]
    if not within:
        raise RequestError(
            f"--budget-ms: found {budget.ms:g}, no network that was timed surely takes so little: {_listed(timed)}; "
            f"{_restless(timed, budget)}allow more, or name a network with --student"
        )
    return within[-1]


def _surely(p50_ms: Estimate) -> float:
    """Returns the upper end of a median's interval: without one nothing is sure."""
    return float("inf") if p50_ms.high is None else p50_ms.high


def _restless(timed: Sequence[TimedNetwork], budget: Budget) -> str:
    """Returns what else to do if the median of a network is within the budget, and its interval is too wide to say."""
    for one in timed:
        if one.p50_ms and one.p50_ms.value <= budget.ms and (one.p50_ms.high or 0) > WIDE * one.p50_ms.value:
            return "the machine was too busy to be sure: call it again when nothing else runs, "
    return ""


def in_words(timed: Sequence[TimedNetwork], one: TimedNetwork, budget: Budget) -> str:
    """Returns why the student is this network."""
    threads = f"{budget.threads} thread{'s' * (budget.threads > 1)}"
    return (
        f"the student: the slowest that surely takes at most {budget.ms:g} ms for one image here ({budget.backend}, "
        f"{threads}, random weights): {_listed([one])}. "
        f"All that were timed: {_listed(timed)}{_perhaps(timed, one, budget)}"
    )


def _perhaps(timed: Sequence[TimedNetwork], chosen: TimedNetwork, budget: Budget) -> str:
    """Returns what may be within the budget too, and is slower and so larger than the chosen one."""
    slower = timed[timed.index(chosen) + 1 :]
    unsure = [one.name for one in slower if one.p50_ms and one.p50_ms.value <= budget.ms]
    if not unsure:
        return ""
    medians = f"The medians of {', '.join(unsure)} are within too, and their intervals are not"
    return f". {medians}: call it again on a quiet machine"


def _listed(timed: Sequence[TimedNetwork]) -> str:
    return ", ".join(f"{one.name} {time_in_words(one)}" for one in timed)


def time_in_words(one: TimedNetwork) -> str:
    """Returns the median with its interval."""
    if one.p50_ms is None:
        return f"does not run ({one.why_not})"
    low, high = one.p50_ms.low, one.p50_ms.high
    interval = "" if low is None or high is None else f" ({low:.3g} to {high:.3g})"
    return f"{one.p50_ms.value:.3g}{interval} ms"
