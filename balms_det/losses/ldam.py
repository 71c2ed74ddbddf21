"""LDAM (arXiv:1906.07413)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.elements import Reduction, at_least_float32
from balms_det.losses.plain import softmax_loss


def ldam_margins(class_counts: Tensor, *, max_margin: float = 0.5) -> Tensor:
    """The margins C / n_j^(1/4) of LDAM (arXiv:1906.07413), the largest `max_margin`.

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.
        max_margin: 0 or more. The authors' code: 0.5.

    Returns:
        (K + 1,) float64, zero for the background, which the paper does not have.
    """
    margins = class_counts.to(torch.float64).clamp(min=1) ** -0.25
    return F.pad(max_margin * margins / margins.max(), (0, 1))


def ldam_loss(
    logits: Tensor,
    gt_classes: Tensor,
    margins: Tensor,
    *,
    scale: float = 1.0,
    reduction: Reduction = "proposals",
) -> Tensor:
    """LDAM: softmax cross-entropy with the true class's logit a margin short (arXiv:1906.07413).

        -log [ exp(s (z_y - D_y)) / (exp(s (z_y - D_y)) + sum_{j != y} exp(s z_j)) ]

    Args:
        logits: (R, K + 1), the scaled s z. In the authors' code z is a cosine and s = 30.
        gt_classes: (R,) in [0, K].
        margins: (K + 1,) D, from :func:`ldam_margins`.
        scale: s, positive; turns margins of z into margins of the logits.
        reduction: as in :func:`softmax_loss`.
    """
    logits = at_least_float32(logits)
    short = F.one_hot(gt_classes, logits.shape[1]) * (scale * margins.to(logits))
    return softmax_loss(logits - short, gt_classes, reduction=reduction)
