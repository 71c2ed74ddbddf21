"""Shapes, dtypes and reduction that all losses share."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from balms_det.runtime.errors import InputError

Reduction = Literal["proposals", "sum", "none"]


def check_inputs(
    logits: Tensor,
    gt_classes: Tensor,
    *,
    gt_name: str = "gt_classes",
    **lengths: tuple[Tensor, int],
) -> None:
    """Refuse arguments of a loss whose shapes or dtypes do not go together.

    Only shapes and dtypes are looked at: values on a GPU would have to be waited for.

    Args:
        logits: (R, C).
        gt_classes: (R,) integers.
        gt_name: name of the argument `gt_classes`.
        lengths: by the name of an argument with an entry for each class, the argument and the
            difference of its length from C.

    Raises:
        InputError: names the argument, its shape, and the expected one.
    """
    if logits.ndim != 2:
        raise InputError(f"logits has the shape {tuple(logits.shape)}, expected (R, classes)")
    rows, columns = logits.shape
    if gt_classes.shape != (rows,):
        raise InputError(
            f"{gt_name} has the shape {tuple(gt_classes.shape)}, expected ({rows},): the class of "
            "each row of logits"
        )
    if gt_classes.is_floating_point() or gt_classes.is_complex():
        raise InputError(f"{gt_name} has the dtype {gt_classes.dtype}, expected integers")
    for name, (values, difference) in lengths.items():
        if values.shape != (columns + difference,):
            raise InputError(
                f"{name} has the shape {tuple(values.shape)}, expected ({columns + difference},), "
                f"because logits has {columns} columns"
            )


def check_counts(class_counts: Tensor, *, name: str = "class_counts") -> None:
    """Refuse training counts that are not one number of 0 or more for each class.

    Raises:
        InputError: names the argument, what it is, and what is expected.
    """
    if class_counts.ndim != 1 or not len(class_counts):
        raise InputError(
            f"{name} has the shape {tuple(class_counts.shape)}, expected (K,): the training count "
            "of each class"
        )
    if class_counts.is_cuda:
        return  # its values would have to be waited for
    if not bool((class_counts >= 0).all()) or not bool(class_counts.isfinite().all()):
        raise InputError(
            f"{name} has values that are negative, infinite or not numbers; give training counts"
        )


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
