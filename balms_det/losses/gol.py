"""Gumbel Optimised Loss (arXiv:2207.09972)."""

import torch
from torch import Tensor

from balms_det.losses.activations import GUMBEL
from balms_det.losses.droploss import dropped_by_drop_loss
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_inputs,
    one_hot_targets,
    reduce_losses,
)
from balms_det.losses.loss import State
from balms_det.losses.tail import TailLoss

GUMBEL_LOGIT_RANGE = (-4.0, 10.0)


def gumbel_optimised_loss(
    logits: Tensor,
    gt_classes: Tensor,
    is_tail: Tensor,
    *,
    draws: Tensor | None = None,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Gumbel Optimised Loss (GOL, arXiv:2207.09972; code: kostas1515/GOL): DropLoss with the
    probabilities of a Gumbel distribution in place of the sigmoid's.

        BCE(p_j, y_j), p_j = exp(-exp(-z_j)), elements dropped as in :func:`drop_loss`

    In training, as in the authors' code, z is clamped to [-4, 10], beyond which it has no gradient.
    The balancing of the released GOL models is DropLoss's. The gradient is that of the formula. The
    authors' goes through PyTorch's cross-entropy of probabilities, which divides by p (1 - p) or
    1e-12, whichever is larger: below z = -3.3 a positive element has almost no gradient there.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        is_tail, draws: as in :func:`drop_loss`. Without a tail it is the cross-entropy alone.
        reduction: as in :func:`~balms_det.losses.sigmoid_loss`.
    """
    check_inputs(logits, gt_classes, is_tail=(is_tail, 0))
    logits = at_least_float32(logits).clamp(*GUMBEL_LOGIT_RANGE)
    minus_log_p = (-logits).exp()
    minus_log_not_p = -(-torch.expm1(-minus_log_p)).log()
    is_positive = one_hot_targets(gt_classes, logits) > 0
    elements = torch.where(is_positive, minus_log_p, minus_log_not_p)
    dropped = dropped_by_drop_loss(elements, gt_classes, is_tail, draws)
    return reduce_losses(elements.masked_fill(dropped, 0), reduction)


class GOL(TailLoss):
    """:func:`gumbel_optimised_loss` with the tail classes of a training set."""

    name = "gol"
    link = GUMBEL

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return gumbel_optimised_loss(logits, gt_classes, self.is_tail, reduction="none")
