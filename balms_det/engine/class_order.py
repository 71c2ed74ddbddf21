"""The classes of a checkpoint, put into the order of the model's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from balms_det.annotations.class_stats import ClassStats
from balms_det.runtime.errors import InputError

# Parameters with a row, or rows, for each class; and states, with any dimension of classes.
_LAYERS = re.compile(
    r"^(?:.*\.)?(?:box_predictor\.(?:\d+\.)?(?:cls_score|bbox_pred)|mask_head\.predictor)\."
)
_STATES = re.compile(r"^(?:.*\.)?box_predictor\.(?:\d+\.)?(?:criterion|calibration)\.")


def layers_of_classes(names: Sequence[str]) -> list[str]:
    """Return the names of the parameters that hold something for each class."""
    return [name for name in names if _LAYERS.match(name) or _STATES.match(name)]


def order_of_classes(theirs: ClassStats, ours: ClassStats, path: str) -> list[int] | None:
    """Return where each of our classes stands among a checkpoint's, None if all are in order.

    Args:
        theirs: of the checkpoint.
        ours: of the model, with as many classes.
        path: of the checkpoint, for the error.

    Raises:
        InputError: the classes are others; names the first.
    """
    if theirs.names == ours.names:
        return None
    position = {name: index for index, name in enumerate(theirs.names)}
    lacking = [name for name in ours.names if name not in position]
    if lacking or len(position) < len(theirs.names):
        name = lacking[0] if lacking else ours.names[0]
        raise InputError(
            f"{path}: the class {name!r} ({len(lacking)} such classes) is not one of the "
            f"checkpoint's, which has {theirs.names[ours.names.index(name)]!r} in its place; train "
            "on data with its classes, or set MODEL.LONG_TAIL.REINIT_MISMATCHED True to start the "
            "layers of the classes afresh"
        )
    return [position[name] for name in ours.names]


def reordered(state: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return a state dict with the classes in another order.

    Args:
        state: parameters and buffers by name.
        order: (K,) position in `state` of the class that goes first, second, ...
    """
    changed = dict(state)
    for name, value in state.items():
        if _LAYERS.match(name):
            changed[name] = _reordered(value, list(order), dimensions=1)
        elif _STATES.match(name):
            changed[name] = _reordered(value, list(order), dimensions=len(value.shape))
    return changed


def _reordered(value: Any, order: list[int], *, dimensions: int) -> Any:
    """Return a tensor with its classes in another order.

    Args:
        value: the tensor.
        order: (K,).
        dimensions: how many of its first dimensions may count classes. A dimension of 4 K counts
            sides of boxes, a smaller one of K or more counts classes, and behind them logits that
            are of no class: background, objectness, others of a group.
    """
    number = len(order)
    for dimension, size in enumerate(value.shape[:dimensions]):
        if size == 4 * number:
            rows = [4 * index + side for index in order for side in range(4)]
        elif number <= size < 4 * number:
            rows = [*order, *range(number, size)]
        else:
            continue
        value = value[(*[slice(None)] * dimension, rows)]
    return value
