"""A detector's criterion for a classifier: the same losses, of K classes and no background.

A softmax loss of a detector has one more logit, the background's. A classifier is a detector that
never sees background: its background logit is minus infinity, which is a probability of exactly
zero, no gradient, and the softmax over the K classes that remain. So no loss is written twice.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.losses.criterion import build_criterion
from balms_det.losses.plain import PLAIN_LOSSES
from balms_det.losses.weights import Iteration
from balms_det.runtime.errors import InputError


class ClassificationCriterion(nn.Module):
    """The loss of a configuration: ``criterion(logits, labels)``; see the module."""

    def __init__(self, long_tail: Any, stats: ClassStats, iteration: Iteration) -> None:
        """
        Args:
            long_tail: a MODEL.LONG_TAIL node.
            stats: of the training set.
            iteration: that training has come to.

        Raises:
            InputError: the loss is unknown, or its logits mean more than K classes and background.
        """
        super().__init__()
        self.criterion = build_criterion(long_tail, stats.num_classes, stats, iteration)
        self._num_classes = stats.num_classes
        self._activation = self.criterion.activation
        self._num_background = self._activation.num_logits(stats.num_classes) - stats.num_classes
        has_none = self._num_background == 0
        if not (has_none or (self._num_background == 1 and self._activation.exclusive)):
            raise InputError(
                f"MODEL.LONG_TAIL.LOSS.NAME is {long_tail.LOSS.NAME!r}, which tells objects from "
                "background by logits of its own, and a classifier has no background; choose "
                "another loss, or for 'seesaw' set MODEL.LONG_TAIL.LOSS.SEESAW.OBJECTNESS to False"
            )

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return scalar loss, a mean over the batch, of (N, K) logits against (N,) labels in
        [0, K)."""
        loss: Tensor = self.criterion(self._with_background(logits), labels)
        return loss

    def plain_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the same without margins, of losses that the Meta Sampler goes with."""
        loss: Tensor = PLAIN_LOSSES[self._activation](logits, labels)
        return loss

    def probs(self, logits: Tensor) -> Tensor:
        """Return (N, K) probabilities of the classes; those of a sigmoid need not sum to one."""
        probs = self._activation.probs(self._with_background(logits))
        return probs[:, : self._num_classes]

    def initial_bias(self, prior_prob: float) -> Tensor:
        """Return (K,) bias of the classifier before training."""
        return self._activation.initial_bias(self._num_classes, prior_prob)[: self._num_classes]

    def _with_background(self, logits: Tensor) -> Tensor:
        return F.pad(logits, (0, self._num_background), value=-math.inf)
