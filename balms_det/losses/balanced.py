"""Balanced Softmax and Balanced Sigmoid (arXiv:2007.10740 and its slides)."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import SIGMOID, SOFTMAX
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_counts,
    check_inputs,
    reduce_losses,
)
from balms_det.losses.loss import Loss, State, TrainingClasses
from balms_det.losses.plain import sigmoid_loss, softmax_loss
from balms_det.options import AT_LEAST_0, Choices, Options, option
from balms_det.runtime.errors import InputError


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
        sample_per_class: (C,) training counts, or frequencies on any scale. Zeros are clamped to
            one, or to the least frequency below one, so that classes without an example stay
            finite.
        reduction: "mean" over rows, "sum", or "none" for the (R,) row losses.

    Raises:
        InputError: shapes or dtypes do not go together.
    """
    check_inputs(logits, labels, gt_name="labels", sample_per_class=(sample_per_class, 0))
    logits = at_least_float32(logits)
    log_counts = _above_0(sample_per_class.to(logits)).log()
    losses = F.cross_entropy(logits + log_counts, labels, reduction="none")
    return reduce_losses(losses, "proposals" if reduction == "mean" else reduction)


def _above_0(class_counts: Tensor) -> Tensor:
    """Return counts or frequencies with zeros clamped to one, or to the least value below one."""
    least = class_counts.where(class_counts > 0, 1).min().clamp(max=1)
    return class_counts.clamp(min=least)


def balanced_softmax_shifts(class_counts: Tensor) -> Tensor:
    """Return the shift of each of a detector's K + 1 logits under Balanced Softmax.

    Class j is shifted by log(n_j k / n), which is log n_j up to a constant; the background, whose
    frequency the sampler of proposals sets and not the data set, stays where it is. Relative to
    the mean foreground class it is therefore neither favoured nor punished, and equal counts give
    plain softmax.

    Args:
        class_counts: (K,) training counts, or frequencies on any scale; zeros are clamped as by
            :func:`balanced_softmax_loss`.

    Returns:
        (K + 1,) float64, zero for the background.

    Raises:
        InputError: `class_counts` is not one number of 0 or more for each class.
    """
    check_counts(class_counts)
    counts = _above_0(class_counts.to(torch.float64))
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
    check_inputs(logits, gt_classes, shifts=(shifts, 0))
    logits = at_least_float32(logits)
    return softmax_loss(logits + shifts.to(logits), gt_classes, reduction=reduction)


def balanced_sigmoid_margins(
    class_counts: Tensor,
    *,
    total: int | None = None,
    constant: Literal["keep", "drop"] = "keep",
) -> Tensor:
    """Return the margins of Balanced Sigmoid (slides "Balanced Activation").

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

    Raises:
        InputError: `class_counts` is not one number of 0 or more for each class, or holds
            frequencies, which the clamps would make equal.
    """
    check_counts(class_counts)
    if not class_counts.is_cuda and bool(((class_counts > 0) & (class_counts < 1)).any()):
        raise InputError(
            "class_counts has values between 0 and 1, such as frequencies have; multiply them by "
            "the number of training objects, because the margins need counts"
        )
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
    check_inputs(logits, gt_classes, margins=(margins, 0))
    logits = at_least_float32(logits)
    margins = margins.to(logits)
    if rows == "foreground":
        is_foreground = gt_classes < logits.shape[1]
        margins = margins * is_foreground[:, None]
    return sigmoid_loss(logits - margins, gt_classes, reduction=reduction)


@dataclass(frozen=True)
class BalancedSoftmaxOptions(Options):
    """Options of :class:`BalancedSoftmax`."""

    tau: float = option(
        "MARGIN.TAU",
        1.0,
        "Factor on the margin: 0 turns it off, 1 is the paper's.",
        allowed=AT_LEAST_0,
        source="arXiv:2007.10740",
    )


@dataclass(frozen=True)
class BalancedSigmoidOptions(BalancedSoftmaxOptions):
    """Options of :class:`BalancedSigmoid`."""

    constant: Literal["keep", "drop"] = option(
        "MARGIN.CONSTANT",
        "keep",
        '"keep" is the formula of the slides; "drop" leaves out its constant -log(k - 1), as the '
        "release does.",
        allowed=Choices(("keep", "drop")),
        source="slides",
    )
    rows: Literal["foreground", "all"] = option(
        "MARGIN.ROWS",
        "foreground",
        'RoIs whose logits the margin shifts: "foreground" (release) or "all" (slides). Balanced '
        "Sigmoid only: a softmax couples the classes of a row, so its shift is on every row.",
        allowed=Choices(("foreground", "all")),
        source="release",
    )


class BalancedSoftmax(Loss):
    """:func:`shifted_softmax_loss` with the shifts of a training set."""

    name = "balanced_softmax"
    options = BalancedSoftmaxOptions
    link = SOFTMAX
    needs_stats = True
    has_margin = True

    shifts: Tensor

    def __init__(self, counts: Tensor, *, tau: float = BalancedSoftmaxOptions.tau) -> None:
        """
        Args:
            counts: (K,) training counts.
            tau: factor on the shifts, 0 or more.
        """
        super().__init__()
        self.options(tau=tau)
        self.hold(shifts=tau * balanced_softmax_shifts(counts))

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"counts": training.counts}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return shifted_softmax_loss(logits, gt_classes, self.shifts, reduction="none")


class BalancedSigmoid(Loss):
    """:func:`balanced_sigmoid_loss` with the margins of a training set."""

    name = "balanced_sigmoid"
    options = BalancedSigmoidOptions
    link = SIGMOID
    needs_stats = True
    has_margin = True

    margins: Tensor

    def __init__(
        self,
        counts: Tensor,
        *,
        total: int | None = None,
        tau: float = BalancedSigmoidOptions.tau,
        constant: Literal["keep", "drop"] = BalancedSigmoidOptions.constant,
        rows: Literal["foreground", "all"] = BalancedSigmoidOptions.rows,
    ) -> None:
        """
        Args:
            counts: (K,) training counts.
            total: n; default the sum of the counts. With image counts, the annotated images.
            tau: factor on the margins, 0 or more.
            constant: as of :func:`balanced_sigmoid_margins`.
            rows: as of :func:`balanced_sigmoid_loss`.
        """
        super().__init__()
        self.options(tau=tau, constant=constant, rows=rows)
        self._rows = rows
        self.hold(margins=tau * balanced_sigmoid_margins(counts, total=total, constant=constant))

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"counts": training.counts, "total": training.total}

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        return balanced_sigmoid_loss(
            logits, gt_classes, self.margins, rows=self._rows, reduction="none"
        )
