"""Softmax and sigmoid cross-entropy, the baselines of every other loss."""

import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID, SOFTMAX, Activation
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_inputs,
    one_hot_targets,
    reduce_losses,
)
from balms_det.losses.loss import Loss, State


def softmax_loss(
    logits: Tensor, gt_classes: Tensor, *, reduction: Reduction = "proposals"
) -> Tensor:
    """Softmax cross-entropy over K classes and background, Detectron2's default.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        reduction: "proposals" (sum over rows / R), "sum", or "none" for the (R,) row losses.
    """
    check_inputs(logits, gt_classes)
    return reduce_losses(
        F.cross_entropy(at_least_float32(logits), gt_classes, reduction="none"), reduction
    )


def sigmoid_loss(
    logits: Tensor, gt_classes: Tensor, *, reduction: Reduction = "proposals"
) -> Tensor:
    """Sigmoid cross-entropy: K independent binary problems; background rows are all negative.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        reduction: "proposals" (sum over rows and classes / R), "sum", or "none" for (R, K).
    """
    check_inputs(logits, gt_classes)
    logits = at_least_float32(logits)
    targets = one_hot_targets(gt_classes, logits)
    return reduce_losses(
        F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), reduction
    )


class Softmax(Loss):
    """:func:`softmax_loss` as an object."""

    name = "softmax"
    link = SOFTMAX

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return softmax_loss(logits, gt_classes, reduction="none")


class Sigmoid(Loss):
    """:func:`sigmoid_loss` as an object."""

    name = "sigmoid"
    link = SIGMOID

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return sigmoid_loss(logits, gt_classes, reduction="none")


# The loss of the raw logits, without margins and weights, for each link that has one. A deferred
# margin trains with it before it begins; the Meta Sampler and Reweighter use it on a meta batch.
PLAIN_LOSSES: dict[Activation, Loss] = {SOFTMAX: Softmax(), SIGMOID: Sigmoid()}
