"""Equalization Loss on a sigmoid, on a softmax, and version 2 (arXiv:2003.05176, 2012.08548)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID, SIGMOID_WITH_BACKGROUND, SOFTMAX
from balms_det.losses.elements import (
    Reduction,
    accumulated,
    at_least_float32,
    check_inputs,
    one_hot_targets,
    reduce_losses,
)
from balms_det.losses.loss import Loss, RunningState, State, TrainingClasses
from balms_det.losses.plain import softmax_loss
from balms_det.losses.tail import TailLoss, TailOptions
from balms_det.options import ABOVE_0, AT_LEAST_0, FRACTION, Options, option


def equalization_loss(
    logits: Tensor, gt_classes: Tensor, is_tail: Tensor, *, reduction: Reduction = "proposals"
) -> Tensor:
    """Equalization Loss (arXiv:2003.05176): no discouragement from other classes' RoIs.

    The element of a class j is dropped where j is a tail class, the row is foreground, and j is
    not its class. Background rows keep all their elements.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        is_tail: (K,) bool; in the paper the classes with an image frequency below lambda.
        reduction: as in :func:`sigmoid_loss`.
    """
    check_inputs(logits, gt_classes, is_tail=(is_tail, 0))
    logits = at_least_float32(logits)
    targets = one_hot_targets(gt_classes, logits)
    is_foreground = gt_classes < logits.shape[1]
    dropped = is_foreground[:, None] & is_tail & (targets == 0)
    elements = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return reduce_losses(elements.masked_fill(dropped, 0), reduction)


def softmax_equalization_loss(
    logits: Tensor,
    gt_classes: Tensor,
    is_tail: Tensor,
    *,
    gamma: float,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Softmax Equalization Loss (arXiv:2003.05176).

        -log [ exp(z_y) / sum_k w_k exp(z_k) ],  w_k = 1 - beta T(k) [k != y]

    beta is drawn anew for every row and class, one with the probability gamma and zero otherwise;
    T tells a tail class. As in the sigmoid form, and because the paper's softmax form knows no
    background, w_k = 1 for the background and in its rows.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        is_tail: (K,) bool.
        gamma: in [0, 1].
        reduction: as in :func:`softmax_loss`.
    """
    check_inputs(logits, gt_classes, is_tail=(is_tail, -1))
    logits = at_least_float32(logits)
    num_classes = logits.shape[1] - 1
    beta = torch.rand(len(logits), num_classes, device=logits.device) < gamma
    is_other = one_hot_targets(gt_classes, logits[:, :-1]) == 0
    is_foreground = gt_classes < num_classes
    dropped = F.pad(beta & is_tail & is_other & is_foreground[:, None], (0, 1), value=False)
    return softmax_loss(logits.masked_fill(dropped, -math.inf), gt_classes, reduction=reduction)


def eqlv2_loss(
    logits: Tensor,
    gt_classes: Tensor,
    pos_grads: Tensor,
    neg_grads: Tensor,
    *,
    gamma: float = 12.0,
    mu: float = 0.8,
    alpha: float = 4.0,
    targets: Tensor | None = None,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Equalization Loss v2 (arXiv:2012.08548): sigmoid cross-entropy, its two sides
    weighted by the gradients that each class has received from them so far.

        g_j = pos_grads_j / neg_grads_j,  f(g) = 1 / (1 + exp(-gamma (g - mu)))
        weight of a negative f(g_j), of a positive 1 + alpha (1 - f(g_j))

    The background has a logit of its own (the paper's objectness) with weights of one. Before any
    gradient has been seen g_j is 100, as in the authors' code.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        pos_grads, neg_grads: (K,) accumulated by :func:`eqlv2_gradients`.
        gamma: positive, steepness of f.
        mu: where f is one half.
        alpha: 0 or more.
        targets: (R, K + 1) in [0, 1], in place of the one-hot ones of `gt_classes`.
        reduction: as in :func:`sigmoid_loss`, for (R, K + 1).
    """
    check_inputs(logits, gt_classes, pos_grads=(pos_grads, -1), neg_grads=(neg_grads, -1))
    logits = at_least_float32(logits)
    if targets is None:
        targets = F.one_hot(gt_classes, logits.shape[1]).to(logits)
    elements = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    weights = _eqlv2_weights(targets, pos_grads, neg_grads, gamma, mu, alpha)
    return reduce_losses(elements * weights, reduction)


def eqlv2_gradients(
    logits: Tensor,
    gt_classes: Tensor,
    pos_grads: Tensor,
    neg_grads: Tensor,
    *,
    weights: Tensor | None = None,
    gamma: float = 12.0,
    mu: float = 0.8,
    alpha: float = 4.0,
    targets: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return what one batch adds to the accumulators of :func:`eqlv2_loss`.

    Args:
        weights: further factors on the elements of the loss, broadcast to (R, K + 1), which the
            gradients then have too.
        targets: as of :func:`eqlv2_loss`.

    Returns:
        (K,) sums over the rows of the absolute gradients at positive and at negative logits.
    """
    logits = at_least_float32(logits)
    if targets is None:
        targets = F.one_hot(gt_classes, logits.shape[1]).to(logits)
    grads = (logits.sigmoid() - targets).abs()
    grads = grads * _eqlv2_weights(targets, pos_grads, neg_grads, gamma, mu, alpha)
    if weights is not None:
        grads = grads * weights
    return {
        "pos_grads": (grads * targets).sum(0)[:-1].to(pos_grads),
        "neg_grads": (grads * (1 - targets)).sum(0)[:-1].to(neg_grads),
    }


def _eqlv2_weights(
    targets: Tensor, pos_grads: Tensor, neg_grads: Tensor, gamma: float, mu: float, alpha: float
) -> Tensor:
    """Return (R, K + 1) weights of the elements."""
    ratios = torch.where(neg_grads > 0, pos_grads / (neg_grads + 1e-10), 100.0)
    neg_weights = F.pad((gamma * (ratios - mu)).sigmoid(), (0, 1), value=1).to(targets)
    pos_weights = 1 + alpha * (1 - neg_weights)
    return pos_weights * targets + neg_weights * (1 - targets)


class Equalization(TailLoss):
    """:func:`equalization_loss` with the tail classes of a training set."""

    name = "eql"
    link = SIGMOID

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return equalization_loss(logits, gt_classes, self.is_tail, reduction="none")


@dataclass(frozen=True)
class SoftmaxEqualizationOptions(TailOptions):
    """Options of :class:`SoftmaxEqualization`."""

    gamma: float = option(
        "EQL.GAMMA",
        0.95,
        "Probability that a tail class is spared another class's example (softmax form).",
        allowed=FRACTION,
        source="arXiv:2003.05176, on CIFAR-100-LT",
    )


class SoftmaxEqualization(TailLoss):
    """:func:`softmax_equalization_loss` with the tail classes of a training set."""

    name = "softmax_eql"
    options = SoftmaxEqualizationOptions
    link = SOFTMAX

    def __init__(
        self,
        image_freq: Tensor,
        *,
        tail_threshold: float = TailOptions.tail_threshold,
        gamma: float = SoftmaxEqualizationOptions.gamma,
    ) -> None:
        """
        Args:
            image_freq, tail_threshold: as of :class:`TailLoss`.
            gamma: as of :func:`softmax_equalization_loss`.
        """
        super().__init__(image_freq, tail_threshold=tail_threshold)
        self.options(gamma=gamma)
        self._gamma = gamma

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return softmax_equalization_loss(
            logits, gt_classes, self.is_tail, gamma=self._gamma, reduction="none"
        )


@dataclass(frozen=True)
class EQLv2Options(Options):
    """Options of :class:`EQLv2`."""

    gamma: float = option(
        "EQLV2.GAMMA",
        12.0,
        "Steepness of the sigmoid that weighs negatives by the ratio of gradients.",
        allowed=ABOVE_0,
        source="arXiv:2012.08548",
    )
    mu: float = option(
        "EQLV2.MU",
        0.8,
        "Ratio of gradients at which the weight of negatives is one half.",
        allowed=ABOVE_0,
        source="arXiv:2012.08548",
    )
    alpha: float = option(
        "EQLV2.ALPHA",
        4.0,
        "Strengthens positives.",
        allowed=AT_LEAST_0,
        source="arXiv:2012.08548",
    )


class EQLv2(Loss):
    """:func:`eqlv2_loss` with the gradients that each class has received so far."""

    name = "eqlv2"
    options = EQLv2Options
    link = SIGMOID_WITH_BACKGROUND

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = EQLv2Options.gamma,
        mu: float = EQLv2Options.mu,
        alpha: float = EQLv2Options.alpha,
    ) -> None:
        """
        Args:
            num_classes: K.
            gamma, mu, alpha: as of :func:`eqlv2_loss`.
        """
        super().__init__()
        self._options = self.options(gamma=gamma, mu=mu, alpha=alpha)
        # Double precision: in single, the sums of a long training would swallow what is added.
        zeros = torch.zeros(num_classes, dtype=torch.float64)
        initial = {"pos_grads": zeros, "neg_grads": zeros.clone()}
        self.state = RunningState(initial, self._observe, accumulated, "after")

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"num_classes": training.num_classes}

    def targets(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        """Return the (R, K + 1) targets of the loss and its gradients."""
        return F.one_hot(gt_classes, logits.shape[1]).to(at_least_float32(logits))

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return eqlv2_loss(
            logits,
            gt_classes,
            state["pos_grads"],
            state["neg_grads"],
            gamma=self._options.gamma,
            mu=self._options.mu,
            alpha=self._options.alpha,
            targets=self.targets(logits, gt_classes, state),
            reduction="none",
        )

    def _observe(
        self, logits: Tensor, gt_classes: Tensor, state: State, weights: Tensor | None
    ) -> dict[str, Tensor]:
        return eqlv2_gradients(
            logits,
            gt_classes,
            state["pos_grads"],
            state["neg_grads"],
            weights=weights,
            gamma=self._options.gamma,
            mu=self._options.mu,
            alpha=self._options.alpha,
            targets=self.targets(logits, gt_classes, state),
        )
