"""DropLoss (arXiv:2104.06402)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID
from balms_det.losses.elements import Reduction, check_inputs, one_hot_targets, reduce_losses
from balms_det.losses.loss import State
from balms_det.losses.plain import sigmoid_loss
from balms_det.losses.tail import TailLoss


def drop_loss(
    logits: Tensor,
    gt_classes: Tensor,
    is_tail: Tensor,
    *,
    draws: Tensor | None = None,
    reduction: Reduction = "proposals",
) -> Tensor:
    """DropLoss (arXiv:2104.06402; code: timy90022/DropLoss): sigmoid cross-entropy, less
    discouragement of tail classes.

    The negative elements of tail classes are dropped, in foreground rows all of them and in
    background rows each with the chance 1 - (tail rows / foreground rows) of this batch: the fewer
    of its objects encourage the tail, the less its background discourages it. Without a foreground
    row nothing is dropped.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        is_tail: (K,) bool; with the authors the classes with an image frequency below lambda.
        draws: (R, K); of background rows, draws of at least tail rows / foreground rows drop.
        reduction: as in :func:`~balms_det.losses.sigmoid_loss`.
    """
    check_inputs(logits, gt_classes, is_tail=(is_tail, 0))
    elements = sigmoid_loss(logits, gt_classes, reduction="none")
    dropped = dropped_by_drop_loss(elements, gt_classes, is_tail, draws)
    return reduce_losses(elements.masked_fill(dropped, 0), reduction)


def dropped_by_drop_loss(
    elements: Tensor, gt_classes: Tensor, is_tail: Tensor, draws: Tensor | None
) -> Tensor:
    """Return (R, K) bool, the elements of the loss that DropLoss leaves out."""
    if draws is None:
        draws = torch.rand(elements.shape, device=elements.device)
    is_foreground = gt_classes < elements.shape[1]
    num_foreground = is_foreground.sum()
    num_tail = F.pad(is_tail, (0, 1), value=False)[gt_classes].sum()
    kept = torch.where(num_foreground > 0, num_tail / num_foreground.clamp(min=1), 1)
    is_negative = one_hot_targets(gt_classes, elements) == 0
    return is_tail & is_negative & (is_foreground[:, None] | (draws >= kept))


class DropLoss(TailLoss):
    """:func:`drop_loss` with the tail classes of a training set."""

    name = "droploss"
    link = SIGMOID

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return drop_loss(logits, gt_classes, self.is_tail, reduction="none")
