"""Corrections of logits, which need the classifier or its statistics.

Names and shapes as in the package.
"""

from typing import Any

import torch
from torch import Tensor, nn

from balms_det.calibration.logit_stats import LogitStats
from balms_det.calibration.options import CalibrationOptions
from balms_det.runtime.errors import InputError


def tau_normalized_logits(logits: Tensor, weight: Tensor, bias: Tensor, tau: float) -> Tensor:
    """Return the logits of a linear classifier whose rows are w_j / ||w_j||^tau (arXiv:1910.09217,
    eq. 3).

    The paper drops the bias, which for a balanced test set of images without background costs
    nothing. A detector's bias says how rare each class is among proposals, so it stays as it is,
    and the background's row, which is not for this function to see, does so too.

    Args:
        logits: (R, K) of the foreground classes, as the classifier gave them.
        weight: (K, D), its rows w_j; one of zeros stays.
        bias: (K,).
        tau: 0 or more; the paper selects it in [0, 1] on held-out data.
    """
    norms = weight.norm(dim=1)
    norms = torch.where(norms > 0, norms, 1)
    return (logits - bias) * norms**-tau + bias


def normalized_logits(
    logits: Tensor, means: Tensor, deviations: Tensor, strength: float = 1.0
) -> Tensor:
    """Return LogN's logits (arXiv:2203.17020; code: MCG-NJU/LogN).

        z'_j = (z_j - s (mu_j - min_i mu_i)) / sigma_j^s

    mu_j and sigma_j are mean and deviation of the logit over training proposals: a frequent class
    has a high mean. The background's logit, which is not for this function to see, stays as it is.
    s = 1 is the paper's. The authors take moving averages over batches of one epoch in which the
    detector trains on; here they are exact, of the detector as it is.

    Args:
        logits: (R, K) of the foreground classes.
        means: (K,) mu.
        deviations: (K,) sigma, positive.
        strength: s, 0 or more; 0 changes nothing.
    """
    shifts = strength * (means - means.min())
    return (logits - shifts.to(logits)) / (deviations**strength).to(logits)


class TauNormalisation(nn.Module):
    """:func:`tau_normalized_logits` with the classifier at hand."""

    def __init__(self, tau: float) -> None:
        """
        Args:
            tau: 0 or more.
        """
        super().__init__()
        self._tau = tau

    def forward(self, logits: Tensor, classifier: nn.Linear) -> Tensor:
        """Return (R, K) foreground logits, corrected.

        Args:
            logits: (R, K), the first columns of what `classifier` gave.
            classifier: of at least K outputs, the foreground classes first.
        """
        num_classes = logits.shape[1]
        weight, bias = classifier.weight[:num_classes], classifier.bias[:num_classes]
        return tau_normalized_logits(logits, weight, bias, self._tau)


class LogitNormalisation(nn.Module):
    """:func:`normalized_logits` with the statistics of a detector."""

    means: Tensor
    deviations: Tensor

    def __init__(self, stats: LogitStats, strength: float) -> None:
        """
        Args:
            stats: of the detector that gives the logits.
            strength: 0 or more.
        """
        super().__init__()
        self.register_buffer("means", stats.means, persistent=False)
        self.register_buffer("deviations", stats.deviations, persistent=False)
        self._strength = strength

    def forward(self, logits: Tensor, classifier: nn.Linear) -> Tensor:
        """Return (R, K) foreground logits, corrected; `classifier` is not asked."""
        return normalized_logits(logits, self.means, self.deviations, self._strength)


def build_logit_calibration(cfg: Any) -> TauNormalisation | LogitNormalisation | None:
    """Return the calibration of logits that a configuration describes, or None.

    Raises:
        InputError: LogN has no statistics, those of other classes, or a Cascade R-CNN.
    """
    options = CalibrationOptions.from_node(cfg.MODEL.LONG_TAIL)
    if options.strength == 0:
        return None
    if options.name == "tau_norm":
        return TauNormalisation(options.strength)
    if options.name != "logn":
        return None
    key = "MODEL.LONG_TAIL.CALIBRATION"
    if cfg.MODEL.ROI_HEADS.NAME == "LongTailCascadeROIHeads":
        raise InputError(
            f"{key}.NAME is 'logn', whose statistics are those of one classifier, but "
            "MODEL.ROI_HEADS.NAME is 'LongTailCascadeROIHeads'; choose another calibration"
        )
    if not options.logit_stats:
        raise InputError(
            f"{key}.NAME is 'logn', but {key}.LOGIT_STATS is ''; set it to the file that "
            "`balms-det logit-stats` writes for this detector"
        )
    stats = LogitStats.load(options.logit_stats)
    if len(stats.means) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"{options.logit_stats}: the logit statistics are of {len(stats.means)} classes, but "
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}; collect them for "
            "this detector with `balms-det logit-stats`"
        )
    return LogitNormalisation(stats, options.strength)
