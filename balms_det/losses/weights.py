"""Factors on the loss: of rows by their class, and of classes by a draw."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from balms_det.bilevel import reweighter_weights
from balms_det.losses.loss import TrainingClasses
from balms_det.options import AT_LEAST_0, AT_LEAST_1, Choices, Options, Range, option

Iteration = Callable[[], int]


@dataclass(frozen=True)
class ClassWeightsOptions(Options):
    """Factor on the loss of each RoI by its class, on top of any loss.

    The background's factor is 1. NORMALISE says over what the foreground classes' factors have a
    mean of 1, and so how much the foreground weighs beside the background.
    """

    name: str = option(
        "CLASS_WEIGHTS.NAME",
        "none",
        '"none"; "inverse": 1 / n_j (class-balanced weighting); "effective_number": '
        '(1 - beta) / (1 - beta^n_j) (Class-Balanced loss, arXiv:1901.05555); "learned": the Meta '
        "Reweighter (arXiv:2007.10740), whose factors have a mean of 1 over the foreground RoIs of "
        "a batch and which SOLVER.META configures.",
        allowed=Choices(("none", "inverse", "effective_number", "learned")),
    )
    beta: float = option(
        "CLASS_WEIGHTS.BETA",
        0.999,
        "beta of the effective number.",
        allowed=Range(lambda beta: 0 <= beta < 1, "0 or more, less than 1"),
        source="arXiv:1901.05555, large-scale data sets",
    )
    normalise: str = option(
        "CLASS_WEIGHTS.NORMALISE",
        "instances",
        'What the factors have a mean of 1 over: "instances" of the training set; the foreground '
        'RoIs of each "batch", as the weighted mean of LDAM-DRW\'s authors; or "classes" (code of '
        "the Class-Balanced loss), which with a long tail leaves the instances of frequent classes "
        'factors near 0. "learned" is always over the batch.',
        allowed=Choices(("instances", "batch", "classes")),
    )
    start_iter: int = option(
        "CLASS_WEIGHTS.START_ITER",
        0,
        "Iteration from which the factors apply (deferred re-weighting).",
        allowed=AT_LEAST_0,
        source="arXiv:1906.07413",
    )


@dataclass(frozen=True)
class FederatedOptions(Options):
    """Federated loss (arXiv:2103.07461): some classes of each batch count.

    They are the batch's own and others drawn in proportion to image_count^FREQ_POWER. It goes with
    losses that treat every class by itself.
    """

    enabled: bool = option("FEDERATED.ENABLED", False, "Whether only some classes count.")
    num_classes: int = option(
        "FEDERATED.NUM_CLASSES",
        50,
        "Classes that count in the batch of a GPU.",
        allowed=AT_LEAST_1,
        source="Detectron2 and the authors",
    )
    freq_power: float = option(
        "FEDERATED.FREQ_POWER",
        0.5,
        "Exponent of the image counts in the draw.",
        allowed=AT_LEAST_0,
        source="Detectron2 and the authors",
    )


def inverse_frequency_weights(class_counts: Tensor) -> Tensor:
    """Return the class weights 1 / n_j, scaled to a mean of one (class-balanced weighting, CBW).

    Args:
        class_counts: (K,) training counts; zeros are clamped to one.

    Returns:
        (K,) float64. Equal counts give ones.
    """
    weights = class_counts.to(torch.float64).clamp(min=1).reciprocal()
    return weights / weights.mean()


def effective_number_weights(class_counts: Tensor, *, beta: float) -> Tensor:
    """Return the class weights of the Class-Balanced loss (arXiv:1901.05555), with a mean of one.

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


def normalised_over_instances(weights: Tensor, instance_counts: Tensor) -> Tensor:
    """Scale class weights to a mean of one over the training instances.

    Weights with a mean of one over *classes* put most of their sum on rare classes: with the counts
    of LVIS, the mean factor of a foreground instance is then near 0.01, and nearly all of the loss
    is the background's.

    Args:
        weights: (K,) positive.
        instance_counts: (K,) training instances of each class, 0 or more.

    Returns:
        (K,) float64; `weights` where there is no instance.
    """
    weights, counts = weights.to(torch.float64), instance_counts.to(torch.float64)
    return weights * counts.sum() / (weights * counts).sum() if counts.any() else weights


def federated_classes(gt_classes: Tensor, rates: Tensor, num_sampled: int) -> Tensor:
    """Return the classes of the federated loss: the batch's own, and others drawn by `rates`.

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


class ClassWeights(nn.Module):
    """A factor on the loss of every row, by the row's class; the background's is one."""

    weights: Tensor

    def __init__(
        self,
        weights: Tensor,
        start_iter: int,
        iteration: Iteration | None,
        *,
        per_batch: bool = False,
    ) -> None:
        """
        Args:
            weights: (K,) factors of the foreground classes.
            start_iter: training iteration from which they apply; before it, every factor is one
                (deferred re-weighting, arXiv:1906.07413).
            iteration: that training has come to; None where `start_iter` is 0.
            per_batch: whether the factors of the foreground rows of each batch are divided by their
                mean.
        """
        super().__init__()
        self._per_batch = per_batch
        weights = F.pad(weights, (0, 1), value=1).to(torch.get_default_dtype())
        self.register_buffer("weights", weights, persistent=False)
        self._start_iter = start_iter
        self._iteration = iteration

    def forward(self, gt_classes: Tensor) -> Tensor | None:
        """Return (R,) factors, or None before they apply."""
        if not has_begun(self._start_iter, self._iteration):
            return None
        factors = self.weights[gt_classes]
        if not self._per_batch:
            return factors
        foreground = gt_classes < len(self.weights) - 1
        total = (factors * foreground).sum()
        # Without a foreground row, the total is zero and no factor is divided by it.
        return torch.where(foreground, factors * (foreground.sum() / total), factors)


class LearnedClassWeights(nn.Module):
    """The Meta Reweighter: a factor on every row by its class's learned rate.

    The trainer learns the rates, from 1/2 on, and saves them; inference does not need them.
    """

    rate_logits: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("rate_logits", torch.zeros(num_classes), persistent=False)

    def forward(self, gt_classes: Tensor) -> Tensor:
        """Return (R,) factors."""
        return reweighter_weights(gt_classes, self.rate_logits)


class FederatedClasses(nn.Module):
    """The classes that count in a batch: its own, and others drawn by their frequency."""

    rates: Tensor

    def __init__(self, rates: Tensor, num_sampled: int) -> None:
        """
        Args:
            rates: (K,) non-negative; proportional to the chance of being drawn.
            num_sampled: classes that count, if the batch does not hold more.
        """
        super().__init__()
        self.register_buffer("rates", rates.float(), persistent=False)
        self._num_sampled = num_sampled

    def forward(self, gt_classes: Tensor) -> Tensor:
        """Return (K,) mask."""
        return federated_classes(gt_classes, self.rates, self._num_sampled)


def has_begun(start_iter: int, iteration: Iteration | None) -> bool:
    """Return whether training has come to an iteration."""
    if start_iter == 0:
        return True
    assert iteration is not None, "a deferred part needs the trainer's iteration"
    return iteration() >= start_iter


def build_class_weights(
    training: TrainingClasses, options: ClassWeightsOptions, iteration: Iteration | None
) -> ClassWeights | LearnedClassWeights | None:
    """Return the factors that `options` describe, or None for equal ones."""
    if options.name == "none":
        return None
    if options.name == "learned":
        return LearnedClassWeights(training.num_classes)
    if options.name == "inverse":
        weights = inverse_frequency_weights(training.counts)
    else:
        weights = effective_number_weights(training.counts, beta=options.beta)
    if options.normalise == "instances":
        instances = torch.tensor(training.known.instance_counts)
        weights = normalised_over_instances(weights, instances)
    per_batch = options.normalise == "batch"
    return ClassWeights(weights, options.start_iter, iteration, per_batch=per_batch)


def build_federated(
    training: TrainingClasses, options: FederatedOptions
) -> FederatedClasses | None:
    """Return the draw of classes that `options` describe, or None for all classes."""
    if not options.enabled:
        return None
    rates = torch.tensor(training.known.image_counts).double() ** options.freq_power
    return FederatedClasses(rates, options.num_classes)
