"""Factors on the loss: of rows by their class, and of classes by a draw."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_frequency_weights(class_counts: Tensor) -> Tensor:
    """Class weights 1 / n_j, scaled to a mean of one (class-balanced weighting, CBW).

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.

    Returns:
        (K,) float64. Equal counts give ones.
    """
    weights = class_counts.to(torch.float64).clamp(min=1).reciprocal()
    return weights / weights.mean()


def effective_number_weights(class_counts: Tensor, *, beta: float) -> Tensor:
    """Class weights of the Class-Balanced loss (arXiv:1901.05555), with a mean of one.

        w_j proportional to (1 - beta) / (1 - beta^n_j)

    (1 - beta^n) / (1 - beta) is the effective number of n examples that overlap.

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.
        beta: in [0, 1). 0 gives ones, beta -> 1 the inverse frequency.

    Returns:
        (K,) float64.
    """
    counts = class_counts.to(torch.float64).clamp(min=1)
    if beta == 0:
        return torch.ones_like(counts)
    # 1 - beta^n without cancellation, for a beta that is close to one.
    weights = -1 / torch.expm1(counts * math.log(beta))
    return weights / weights.mean()


def federated_classes(gt_classes: Tensor, rates: Tensor, num_sampled: int) -> Tensor:
    """The classes of the federated loss: the batch's own, and others drawn by `rates`.

    The draw is without replacement, and fills up to `num_sampled` classes, among which, as in
    Detectron2, the background counts where the batch holds it (Zhou et al., Probabilistic
    two-stage detection, arXiv:2103.07461).

    Args:
        gt_classes: (R,) in [0, K].
        rates: (K,) non-negative. A class of rate zero is never drawn; it still counts where the
            batch holds it.
        num_sampled: 1 or more. All classes count where there are no more than that to draw.

    Returns:
        (K,) bool, True for the classes whose loss counts.
    """
    num_classes = len(rates)
    in_batch = torch.zeros(num_classes + 1, dtype=torch.bool, device=rates.device)
    in_batch[gt_classes] = True
    # An exponential race: the first to arrive at these rates are a draw without replacement. It
    # needs no count on the host, for which a GPU would have to be waited for.
    speed = F.pad(rates, (0, 1)) / torch.empty_like(in_batch, dtype=rates.dtype).exponential_()
    speed[in_batch] = math.inf
    fastest = speed.topk(min(num_sampled, num_classes + 1))
    drawn = torch.zeros_like(in_batch).scatter_(0, fastest.indices, fastest.values > 0)
    return (in_batch | drawn)[:num_classes]
