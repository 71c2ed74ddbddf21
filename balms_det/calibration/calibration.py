"""Applying a calibration to probabilities; names and shapes as in the package."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from balms_det.annotations.class_stats import ClassStats, CountBy, missing_class_stats
from balms_det.calibration.options import CALIBRATIONS, CalibrationOptions
from balms_det.calibration.weights import fracal_weights, logit_adjustment_weights, norcal_weights
from balms_det.runtime.errors import InputError


def reweight_exclusive(probs: Tensor, weights: Tensor) -> Tensor:
    """Return p_j w_j / (sum_i p_i w_i + p_background): the background is not weighted.

    For a softmax this is the softmax of the logits plus log w_j.

    Args:
        probs: (R, K + 1), rows summing to one.
        weights: (K,), positive.

    Returns:
        (R, K + 1), rows summing to one.
    """
    weighted = torch.cat([probs[:, :-1] * weights.to(probs), probs[:, -1:]], dim=1)
    return weighted / weighted.sum(dim=1, keepdim=True)


def reweight_odds(probs: Tensor, weights: Tensor) -> Tensor:
    """Return p w / (p w + 1 - p): a shift of each sigmoid's logit by log w.

    Args:
        probs: any shape.
        weights: positive, of a shape that broadcasts with it.
    """
    weighted = probs * weights.to(probs)
    return weighted / (weighted + (1 - probs))


def _multiply(probs: Tensor, weights: Tensor) -> Tensor:
    return probs * weights.to(probs)


def _multiply_by_shifted(probs: Tensor, weights: Tensor) -> Tensor:
    return probs * reweight_odds(probs, weights)


# What each does with the probabilities of sigmoids, which no background normalises.
_INDEPENDENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logit_adjustment": reweight_odds,
    "norcal": _multiply,
    "fracal": _multiply_by_shifted,
}


class Calibration(nn.Module):
    """A correction of probabilities by a factor for each class: ``calibration(probs) -> probs``."""

    weights: Tensor

    def __init__(
        self,
        name: str,
        strength: float,
        class_counts: Tensor,
        *,
        exclusive: bool,
        box_dimensions: Tensor | None = None,
        total: int | None = None,
        fractal_power: float = CalibrationOptions.fractal_power,
    ) -> None:
        """
        Args:
            name: "logit_adjustment", "norcal" or "fracal".
            strength: tau or gamma, or FRACAL's, 0 or more.
            class_counts: (K,) of the training set.
            exclusive: whether rows of probabilities sum to one.
            box_dimensions, total, fractal_power: as of :func:`fracal_weights`, which alone uses
                them.
        """
        super().__init__()
        if name == "fracal":
            assert box_dimensions is not None
            weights = fracal_weights(
                class_counts,
                box_dimensions,
                total=total,
                power=fractal_power,
                strength=strength,
                exclusive=exclusive,
            )
        elif name == "norcal":
            weights = norcal_weights(class_counts, strength)
        else:
            weights = logit_adjustment_weights(class_counts, strength)
        self.register_buffer("weights", weights.float(), persistent=False)
        self._exclusive = exclusive
        self._independent = _INDEPENDENT[name]
        self._is_identity = strength == 0

    def forward(self, probs: Tensor) -> Tensor:
        """Return (R, K + 1) probabilities, corrected."""
        if self._is_identity:
            return probs
        if self._exclusive:
            return reweight_exclusive(probs, self.weights)
        corrected = self._independent(probs[:, :-1], self.weights)
        return torch.cat([corrected, probs[:, -1:]], dim=1)

    def rescore(self, scores: Tensor, classes: Tensor) -> Tensor:
        """Correct the scores of single detections, each of one class.

        Exact for independent probabilities. For exclusive ones the rest of the RoI's row would be
        needed; all of it is taken for background, which is exact where there are two classes, one
        of them the background.

        Args:
            scores: (D,).
            classes: (D,) int64 in [0, K).
        """
        if self._is_identity:
            return scores
        change = reweight_odds if self._exclusive else self._independent
        return change(scores, self.weights[classes])


def calibration_from_stats(
    name: str,
    strength: float,
    stats: ClassStats,
    count_by: CountBy,
    *,
    exclusive: bool,
    fractal_power: float = CalibrationOptions.fractal_power,
) -> Calibration:
    """Return a calibration of probabilities for the class statistics of a training set.

    Args:
        name, strength, exclusive, fractal_power: as of :class:`Calibration`.
        stats: of the training set.
        count_by: what n_j counts.

    Raises:
        InputError: FRACAL is asked for and the statistics have no box dimensions.
    """
    dimensions = stats.box_dimensions
    if name == "fracal" and dimensions is None:
        raise InputError(
            "MODEL.LONG_TAIL.CALIBRATION.NAME 'fracal' needs the box dimensions of the classes, "
            "which the class statistics lack; set MODEL.LONG_TAIL.STATS_FILE to the annotations of "
            "one training set with boxes, or to what `balms-det stats` writes for it"
        )
    return Calibration(
        name,
        strength,
        torch.tensor(stats.counts(count_by)),
        exclusive=exclusive,
        box_dimensions=None if dimensions is None else torch.tensor(dimensions),
        total=stats.num_images if count_by == "images" else None,
        fractal_power=fractal_power,
    )


def build_calibration(
    long_tail: Any, stats: ClassStats | None, *, exclusive: bool
) -> Calibration | None:
    """Return the calibration of probabilities that a MODEL.LONG_TAIL node describes, or None.

    Args:
        long_tail: ``cfg.MODEL.LONG_TAIL``.
        stats: of the training set.
        exclusive: whether rows of probabilities sum to one.

    Raises:
        InputError: the method needs class statistics and there are none, or they lack something.
    """
    options = CalibrationOptions.from_node(long_tail)
    if not CALIBRATIONS[options.name]:
        return None
    if stats is None:
        raise missing_class_stats(f"MODEL.LONG_TAIL.CALIBRATION.NAME {options.name!r}")
    return calibration_from_stats(
        options.name,
        options.strength,
        stats,
        long_tail.COUNT_BY,
        exclusive=exclusive,
        fractal_power=options.fractal_power,
    )
