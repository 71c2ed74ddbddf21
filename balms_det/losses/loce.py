"""Equilibrium loss of LOCE (arXiv:2108.07507)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SOFTMAX
from balms_det.losses.balanced import shifted_softmax_loss
from balms_det.losses.elements import Reduction, at_least_float32, check_inputs
from balms_det.losses.loss import Loss, RunningState, State, TrainingClasses
from balms_det.options import ABOVE_0, FRACTION, Options, option


def equilibrium_loss(
    logits: Tensor,
    gt_classes: Tensor,
    mean_scores: Tensor,
    *,
    background_score: float = 0.01,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Equilibrium Loss (EBL) of LOCE (arXiv:2108.07507; code: fcjian/LOCE).

        -log [ s_y exp(z_y) / sum_j s_j exp(z_j) ],  s_j the mean score of class j so far

    A softmax whose margins between two classes are log(s_j / s_y): weakly scored classes must win
    by more. LOCE's other half, its memory-augmented feature sampling, which adds RoI features of
    weak classes to the batch, is not implemented.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        mean_scores: (K,) s, running averages by :func:`equilibrium_advance`; with the authors 0.01
            at first, and the batch at hand included.
        background_score: s of the background, a constant, positive.
        reduction: as in :func:`~balms_det.losses.softmax_loss`.
    """
    check_inputs(logits, gt_classes, mean_scores=(mean_scores, -1))
    shifts = F.pad(mean_scores, (0, 1), value=background_score)
    shifts = shifts.clamp(min=torch.finfo(torch.float32).tiny).log()
    return shifted_softmax_loss(logits, gt_classes, shifts, reduction=reduction)


def equilibrium_observe(
    logits: Tensor, gt_classes: Tensor, mean_scores: Tensor
) -> dict[str, Tensor]:
    """Return the sum of the scores of each class's RoIs for it, and their number, (K,) each."""
    scores = at_least_float32(logits).softmax(dim=1).gather(1, gt_classes[:, None])[:, 0]
    sums = mean_scores.new_zeros(2, logits.shape[1])
    sums[0].index_add_(0, gt_classes, scores.to(sums))
    sums[1].index_add_(0, gt_classes, torch.ones_like(scores).to(sums))
    return {"score_sums": sums[0, :-1], "num_rows": sums[1, :-1]}


def equilibrium_advance(state: State, sums: State, *, momentum: float = 0.9) -> dict[str, Tensor]:
    """Move the mean score of each class in the batch towards its mean there.

        s_j <- a s_j + (1 - a) mean of the scores of class j

    The authors average the RoIs of each object, then the objects, and take a to the power of the
    number of objects of the class in the batch. A criterion sees RoIs and not which object they lie
    on, so that here the mean is over RoIs and the batch is one step.

    Args:
        state: "mean_scores", (K,).
        sums: of :func:`equilibrium_observe`, over all processes.
        momentum: a, in [0, 1].
    """
    mean_scores, num_rows = state["mean_scores"], sums["num_rows"]
    batch_means = sums["score_sums"] / num_rows.clamp(min=1)
    moved = momentum * mean_scores + (1 - momentum) * batch_means
    return {"mean_scores": torch.where(num_rows > 0, moved, mean_scores)}


@dataclass(frozen=True)
class LOCEOptions(Options):
    """Options of :class:`LOCE`."""

    momentum: float = option(
        "LOCE.MOMENTUM",
        0.9,
        "alpha of the running mean scores.",
        allowed=FRACTION,
        source="authors' code of arXiv:2108.07507",
    )
    background_score: float = option(
        "LOCE.BACKGROUND_SCORE",
        0.01,
        "The background's mean score, a constant.",
        allowed=ABOVE_0,
        source="authors' code of arXiv:2108.07507",
    )


class LOCE(Loss):
    """:func:`equilibrium_loss` with the running mean score of each class."""

    name = "loce"
    options = LOCEOptions
    link = SOFTMAX

    def __init__(
        self,
        num_classes: int,
        *,
        momentum: float = LOCEOptions.momentum,
        background_score: float = LOCEOptions.background_score,
    ) -> None:
        """
        Args:
            num_classes: K.
            momentum: as of :func:`equilibrium_advance`.
            background_score: as of :func:`equilibrium_loss`.
        """
        super().__init__()
        self.options(momentum=momentum, background_score=background_score)
        self._momentum, self._background_score = momentum, background_score
        initial = {"mean_scores": torch.full((num_classes,), 0.01, dtype=torch.float64)}
        self.state = RunningState(initial, self._observe, self._advance, "before")

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"num_classes": training.num_classes}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return equilibrium_loss(
            logits,
            gt_classes,
            state["mean_scores"],
            background_score=self._background_score,
            reduction="none",
        )

    def _observe(
        self, logits: Tensor, gt_classes: Tensor, state: State, weights: Tensor | None
    ) -> dict[str, Tensor]:
        return equilibrium_observe(logits, gt_classes, state["mean_scores"])

    def _advance(self, state: State, sums: State) -> dict[str, Tensor]:
        return equilibrium_advance(state, sums, momentum=self._momentum)
