"""Balanced Softmax and Balanced Sigmoid (arXiv:2007.10740 and its slides)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.elements import Reduction, at_least_float32, reduce_losses
from balms_det.losses.plain import sigmoid_loss, softmax_loss


def balanced_softmax_loss(
    labels: Tensor,
    logits: Tensor,
    sample_per_class: Tensor,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    """Balanced Softmax: cross-entropy over the logits eta_j + log n_j (arXiv:2007.10740, eq. 4).

    Trained so, the softmax of the *raw* logits estimates p(y|x) under a uniform class prior; the
    shift is for the loss only. Signature of the authors' classification release. Adding one
    constant to every log n_j, that is scaling the counts, changes nothing.

    Args:
        labels: (R,) int64 in [0, C), C being the number of columns of `logits`.
        logits: (R, C).
        sample_per_class: (C,) training counts; zeros are clamped to one, so that classes without
            an example stay finite.
        reduction: "mean" over rows, "sum", or "none" for the (R,) row losses.
    """
    logits = at_least_float32(logits)
    log_counts = sample_per_class.to(logits).clamp(min=1).log()
    losses = F.cross_entropy(logits + log_counts, labels, reduction="none")
    return reduce_losses(losses, "proposals" if reduction == "mean" else reduction)


def balanced_softmax_shifts(class_counts: Tensor) -> Tensor:
    """The shift of each of a detector's K + 1 logits under Balanced Softmax.

    Class j is shifted by log(n_j k / n), which is log n_j up to a constant; the background, whose
    frequency the sampler of proposals sets and not the data set, stays where it is. Relative to
    the mean foreground class it is therefore neither favoured nor punished, and equal counts give
    plain softmax.

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.

    Returns:
        (K + 1,) float64, zero for the background.
    """
    counts = class_counts.to(torch.float64).clamp(min=1)
    return F.pad((counts / counts.mean()).log(), (0, 1))


def shifted_softmax_loss(
    logits: Tensor, gt_classes: Tensor, shifts: Tensor, *, reduction: Reduction = "proposals"
) -> Tensor:
    """Softmax cross-entropy over `logits` + `shifts`: Balanced Softmax for a detector.

    Args:
        logits: (R, K + 1), background last.
        gt_classes: (R,) in [0, K].
        shifts: (K + 1,) from :func:`balanced_softmax_shifts`.
        reduction: as in :func:`softmax_loss`.
    """
    logits = at_least_float32(logits)
    return softmax_loss(logits + shifts.to(logits), gt_classes, reduction=reduction)


def balanced_sigmoid_margins(
    class_counts: Tensor,
    *,
    total: int | None = None,
    constant: Literal["keep", "drop"] = "keep",
) -> Tensor:
    """The margins of Balanced Sigmoid (slides "Balanced Activation").

    docs/methods/BALANCED_LOSSES.md derives them.

        m_j = log[ (n/k) / n_j * (n - n_j) / (n - n/k) ]

    A binary classifier of class j sees it with prior odds n_j / (n - n_j), where a balanced set
    would give (n/k) / (n - n/k); m_j is the logarithm of the ratio. Rare classes have m_j > 0: in
    training their logits must exceed those of frequent classes to be believed as much.

    Args:
        class_counts: (K,) training counts. Zeros are clamped to one, a count equal to n to n - 1,
            so that every margin is finite.
        total: n; default sum_j n_j. The release counts images and takes the number of images with
            annotations.
        constant: "keep" the formula above (slides), or "drop" its constant
            log[(n/k) / (n - n/k)] = -log(k - 1) (release), which leaves log[(n - n_j) / n_j].

    Returns:
        (K,) float64. With a single class there is nothing to balance and "keep" gives zero.
    """
    counts = class_counts.to(torch.float64)
    num_classes = len(counts)
    n = max(float(counts.sum() if total is None else total), 2.0)
    counts = counts.clamp(min=1, max=n - 1)
    margins = (n - counts).log() - counts.log()
    if constant == "drop":
        return margins
    if num_classes == 1:
        return torch.zeros_like(margins)
    return margins - math.log(num_classes - 1)


def balanced_sigmoid_loss(
    logits: Tensor,
    gt_classes: Tensor,
    margins: Tensor,
    *,
    rows: Literal["foreground", "all"] = "foreground",
    reduction: Reduction = "proposals",
) -> Tensor:
    """Balanced Sigmoid: sigmoid cross-entropy over eta_j - m_j; inference uses the raw eta_j.

    Args:
        logits: (R, K).
        gt_classes: (R,) in [0, K].
        margins: (K,) from :func:`balanced_sigmoid_margins`, times any strength.
        rows: "foreground" shifts foreground rows only, as the authors' release does; background
            rows then meet their all-negative targets with raw logits. "all" shifts every row.
        reduction: "proposals" (sum over rows and classes / R, as the release), "sum", or "none"
            for (R, K).
    """
    logits = at_least_float32(logits)
    margins = margins.to(logits)
    if rows == "foreground":
        is_foreground = gt_classes < logits.shape[1]
        margins = margins * is_foreground[:, None]
    return sigmoid_loss(logits - margins, gt_classes, reduction=reduction)
