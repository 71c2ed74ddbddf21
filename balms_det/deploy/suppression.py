"""Non-maximum suppression within classes, in NumPy.

Boxes are (N, 4), x1 y1 x2 y2, the best-scored first.
"""

from collections.abc import Callable

import numpy as np

# Classes with more candidates are left to `exact_nms`, for pairs grow with the square.
_SMALL_CLASS = 32
# And so are overlaps this near to the threshold: torchvision's compilers may round them otherwise.
TOO_CLOSE = 1e-5
# Boxes whose overlaps with all others are computed at once.
_BLOCK = 256


def class_wise_nms(
    boxes: np.ndarray,
    classes: np.ndarray,
    nms_thresh: float,
    exact_nms: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return positions that survive suppression within their class, in the given order.

    Args:
        boxes: (N, 4), the best-scored first.
        classes: (N,).
        nms_thresh: a box that overlaps a better one of its class by a larger IoU is dropped.
        exact_nms: of the members of one class, those that survive by its reckoning; positions in
            and out. By default :func:`nms`.
    """
    if exact_nms is None:

        def exact_nms(members: np.ndarray) -> np.ndarray:
            survivors: np.ndarray = members[nms(boxes[members], nms_thresh)]
            return survivors

    order = classes.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(classes[order], prepend=-1))
    sizes = np.diff(starts, append=len(order))
    start, size = starts.repeat(sizes), sizes.repeat(sizes)  # of the class of each
    # Every member with each better one of its class, for classes with few members.
    betters = np.where(size <= _SMALL_CLASS, np.arange(len(order)) - start, 0)
    worse = np.arange(len(order)).repeat(betters)
    better = np.arange(len(worse)) - (betters.cumsum() - betters - start).repeat(betters)
    iou = overlaps(boxes[order[better]], boxes[order[worse]])
    suppresses = iou > nms_thresh
    survives = np.ones(len(order), dtype=bool)
    for i, j in zip(better[suppresses].tolist(), worse[suppresses].tolist(), strict=True):
        # They come by their worse member, so that what becomes of the better one is settled.
        if survives[i]:
            survives[j] = False
    unclear = start[better[np.abs(iou - nms_thresh) < TOO_CLOSE]]
    for at in np.union1d(starts[sizes > _SMALL_CLASS], unclear):
        members = order[at : at + size[at]]
        survives[at : at + size[at]] = np.isin(members, exact_nms(members))
    return np.sort(order[survives])


def nms(boxes: np.ndarray, nms_thresh: float) -> np.ndarray:
    """Return positions that survive suppression among (N, 4) boxes of one class, in order."""
    boxes = boxes.astype(np.float32)
    candidates, kept = np.arange(len(boxes)), []
    while len(candidates):
        block = candidates[:_BLOCK]
        iou = overlaps(boxes[block][:, None], boxes[candidates][None])
        spares = ~(iou > nms_thresh)
        survives = np.ones(len(candidates), dtype=bool)
        for i in range(len(block)):
            if survives[i]:
                survives[i + 1 :] &= spares[i, i + 1 :]
        kept.append(block[survives[:_BLOCK]])
        candidates = candidates[_BLOCK:][survives[_BLOCK:]]
    return np.concatenate(kept) if kept else candidates


def at_least_best(values: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` largest of (N,) values and of all that tie with the least
    of them, descending; of equal ones the first comes first. `count` is 1 or more, or N."""
    index = np.arange(len(values))
    if count < len(values):
        index = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return index[np.argsort(-values[index], kind="stable")]


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes (..., 4) with others that broadcast with them; NaN where both are
    empty."""
    boxes, others = boxes.astype(np.float32), others.astype(np.float32)
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    left_, top_, right_, bottom_ = np.moveaxis(others, -1, 0)
    widths = np.minimum(right, right_) - np.maximum(left, left_)
    heights = np.minimum(bottom, bottom_) - np.maximum(top, top_)
    intersection = widths.clip(min=0) * heights.clip(min=0)
    areas = (right - left) * (bottom - top), (right_ - left_) * (bottom_ - top_)
    with np.errstate(invalid="ignore"):
        iou: np.ndarray = intersection / (areas[0] + areas[1] - intersection)
    return iou
