"""Shapes, dtypes and reduction that all losses share."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["proposals", "sum", "none"]


def one_hot_targets(gt_classes: Tensor, logits: Tensor) -> Tensor:
    """Return the (R, K) targets of a sigmoid loss in the dtype of `logits`; background rows are
    zero."""
    targets = logits.new_zeros(logits.shape[0], logits.shape[1] + 1)
    targets.scatter_(1, gt_classes[:, None], 1)
    return targets[:, :-1]


def reduce_losses(losses: Tensor, reduction: Reduction) -> Tensor:
    """Reduce row losses (R,) or elementwise losses (R, K).

    "proposals" divides by the number of rows, not of foreground rows, for the reason that
    Detectron2 gives for its box regression loss: every foreground RoI weighs the same whether its
    batch holds one or a hundred.
    """
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.sum() / max(losses.shape[0], 1)


def at_least_float32(logits: Tensor) -> Tensor:
    """Return half precisions as float32, and others as they are."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def accumulated(state: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the next running state of a loss that adds up what it has seen."""
    return {name: state[name] + sums[name] for name in state}


def ranks_within(candidates: Tensor, draws: Tensor) -> Tensor:
    """Return the rank of each draw among the candidates of its column, from 0; others rank behind.

    Args:
        candidates: (R, G) bool.
        draws: (R, G).
    """
    return draws.masked_fill(~candidates, torch.inf).argsort(dim=0).argsort(dim=0)
