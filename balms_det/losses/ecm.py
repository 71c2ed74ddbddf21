"""Effective Class-Margin loss (arXiv:2301.09724)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID_WITH_BACKGROUND
from balms_det.losses.elements import Reduction, at_least_float32, check_inputs, reduce_losses
from balms_det.losses.loss import Loss, State, TrainingClasses
from balms_det.options import ABOVE_0, Options, option


def effective_class_margin_shifts(
    class_counts: Tensor, *, background_ratio: float = 6.3313
) -> Tensor:
    """Return the shifts d_j = log(n_j / n_-j) / 4 of :func:`effective_class_margin_loss`.

    n_-j counts what is not of class j. The authors count images that contain the class, and take
    for the background `background_ratio` times the sum over the classes, its share among the RoIs
    of their detector.

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.
        background_ratio: background over foreground examples, positive.

    Returns:
        (K + 1,) float64, background last.
    """
    counts, others = _counts_with_background(class_counts, background_ratio)
    return (counts / others).log() / 4


def effective_class_margin_weights(
    class_counts: Tensor, *, background_ratio: float = 6.3313
) -> Tensor:
    """Return the weights w_j = a_j log(1 + 1 / a_j), a_j = n_-j / n_j, of
    :func:`effective_class_margin_loss`: close to 1 for rare classes, less for frequent ones.

    Arguments and result as of :func:`effective_class_margin_shifts`.
    """
    counts, others = _counts_with_background(class_counts, background_ratio)
    return others / counts * (counts / others).log1p()


def _counts_with_background(class_counts: Tensor, background_ratio: float) -> tuple[Tensor, Tensor]:
    counts = class_counts.to(torch.float64).clamp(min=1)
    counts = torch.cat([counts, background_ratio * counts.sum()[None]])
    return counts, counts.sum() - counts


def effective_class_margin_loss(
    logits: Tensor,
    gt_classes: Tensor,
    shifts: Tensor,
    element_weights: Tensor,
    *,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Effective Class-Margin loss (ECM, arXiv:2301.09724; code: janghyuncho/ECM-Loss).

        sum_j w_j BCE(p_j, y_j),
        p_j = e^{z_j} / n_-j^(1/4) / [ e^{z_j} / n_-j^(1/4) + e^{-z_j} / n_j^(1/4) ]
            = sigmoid(2 z_j + d_j)

    At inference, as with the authors, a class's score is sigmoid(z_j), not of 2 z_j, times the
    probability that the row is not background.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        shifts: (K + 1,) d, from :func:`effective_class_margin_shifts`.
        element_weights: (K + 1,) w, from :func:`effective_class_margin_weights`.
        reduction: as in :func:`~balms_det.losses.sigmoid_loss`, for (R, K + 1).
    """
    check_inputs(logits, gt_classes, shifts=(shifts, 0), element_weights=(element_weights, 0))
    logits = at_least_float32(logits)
    targets = F.one_hot(gt_classes, logits.shape[1]).to(logits)
    elements = F.binary_cross_entropy_with_logits(
        2 * logits + shifts.to(logits), targets, reduction="none"
    )
    return reduce_losses(element_weights.to(logits) * elements, reduction)


@dataclass(frozen=True)
class ECMOptions(Options):
    """Options of :class:`ECM`."""

    background_ratio: float = option(
        "ECM.BACKGROUND_RATIO",
        6.3313,
        "Count of the background over the sum of the classes' counts.",
        allowed=ABOVE_0,
        source="authors' code of arXiv:2301.09724, measured on Mask R-CNN",
    )


class ECM(Loss):
    """:func:`effective_class_margin_loss` with the counts of a training set."""

    name = "ecm"
    options = ECMOptions
    link = SIGMOID_WITH_BACKGROUND
    needs_stats = True

    shifts: Tensor
    element_weights: Tensor

    def __init__(
        self, counts: Tensor, *, background_ratio: float = ECMOptions.background_ratio
    ) -> None:
        """
        Args:
            counts: (K,) training counts; the authors count images.
            background_ratio: as of :func:`effective_class_margin_shifts`.
        """
        super().__init__()
        self.options(background_ratio=background_ratio)
        self.hold(
            shifts=effective_class_margin_shifts(counts, background_ratio=background_ratio),
            element_weights=effective_class_margin_weights(
                counts, background_ratio=background_ratio
            ),
        )

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"counts": training.counts}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return effective_class_margin_loss(
            logits, gt_classes, self.shifts, self.element_weights, reduction="none"
        )
