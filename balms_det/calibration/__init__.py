"""Correcting a trained classifier for its class prior at test time, without training it again.

Shapes and names used throughout:
    R: RoIs. K: foreground classes.
    probs: (R, K + 1), background last. They are *exclusive* where classes and background compete
        (softmax, whose rows sum to one), and otherwise independent of one another (sigmoid, whose
        background column means nothing).
    n_j: training count of class j, zeros clamped to one;  n = sum_j n_j;  k = K.
    D_j: box-counting dimension of class j's boxes, 1 or more.
    strength: tau or gamma, 0 or more. Zero leaves everything exactly as it is.

Every correction keeps the order within a class where probabilities are independent, so that it
changes which detections survive the cap per image and the score threshold, and nothing else.
"""

from balms_det.calibration.calibration import (
    Calibration,
    build_calibration,
    calibration_from_stats,
    reweight_exclusive,
    reweight_odds,
)
from balms_det.calibration.logit_stats import LogitMoments, LogitStats
from balms_det.calibration.logits import (
    LogitNormalisation,
    TauNormalisation,
    build_logit_calibration,
    normalized_logits,
    tau_normalized_logits,
)
from balms_det.calibration.options import CALIBRATIONS, CalibrationOptions
from balms_det.calibration.weights import (
    fracal_weights,
    logit_adjustment_weights,
    norcal_weights,
)

__all__ = [
    "CALIBRATIONS",
    "Calibration",
    "CalibrationOptions",
    "LogitMoments",
    "LogitNormalisation",
    "LogitStats",
    "TauNormalisation",
    "build_calibration",
    "build_logit_calibration",
    "calibration_from_stats",
    "fracal_weights",
    "logit_adjustment_weights",
    "norcal_weights",
    "normalized_logits",
    "reweight_exclusive",
    "reweight_odds",
    "tau_normalized_logits",
]
