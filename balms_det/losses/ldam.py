"""LDAM (arXiv:1906.07413)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SOFTMAX
from balms_det.losses.elements import Reduction, at_least_float32, check_inputs
from balms_det.losses.loss import Loss, State, TrainingClasses
from balms_det.losses.plain import softmax_loss
from balms_det.options import AT_LEAST_0, Options, option


def ldam_margins(class_counts: Tensor, *, max_margin: float = 0.5) -> Tensor:
    """Return the margins C / n_j^(1/4) of LDAM (arXiv:1906.07413), the largest `max_margin`.

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
        logits: (R, K + 1), the scaled s z. In the authors' code z is a cosine without a bias, and
            s = 30.
        gt_classes: (R,) in [0, K].
        margins: (K + 1,) D, from :func:`ldam_margins`.
        scale: s, positive; turns margins of z into margins of the logits.
        reduction: as in :func:`softmax_loss`.
    """
    check_inputs(logits, gt_classes, margins=(margins, 0))
    logits = at_least_float32(logits)
    short = F.one_hot(gt_classes, logits.shape[1]) * (scale * margins.to(logits))
    return softmax_loss(logits - short, gt_classes, reduction=reduction)


@dataclass(frozen=True)
class LDAMOptions(Options):
    """Options of :class:`LDAM`."""

    max_margin: float = option(
        "LDAM.MAX_MARGIN",
        0.5,
        "Largest margin C / n_j^(1/4), of the true class's cosine or, with the linear classifier, "
        "of its logit.",
        allowed=AT_LEAST_0,
        source="authors' code of arXiv:1906.07413",
    )


class LDAM(Loss):
    """:func:`ldam_loss` with the margins of a training set."""

    name = "ldam"
    options = LDAMOptions
    link = SOFTMAX
    needs_stats = True

    margins: Tensor

    def __init__(
        self, counts: Tensor, *, scale: float = 1.0, max_margin: float = LDAMOptions.max_margin
    ) -> None:
        """
        Args:
            counts: (K,) training counts.
            scale: factor that a cosine classifier puts on its cosines.
            max_margin: as of :func:`ldam_margins`.
        """
        super().__init__()
        self.options(max_margin=max_margin)
        self._scale = scale
        self.hold(margins=ldam_margins(counts, max_margin=max_margin))

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"counts": training.counts, "scale": training.logit_scale}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return ldam_loss(logits, gt_classes, self.margins, scale=self._scale, reduction="none")
