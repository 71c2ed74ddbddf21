"""Focal loss (arXiv:1708.02002)."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_inputs,
    one_hot_targets,
    reduce_losses,
)
from balms_det.losses.loss import Loss, State
from balms_det.options import AT_LEAST_0, FRACTION, Options, Range, option


def focal_loss(
    logits: Tensor,
    gt_classes: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Focal loss (arXiv:1708.02002, eq. 5): -alpha_t (1 - p_t)^gamma log p_t, over a sigmoid.

    p_t is the probability given to the truth of a (row, class), and alpha_t is alpha for the
    positive class and 1 - alpha for the negative ones.

    The paper divides by the number of foreground anchors; here, as in every loss of a second
    stage, the reduction "proposals" divides by the number of rows.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        gamma: 0 or more; 0 turns the focus off.
        alpha: in [0, 1]; negative for alpha_t = 1.
        reduction: as in :func:`sigmoid_loss`.
    """
    check_inputs(logits, gt_classes)
    logits = at_least_float32(logits)
    targets = one_hot_targets(gt_classes, logits)
    towards_truth = logits * (2 * targets - 1)
    # 1 - p_t as the exponential of its logarithm: no power of zero, whose slope may be infinite.
    focus = (gamma * F.logsigmoid(-towards_truth)).exp()
    elements = -focus * F.logsigmoid(towards_truth)
    if alpha >= 0:
        elements = elements * (alpha * targets + (1 - alpha) * (1 - targets))
    return reduce_losses(elements, reduction)


@dataclass(frozen=True)
class FocalOptions(Options):
    """Options of :class:`Focal`."""

    gamma: float = option(
        "FOCAL.GAMMA",
        2.0,
        "Exponent of the focus on badly classified elements; 0 turns the focus off.",
        allowed=AT_LEAST_0,
        source="arXiv:1708.02002, section 5.1",
    )
    alpha: float = option(
        "FOCAL.ALPHA",
        0.25,
        "Weight of positives against 1 - alpha of negatives; -1 leaves it out.",
        allowed=Range(
            lambda alpha: alpha == -1 or FRACTION.holds(alpha),
            f"{FRACTION.allowed}, or -1 to leave it out",
        ),
        source="arXiv:1708.02002, section 5.1",
    )


class Focal(Loss):
    """:func:`focal_loss` as an object."""

    name = "focal"
    options = FocalOptions
    link = SIGMOID

    def __init__(
        self, *, gamma: float = FocalOptions.gamma, alpha: float = FocalOptions.alpha
    ) -> None:
        """
        Args:
            gamma, alpha: as of :func:`focal_loss`.
        """
        super().__init__()
        self.options(gamma=gamma, alpha=alpha)
        self._gamma, self._alpha = gamma, alpha

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return focal_loss(
            logits, gt_classes, gamma=self._gamma, alpha=self._alpha, reduction="none"
        )
