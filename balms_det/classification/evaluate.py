"""Accuracy of a classifier of a long tail, and how often it predicts each class.

Shapes: N test images, K classes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from balms_det.classification.long_tail import IntArray


@dataclass(frozen=True)
class Evaluation:
    """Results on a test set, fractions from 0 to 1; None where there is nothing to average.

    Attributes:
        accuracy: top-1, over all images.
        per_class: (K,) top-1 of each class's images; None for a class without.
        many, medium, few: mean of the classes with more than 100, 20 to 100, and fewer than 20
            training images (arXiv:1904.05160).
        marginal: (K,) marginal likelihood of the labels: the mean over the images of the
            probabilities, which sum to one. All alike is what a balanced test set has.
        predicted: (K,) fraction of the images that are given each label.
    """

    accuracy: float
    per_class: list[float | None]
    many: float | None
    medium: float | None
    few: float | None
    marginal: list[float]
    predicted: list[float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    predictions: Tensor, probs: Tensor, labels: Tensor, train_counts: IntArray
) -> Evaluation:
    """Compare predictions with the truth.

    Args:
        predictions: (N,) labels.
        probs: (N, K); rows that do not sum to one, as a sigmoid's, are scaled for the marginal.
        labels: (N,) in [0, K).
        train_counts: (K,) training images of each class.
    """
    num_classes = probs.shape[1]
    totals = labels.bincount(minlength=num_classes)
    correct = labels[predictions == labels].bincount(minlength=num_classes)
    per_class = [
        c / t if t else None for c, t in zip(correct.tolist(), totals.tolist(), strict=True)
    ]

    def mean_over(members: np.ndarray) -> float | None:
        scores = [
            s for s, member in zip(per_class, members, strict=True) if member and s is not None
        ]
        return sum(scores) / len(scores) if scores else None

    marginal = (probs.double() / probs.double().sum(1, keepdim=True)).mean(0)
    return Evaluation(
        accuracy=int(correct.sum()) / len(labels),
        per_class=per_class,
        many=mean_over(train_counts > 100),
        medium=mean_over((train_counts >= 20) & (train_counts <= 100)),
        few=mean_over(train_counts < 20),
        marginal=marginal.tolist(),
        predicted=(predictions.bincount(minlength=num_classes).double() / len(labels)).tolist(),
    )


def tail_share(marginal: list[float]) -> float:
    """Return the part of a marginal that falls on the rarer half of the classes; 1/2 is balanced.

    Args:
        marginal: (K,), the most frequent class first. With an odd number of classes the middle one
            counts half.
    """
    num_classes = len(marginal)
    tail = sum(marginal[(num_classes + 1) // 2 :])
    middle = marginal[num_classes // 2] if num_classes % 2 else 0.0
    return tail + middle / 2
