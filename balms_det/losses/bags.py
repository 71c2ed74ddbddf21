"""Balanced Group Softmax (arXiv:2006.10408)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from balms_det.losses.activations import Activation, GroupSoftmax, group_log_sums
from balms_det.losses.elements import (
    Reduction,
    at_least_float32,
    check_inputs,
    ranks_within,
    reduce_losses,
)
from balms_det.losses.loss import Loss, State, TrainingClasses
from balms_det.options import AT_LEAST_0, Options, Range, option


def instance_count_groups(
    class_counts: Tensor, boundaries: Sequence[int] = (10, 100, 1000)
) -> Tensor:
    """Return the groups of :func:`group_softmax_loss`: classes of similar counts.

    Args:
        class_counts: (K,) training counts; the authors count instances.
        boundaries: ascending, the least counts of all groups but the first.

    Returns:
        (K,) int64 in [0, len(boundaries)].
    """
    limits = torch.tensor(boundaries, dtype=torch.float64, device=class_counts.device)
    return torch.bucketize(class_counts.to(torch.float64), limits, right=True)


def group_softmax_loss(
    logits: Tensor,
    gt_classes: Tensor,
    class_groups: Tensor,
    *,
    beta: float = 8.0,
    draws: Tensor | None = None,
    reduction: Reduction = "proposals",
) -> Tensor:
    """Balanced Group Softmax (BAGS, arXiv:2006.10408; code: FishYuLi/BalancedGroupSoftmax).

    One softmax tells objects from the background; each of G groups of classes has a softmax over
    its classes and "others". The loss is the sum of their cross-entropies. The first is averaged
    over all rows; a group's over the rows of its classes, and at random `beta` times as many
    others, rounded down, if there are so many. A group without a row in the batch has no loss.

    Args:
        logits: (R, K + G + 2): the classes, the groups' "others", object, background. (The authors
            order them by group.)
        gt_classes: (R,) in [0, K].
        class_groups: (K,) int64 in [0, G), from :func:`instance_count_groups`.
        beta: 0 or more.
        draws: (R, G); of the others of a group, those with the least draws are chosen.
        reduction: as in :func:`~balms_det.losses.softmax_loss`. As rows of different softmaxes are
            averaged over different numbers of rows, a row's loss is what its share of the averages
            would have to be for the "proposals" reduction to give their sum.
    """
    check_inputs(logits, gt_classes)
    logits = at_least_float32(logits)
    num_rows, num_classes = len(logits), len(class_groups)
    num_groups = logits.shape[1] - num_classes - 2
    classes, others, objectness = torch.split(logits, [num_classes, num_groups, 2], dim=1)
    is_background = gt_classes == num_classes
    rows = F.cross_entropy(objectness, is_background.long(), reduction="none")

    row_groups = F.pad(class_groups, (0, 1), value=-1)[gt_classes]
    is_member = row_groups[:, None] == torch.arange(num_groups, device=logits.device)
    y = gt_classes.clamp(max=num_classes - 1)  # of background rows, which are no group's members
    true_logits = torch.where(is_member, classes.gather(1, y[:, None]), others)
    group_losses = group_log_sums(classes, others, class_groups) - true_logits

    if draws is None:
        draws = torch.rand(num_rows, num_groups, device=logits.device)
    num_others = (is_member.sum(0).double() * beta).floor()
    counts = is_member | (ranks_within(~is_member, draws) < num_others)
    share = num_rows * counts.to(logits) / counts.sum(0).clamp(min=1)
    return reduce_losses(rows + (share * group_losses).sum(1), reduction)


@dataclass(frozen=True)
class BAGSOptions(Options):
    """Options of :class:`BAGS`."""

    boundaries: tuple[int, ...] = option(
        "BAGS.BOUNDARIES",
        (10, 100, 1000),
        "Least counts of every group of classes but the first, ascending.",
        allowed=Range(
            lambda limits: all(a < b for a, b in itertools.pairwise((0, *limits))),
            "ascending counts, more than 0",
        ),
        source="arXiv:2006.10408",
    )
    beta: float = option(
        "BAGS.BETA",
        8.0,
        "Number of RoIs outside a group that train it, for each RoI inside.",
        allowed=AT_LEAST_0,
        source="arXiv:2006.10408",
    )


class BAGS(Loss):
    """:func:`group_softmax_loss` with the groups of a training set.

    The groups belong to the activation, which a checkpoint keeps: with those of a checkpoint the
    loss trains as inference predicts.
    """

    name = "bags"
    options = BAGSOptions
    needs_stats = True

    def __init__(
        self,
        counts: Tensor,
        *,
        boundaries: Sequence[int] = BAGSOptions.boundaries,
        beta: float = BAGSOptions.beta,
    ) -> None:
        """
        Args:
            counts: (K,) training counts; the authors count instances.
            boundaries: as of :func:`instance_count_groups`.
            beta: as of :func:`group_softmax_loss`.
        """
        self.options(boundaries=tuple(boundaries), beta=beta)
        groups = instance_count_groups(counts, boundaries)
        super().__init__(GroupSoftmax(groups, len(boundaries) + 1))
        self._beta = beta

    @classmethod
    def arguments(cls, training: TrainingClasses) -> dict[str, Any]:
        return {"counts": training.counts}

    @classmethod
    def activation_of(cls, options: Options, num_classes: int) -> Activation:
        assert isinstance(options, BAGSOptions)
        unknown = torch.full((num_classes,), -1)
        return GroupSoftmax(unknown, len(options.boundaries) + 1)

    def elements(self, logits: Tensor, gt_classes: Tensor, state: State) -> Tensor:
        activation = self.activation
        assert isinstance(activation, GroupSoftmax)
        return group_softmax_loss(
            logits, gt_classes, activation.class_groups, beta=self._beta, reduction="none"
        )
