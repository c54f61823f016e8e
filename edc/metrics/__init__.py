"""Metrics of predictions: accuracy, NLL, ECE, Brier, diversity, DEE, raw and calibrated."""

from edc.metrics.by_class import ByClass, by_class, in_words, majority_of
from edc.metrics.calibrate import fit_member_temperature, fit_temperature, selection_score
from edc.metrics.ensemble import ensemble_log_probs
from edc.metrics.metrics import (
    Labels,
    Metrics,
    Quality,
    accuracy,
    brier,
    calibrated_log_probs,
    dee,
    diversity,
    ece,
    ensemble_nll_by_size,
    evaluate,
    fit_temperatures,
    log_probs_from_logits,
    nll,
    quality,
)
from edc.metrics.reliability import ReliabilityBin, reliability_bins

__all__ = [
    "ByClass",
    "Labels",
    "Metrics",
    "Quality",
    "ReliabilityBin",
    "accuracy",
    "brier",
    "by_class",
    "calibrated_log_probs",
    "dee",
    "diversity",
    "ece",
    "ensemble_log_probs",
    "ensemble_nll_by_size",
    "evaluate",
    "fit_member_temperature",
    "fit_temperature",
    "fit_temperatures",
    "in_words",
    "log_probs_from_logits",
    "majority_of",
    "nll",
    "quality",
    "reliability_bins",
    "selection_score",
]
