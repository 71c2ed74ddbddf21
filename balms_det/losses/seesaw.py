"""Seesaw loss (arXiv:2008.10032)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SOFTMAX, SOFTMAX_WITH_OBJECTNESS, Activation
from balms_det.losses.elements import (
    Reduction,
    accumulated,
    at_least_float32,
    check_inputs,
    reduce_losses,
)
from balms_det.losses.loss import Loss, RunningState, State, TrainingClasses
from balms_det.losses.plain import softmax_loss
from balms_det.options import AT_LEAST_0, Options, Range, option


def seesaw_logits(
    logits: Tensor,
    gt_classes: Tensor,
    class_samples: Tensor,
    *,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    objectness: bool = True,
) -> Tensor:
    """Return the logits whose softmax is Seesaw's: z_j + log S_yj, in background rows z_j.

    Arguments as of :func:`seesaw_loss`.

    Returns:
        (R, K) with objectness, else (R, K + 1).
    """
    logits = at_least_float32(logits)
    num_classes = len(class_samples)
    columns = num_classes if objectness else num_classes + 1
    classes = logits[:, :columns]
    is_background = gt_classes == num_classes
    y = gt_classes.clamp(max=num_classes - 1)  # of background rows, whose factors are then dropped
    log_samples = class_samples.clamp(min=1).to(logits).log()
    log_probs = classes.detach().log_softmax(dim=1)[:, :num_classes]
    log_prob_y = log_probs.gather(1, y[:, None]).clamp(min=math.log(eps))
    mitigation = p * (log_samples - log_samples[y][:, None]).clamp(max=0)
    compensation = q * (log_probs - log_prob_y).clamp(min=0)
    # Both are zero at j = y.
    log_factors = (mitigation + compensation).masked_fill(is_background[:, None], 0)
    return classes + F.pad(log_factors, (0, columns - num_classes))


def seesaw_loss(
    logits: Tensor,
    gt_classes: Tensor,
    class_samples: Tensor,
    *,
    p: float = 0.8,
    q: float = 2.0,
    eps: float = 1e-2,
    objectness: bool = True,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Seesaw loss (arXiv:2008.10032).

        -log [ exp(z_y) / (exp(z_y) + sum_{j != y} S_yj exp(z_j)) ],  S_yj = M_yj C_yj
        mitigation M_yj = min(1, N_j / N_y)^p,  N the samples of a class seen so far
        compensation C_yj = max(1, sigma_j / sigma_y)^q,  sigma the softmax of z, without gradient

    With `objectness` the softmax is over the K classes and of foreground rows only, and two more
    logits (object, background) have a cross-entropy of their own on all rows; both are summed.
    Without, the background is one more class of the softmax, for and against which S = 1.

    Args:
        logits: (R, K + 2) with objectness, (R, K + 1) without, background last.
        gt_classes: (R,) in [0, K].
        class_samples: (K,) N, this batch included (authors' code); zeros are clamped to one.
        p, q: 0 or more; 0 turns the factor off.
        eps: in (0, 1], least divisor sigma_y.
        reduction: as in :func:`softmax_loss`.
    """
    check_inputs(logits, gt_classes, class_samples=(class_samples, -2 if objectness else -1))
    classes = seesaw_logits(
        logits, gt_classes, class_samples, p=p, q=q, eps=eps, objectness=objectness
    )
    if not objectness:
        return softmax_loss(classes, gt_classes, reduction=reduction)
    num_classes = len(class_samples)
    rows = F.cross_entropy(classes, gt_classes, reduction="none", ignore_index=num_classes)
    is_background = (gt_classes == num_classes).long()
    rows = rows + softmax_loss(logits[:, num_classes:], is_background, reduction="none")
    return reduce_losses(rows, reduction)


def seesaw_samples(logits: Tensor, gt_classes: Tensor, class_samples: Tensor) -> dict[str, Tensor]:
    """Return the (K,) number of samples of every class in one batch, for :func:`seesaw_loss`."""
    samples = class_samples.new_zeros(len(class_samples) + 1)
    samples.index_add_(0, gt_classes, samples.new_ones(len(gt_classes)))
    return {"class_samples": samples[:-1]}


@dataclass(frozen=True)
class SeesawOptions(Options):
    """Options of :class:`Seesaw`."""

    p: float = option(
        "SEESAW.P",
        0.8,
        "Exponent of the mitigation factor; 0 turns it off.",
        allowed=AT_LEAST_0,
        source="authors' code of arXiv:2008.10032",
    )
    q: float = option(
        "SEESAW.Q",
        2.0,
        "Exponent of the compensation factor; 0 turns it off.",
        allowed=AT_LEAST_0,
        source="authors' code of arXiv:2008.10032",
    )
    eps: float = option(
        "SEESAW.EPS",
        0.01,
        "Least probability of the true class that the compensation divides by.",
        allowed=Range(lambda eps: 0 < eps <= 1, "more than 0, at most 1"),
        source="authors' code of arXiv:2008.10032",
    )
    objectness: bool = option(
        "SEESAW.OBJECTNESS",
        True,
        "Two logits of their own tell objects from background, instead of one more class.",
        source="authors' code of arXiv:2008.10032",
    )


class Seesaw(Loss):
    """:func:`seesaw_loss` with the samples that each class has had so far."""

    name = "seesaw"
    options = SeesawOptions

    def __init__(
        self,
        num_classes: int,
        *,
        p: float = SeesawOptions.p,
        q: float = SeesawOptions.q,
        eps: float = SeesawOptions.eps,
        objectness: bool = SeesawOptions.objectness,
    ) -> None:
        """
        Args:
            num_classes: K.
            p, q, eps, objectness: as of :func:`seesaw_loss`.
        """
        options = self.options(p=p, q=q, eps=eps, objectness=objectness)
        super().__init__(self.activation_of(options, num_classes))
        self._options = options
        initial = {"class_samples": torch.zeros(num_classes, dtype=torch.int64)}
        self.state = RunningState(initial, self._observe, accumulated, "before")

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"num_classes": training.num_classes}

    @classmethod
    def activation_of(cls, options: Options, num_classes: int) -> Activation:
        assert isinstance(options, SeesawOptions)
        return SOFTMAX_WITH_OBJECTNESS if options.objectness else SOFTMAX

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return seesaw_loss(
            logits,
            gt_classes,
            state["class_samples"],
            p=self._options.p,
            q=self._options.q,
            eps=self._options.eps,
            objectness=self._options.objectness,
            reduction="none",
        )

    def _observe(
        self, logits: Tensor, gt_classes: Tensor, state: State, weights: Tensor | None
    ) -> dict[str, Tensor]:
        return seesaw_samples(logits, gt_classes, state["class_samples"])
