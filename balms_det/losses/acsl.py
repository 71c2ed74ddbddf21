"""Adaptive Class Suppression Loss (arXiv:2104.00885)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID_BESIDE_BACKGROUND
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_inputs,
    ranks_within,
    reduce_losses,
)
from balms_det.losses.loss import Loss, State, TrainingClasses
from balms_det.options import FRACTION, Options, Range, option


def adaptive_class_suppression_loss(
    logits: Tensor,
    gt_classes: Tensor,
    frequency_groups: Tensor,
    *,
    score_threshold: float = 0.7,
    background_ratios: Sequence[float] = (0.01, 0.1, 1.0),
    draws: Tensor | None = None,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Return adaptive Class Suppression Loss (ACSL, arXiv:2104.00885; code: CASIA-IVA-Lab/ACSL).

        sum_j w_j BCE(sigmoid(z_j), y_j)

    In a foreground row w_j = 1 for the true class and for those that it is confused with,
    sigmoid(z_j) >= threshold, and 0 for all others; the background, which has a logit of its own,
    is one of those others. In a background row w_j = 1 for the background; rare, common and
    frequent classes are suppressed by a random part of the batch's background rows each, 1%, 10%
    and 100% of them, rounded down. These parts are the authors' code's; w takes no gradient.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        frequency_groups: (K,) int64: 0 rare, 1 common, 2 frequent.
        score_threshold: in [0, 1]; 0 suppresses every class in foreground rows.
        background_ratios: of rare, common and frequent classes, each in [0, 1].
        draws: (R, 3); of the background rows those with the least draws are chosen.
        reduction: as in :func:`~balms_det.losses.sigmoid_loss`, for (R, K + 1).
    """
    check_inputs(logits, gt_classes, frequency_groups=(frequency_groups, -1))
    logits = at_least_float32(logits)
    targets = F.one_hot(gt_classes, logits.shape[1]).to(logits)
    is_background = gt_classes == logits.shape[1] - 1
    if draws is None:
        draws = torch.rand(len(logits), len(background_ratios), device=logits.device)
    ranks = ranks_within(is_background[:, None].expand_as(draws), draws)
    num_background = is_background.sum().double()
    num_chosen = torch.stack([(num_background * ratio).floor() for ratio in background_ratios])
    chosen = is_background[:, None] & (ranks < num_chosen)
    confused = (logits.detach().sigmoid() >= score_threshold) & ~is_background[:, None]
    counts = confused | (targets > 0) | F.pad(chosen[:, frequency_groups], (0, 1), value=False)
    elements = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return reduce_losses(elements.masked_fill(~counts, 0), reduction)


@dataclass(frozen=True)
class ACSLOptions(Options):
    """Options of :class:`ACSL`."""

    score_threshold: float = option(
        "ACSL.SCORE_THRESHOLD",
        0.7,
        "Score from which a foreground RoI suppresses a class that is not its own.",
        allowed=FRACTION,
        source="authors' code of arXiv:2104.00885",
    )
    background_ratios: tuple[float, float, float] = option(
        "ACSL.BACKGROUND_RATIOS",
        (0.01, 0.1, 1.0),
        "Part of the background RoIs that suppress the rare, the common and the frequent classes.",
        allowed=Range(
            lambda ratios: len(ratios) == 3 and all(map(FRACTION.holds, ratios)),
            "three numbers from 0 to 1, of rare, common and frequent classes",
        ),
        source="authors' code of arXiv:2104.00885",
    )


class ACSL(Loss):
    """:func:`adaptive_class_suppression_loss` with the frequency groups of a training set."""

    name = "acsl"
    options = ACSLOptions
    link = SIGMOID_BESIDE_BACKGROUND
    needs_stats = True

    frequency_groups: Tensor

    def __init__(
        self,
        frequency_groups: Tensor,
        *,
        score_threshold: float = ACSLOptions.score_threshold,
        background_ratios: tuple[float, float, float] = ACSLOptions.background_ratios,
    ) -> None:
        """
        Args:
            frequency_groups: (K,) int64: 0 rare, 1 common, 2 frequent.
            score_threshold, background_ratios: as of :func:`adaptive_class_suppression_loss`.
        """
        super().__init__()
        self.options(score_threshold=score_threshold, background_ratios=background_ratios)
        self._score_threshold = score_threshold
        self._background_ratios = background_ratios
        self.hold(frequency_groups=frequency_groups)

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        groups = ["rcf".index(group) for group in training.known.groups]
        return {"frequency_groups": torch.tensor(groups)}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return adaptive_class_suppression_loss(
            logits,
            gt_classes,
            self.frequency_groups,
            score_threshold=self._score_threshold,
            background_ratios=self._background_ratios,
            reduction="none",
        )
