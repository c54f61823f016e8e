"""A row of the result: one subject on one backend at one batch size, with all that is known about it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edc import metrics
from edc.benchmark.backends.contract import Floats, WhatRan
from edc.benchmark.judge.statistics import (
    MEDIAN_SPREAD,
    RATIO_SPREAD,
    AccuracyComparison,
    Estimate,
    images_per_second,
    median_ratio,
    quantile,
)
from edc.benchmark.keys import row_key
from edc.benchmark.workers.pool import NotRun, RowSpec, Timing
from edc.benchmark.workers.protocol import LoadReport
from edc.benchmark.workers.timing import RowSamples
from edc.metrics import Quality
from edc.subject import Subject

__all__ = ["Against", "Basis", "Row", "RowQuality", "fastest", "latency", "plain", "quality_of", "row_of", "speedup"]


Basis = Literal["ensemble", "ensemble in torch", "teacher", "fp32"]
"""Why a row is compared with another: the ensemble on its own backend and precision, the one in torch, one teacher
alone on its own backend and precision, its own fp32 file."""

PERCENTS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class RowQuality:
    """Quality on all test images, as it is and with a temperature fitted for this file on validation images.

    `agreement` is the share of test images on which the most probable class is the ensemble's.
    """

    raw: Quality
    calibrated: Quality | None
    calibration_temperature: float | None
    agreement: float | None


@dataclass(frozen=True)
class Against:
    """A row compared with another one, named as `RowSpec.key`: how many times as fast, and how much more accurate."""

    baseline: str
    basis: Basis
    speedup: Estimate | None = None
    accuracy: AccuracyComparison | None = None
    accuracy_baseline: str | None = None
    """The baseline of `accuracy`: in fp32, because a baseline damaged by 8 bits would hide damage."""
    flops_ratio: float | None = None
    """FLOPs of the baseline over the row's: the speed-up to expect if nothing else costs time."""
    throughput_ratio: float | None = None
    """The row's images per second over the baseline's, from the same samples, outliers included."""
    doubts: tuple[str, ...] = ()
    """Why the speed-up may be wrong."""


@dataclass(frozen=True)
class Row:
    """What the tables show and bench.json holds. Figures that could not be taken are None."""

    subject: Subject
    backend: str
    batch: int
    what_ran: WhatRan | None = None
    p50_ms: Estimate | None = None
    p90_ms: Estimate | None = None
    p99_ms: Estimate | None = None
    images_per_second: float | None = None
    num_samples: int = 0
    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: int | None = None
    file_bytes: int | None = None
    quality: RowQuality | None = None
    against: tuple[Against, ...] = ()
    flags: tuple[str, ...] = ()
    reason_not_run: str | None = None
    artifact: str | None = None
    """The other artifact that the row is from, if it is not this one's."""
    probe_us: float | None = None
    """Median time of a fixed piece of work after each of the row's turns: the machine's own speed, see `probe`."""
    waited: float | None = None
    """The share of its turns that the row waited for a processor that others had; None: the system does not say."""
    round_medians_ms: dict[str, float] = field(default_factory=dict)
    """By the number of the round, so that rows can be paired."""
    latency_quantiles_ms: tuple[float, ...] | None = None
    """Of all samples, at 0 %, 1 %, ... 100 %."""
    parts_ms: dict[str, Estimate | None] = field(default_factory=dict)
    """Medians of the parts of an inference on a GPU: copy_in, compute, copy_out, enqueue. On a CPU: nothing."""

    @property
    def key(self) -> str:
        """What `RowSpec.key` is."""
        return row_key(self.subject.label, self.backend, self.artifact)

    @property
    def precision(self) -> str | None:
        return self.what_ran.precision if self.what_ran else None

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON values; tuples become lists, records objects.

        `identity` names the row's network for programs, `subject` for people.
        """
        document = dataclasses.asdict(self)
        document |= {"subject": self.subject.label, "identity": document["subject"], "precision": self.precision}
        return plain(document)  # type: ignore[no-any-return]


def row_of(
    spec: RowSpec,
    *,
    batch: int,
    load: LoadReport | NotRun,
    timing: Timing | NotRun | None = None,
    quality: RowQuality | NotRun | None = None,
    against: Sequence[Against] = (),
) -> Row:
    """Returns the row of `spec`; the first step that did not run gives the reason."""
    row = Row(subject=spec.subject, backend=spec.backend, batch=batch, against=tuple(against), artifact=spec.artifact)
    reasons = [step.reason for step in (load, timing, quality) if isinstance(step, NotRun)]
    if reasons:
        row = dataclasses.replace(row, reason_not_run=reasons[0])
    if isinstance(load, LoadReport):
        row = dataclasses.replace(
            row,
            what_ran=load.what_ran,
            load_ms=load.load_ms,
            first_inference_ms=load.first_inference_ms,
            file_bytes=load.file_bytes,
            flags=load.flags,
        )
    if isinstance(timing, Timing):
        factor = timing.probe.factor_of_wait
        p50, p90, p99 = (latency(timing.samples, q, factor=factor) for q in (0.5, 0.9, 0.99))
        row = dataclasses.replace(
            row,
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            images_per_second=images_per_second(timing.samples.all, batch=batch),
            num_samples=len(timing.samples.all),
            peak_memory_bytes=timing.peak_memory_bytes,
            flags=(*row.flags, *timing.flags),
            probe_us=None if timing.probe.median_ns is None else timing.probe.median_ns / 1e3,
            waited=timing.probe.waited_share,
            round_medians_ms={str(number): ns / 1e6 for number, ns in timing.samples.medians.items()},
            latency_quantiles_ms=_quantiles_ms(timing),
            parts_ms={name: latency(samples, 0.5) for name, samples in timing.parts.items()},
        )
    return dataclasses.replace(row, quality=quality) if isinstance(quality, RowQuality) else row


def quality_of(
    outputs: Floats,
    labels: NDArray[np.int64],
    *,
    validation_outputs: Floats | None = None,
    validation_labels: NDArray[np.int64] | None = None,
    ensemble_outputs: Floats | None = None,
) -> RowQuality:
    """Returns the quality of logits or log-probabilities (N, K); calibrated only if validation outputs are given."""
    log_probs = metrics.log_probs_from_logits(outputs.astype(np.float64))
    agreement = None
    if ensemble_outputs is not None:
        agreement = float(np.mean(outputs.argmax(1) == ensemble_outputs.argmax(1)))
    if validation_outputs is None or validation_labels is None:
        return RowQuality(metrics.quality(log_probs, labels), None, None, agreement)
    result = metrics.evaluate(
        log_probs,
        labels,
        validation_log_probs=metrics.log_probs_from_logits(validation_outputs.astype(np.float64)),
        validation_labels=validation_labels,
    )
    return RowQuality(result.raw, result.calibrated, result.calibration_temperature, agreement)


def fastest(timings: Mapping[RowSpec, Timing | NotRun]) -> RowSpec | None:
    """Returns the row with the least median: of several forms of an ensemble, the one it is fair to compare with."""
    medians = {
        spec: float(np.median(timing.samples.all))
        for spec, timing in timings.items()
        if isinstance(timing, Timing) and len(timing.samples.all)
    }
    return min(medians, key=lambda spec: medians[spec]) if medians else None


def speedup(baseline: Timing | NotRun, row: Timing | NotRun, *, seed: int) -> Estimate | None:
    """Returns how many times as fast as the baseline the row is, or None if one of them did not run."""
    if isinstance(baseline, NotRun) or isinstance(row, NotRun):
        return None
    ratio = median_ratio(baseline.samples, row.samples, seed=seed)
    if ratio is None:
        return None
    factor = baseline.probe.differs_from(row.probe)
    return ratio.widened(RATIO_SPREAD, confidence=0.975, factor=factor)  # each bound of a 95 % interval


def latency(samples: RowSamples, q: float, *, factor: float = 1.0) -> Estimate | None:
    """Returns a quantile in milliseconds, its bounds (99 % each) those of this bench and of the same bench again.

    Args:
        factor: by which waiting for a processor may have made it longer.
    """
    ns = quantile(samples, q, confidence=0.99)
    if ns is None:
        return None
    low, high = (None if bound is None else bound / 1e6 for bound in (ns.low, ns.high))
    return Estimate(ns.value / 1e6, low, high).widened(MEDIAN_SPREAD, confidence=0.99, factor=factor)


def _quantiles_ms(timing: Timing) -> tuple[float, ...] | None:
    samples = timing.samples.all
    return tuple((np.quantile(samples, PERCENTS) / 1e6).tolist()) if len(samples) else None


def plain(value: Any) -> Any:
    """Returns nested tuples as lists: what JSON would make of them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
