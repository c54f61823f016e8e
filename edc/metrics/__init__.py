"""What predictions are worth: accuracy, NLL, ECE, Brier, diversity, DEE, raw and calibrated."""

from edc.metrics.calibrate import fit_temperature
from edc.metrics.metrics import (
    Labels,
    Metrics,
    Quality,
    accuracy,
    brier,
    dee,
    diversity,
    ece,
    ensemble_log_probs,
    ensemble_nll_by_size,
    evaluate,
    log_probs_from_logits,
    nll,
    quality,
)

__all__ = [
    "Labels",
    "Metrics",
    "Quality",
    "accuracy",
    "brier",
    "dee",
    "diversity",
    "ece",
    "ensemble_log_probs",
    "ensemble_nll_by_size",
    "evaluate",
    "fit_temperature",
    "log_probs_from_logits",
    "nll",
    "quality",
]
