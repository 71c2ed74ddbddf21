"""Correcting a trained classifier for its class prior at test time, without training it again.

Shapes and names used throughout:
    R: RoIs. K: foreground classes.
    probs: (R, K + 1), background last. They are *exclusive* where classes and background compete
        (softmax, whose rows sum to one), and otherwise independent of one another (sigmoid, whose
        background column means nothing).
    n_j: training count of class j, zeros clamped to one;  n = sum_j n_j;  k = K.
    strength: tau or gamma, 0 or more. Zero leaves everything exactly as it is.

Every correction keeps the order within a class where probabilities are independent, so that it
changes which detections survive the cap per image and the score threshold, and nothing else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats, missing_class_stats
from balms_det.options import AT_LEAST_0, Choices, Options, option

# Whether each needs class counts.
CALIBRATIONS = {"none": False, "logit_adjustment": True, "norcal": True, "tau_norm": False}


@dataclass(frozen=True)
class CalibrationOptions(Options):
    """Correction of the class prior at test time, without training, under MODEL.LONG_TAIL."""

    name: str = option(
        "CALIBRATION.NAME",
        "none",
        '"none", "logit_adjustment" (arXiv:2007.07314), "norcal" (arXiv:2107.02170, whose authors '
        'count images: COUNT_BY "images") or "tau_norm" (arXiv:1910.09217).',
        allowed=Choices(CALIBRATIONS),
    )
    strength: float = option(
        "CALIBRATION.STRENGTH",
        1.0,
        "tau of logit adjustment (paper: 1), gamma of NorCal or tau of tau-normalisation (papers: "
        "tuned on held-out data, as `balms-det calibrate` does). 0 changes nothing.",
        allowed=AT_LEAST_0,
    )


def logit_adjustment_weights(class_counts: Tensor, tau: float) -> Tensor:
    """Return factors on the odds of each class: (n_j k / n)^-tau (arXiv:2007.07314, eq. 9).

    The paper subtracts tau log pi_j from each logit, pi_j = n_j / n. Here it is
    tau log(pi_j / (1/k)), which differs by one constant: a class of mean count stays where it is,
    and so does a softmax's background, whose frequency the sampler of proposals sets and not the
    data set. tau = 1 is the paper's.

    Args:
        class_counts: (K,) n_j.
        tau: 0 or more.

    Returns:
        (K,) float64.
    """
    counts = class_counts.to(torch.float64).clamp(min=1)
    return (counts / counts.mean()) ** -tau


def norcal_weights(class_counts: Tensor, gamma: float) -> Tensor:
    """Return factors on the probability of each class: n_j^-gamma (NorCal, arXiv:2107.02170).

    Args:
        class_counts: (K,) n_j; the authors count images.
        gamma: 0 or more; the authors tune it on held-out data.

    Returns:
        (K,) float64.
    """
    return class_counts.to(torch.float64).clamp(min=1) ** -gamma


def reweight_exclusive(probs: Tensor, weights: Tensor) -> Tensor:
    """Return p_j w_j / (sum_i p_i w_i + p_background): the background is not weighted.

    For a softmax this is the softmax of the logits plus log w_j.

    Args:
        probs: (R, K + 1), rows summing to one.
        weights: (K,), positive.

    Returns:
        (R, K + 1), rows summing to one.
    """
    weighted = torch.cat([probs[:, :-1] * weights.to(probs), probs[:, -1:]], dim=1)
    return weighted / weighted.sum(dim=1, keepdim=True)


def reweight_odds(probs: Tensor, weights: Tensor) -> Tensor:
    """Return p w / (p w + 1 - p): a shift of each sigmoid's logit by log w.

    Args:
        probs: any shape.
        weights: positive, of a shape that broadcasts with it.
    """
    weighted = probs * weights.to(probs)
    return weighted / (weighted + (1 - probs))


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


class Calibration(nn.Module):
    """Logit adjustment or NorCal with given class counts: ``calibration(probs) -> probs``."""

    weights: Tensor

    def __init__(
        self, name: str, strength: float, class_counts: Tensor, *, exclusive: bool
    ) -> None:
        """
        Args:
            name: "logit_adjustment" or "norcal".
            strength: tau or gamma, 0 or more.
            class_counts: (K,) of the training set.
            exclusive: whether rows of probabilities sum to one.
        """
        super().__init__()
        weights_of = {"logit_adjustment": logit_adjustment_weights, "norcal": norcal_weights}[name]
        weights = weights_of(class_counts, strength).float()
        self.register_buffer("weights", weights, persistent=False)
        self._exclusive = exclusive
        # NorCal multiplies sigmoids as they are: there is no background to normalise them with.
        self._multiplies = name == "norcal" and not exclusive
        self._is_identity = strength == 0

    def forward(self, probs: Tensor) -> Tensor:
        """Return (R, K + 1) probabilities, corrected."""
        if self._is_identity:
            return probs
        if self._exclusive:
            return reweight_exclusive(probs, self.weights)
        corrected = self._independent(probs[:, :-1], self.weights)
        return torch.cat([corrected, probs[:, -1:]], dim=1)

    def rescore(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Correct the scores of single detections, each of one class.

        Exact for independent probabilities. For exclusive ones the rest of the RoI's row would be
        needed; all of it is taken for background, which is exact where there are two classes, one
        of them the background.

        Args:
            scores: (D,).
            classes: (D,) int64 in [0, K).
        """
        if self._is_identity:
            return scores
        return self._independent(scores, self.weights[classes])

    def _independent(self, probs: Tensor, weights: Tensor) -> Tensor:
        if self._multiplies:
            return probs * weights
        return reweight_odds(probs, weights)


def build_calibration(
    long_tail: Any, stats: ClassStats | None, *, exclusive: bool
) -> Calibration | None:
    """Return the calibration of probabilities that a MODEL.LONG_TAIL node describes, or None.

    Args:
        long_tail: ``cfg.MODEL.LONG_TAIL``.
        stats: of the training set.
        exclusive: whether rows of probabilities sum to one.

    Raises:
        InputError: the method needs class statistics and there are none.
    """
    options = CalibrationOptions.from_node(long_tail)
    if not CALIBRATIONS[options.name]:
        return None
    if stats is None:
        raise missing_class_stats(f"MODEL.LONG_TAIL.CALIBRATION.NAME {options.name!r}")
    counts = torch.tensor(stats.counts(long_tail.COUNT_BY))
    return Calibration(options.name, options.strength, counts, exclusive=exclusive)
