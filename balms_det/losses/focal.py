"""Focal loss (arXiv:1708.02002)."""

import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.elements import Reduction, at_least_float32, one_hot_targets, reduce_losses


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
        gamma: 0 or more; 0 is no focus.
        alpha: in [0, 1]; negative for alpha_t = 1.
        reduction: as in :func:`sigmoid_loss`.
    """
    logits = at_least_float32(logits)
    targets = one_hot_targets(gt_classes, logits)
    towards_truth = logits * (2 * targets - 1)
    # 1 - p_t as the exponential of its logarithm: no power of zero, whose slope may be infinite.
    focus = (gamma * F.logsigmoid(-towards_truth)).exp()
    elements = -focus * F.logsigmoid(towards_truth)
    if alpha >= 0:
        elements = elements * (alpha * targets + (1 - alpha) * (1 - targets))
    return reduce_losses(elements, reduction)
