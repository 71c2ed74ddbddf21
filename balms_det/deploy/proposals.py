"""From the RPN's outputs to proposals, in NumPy, as Detectron2 has them."""

from collections.abc import Sequence

import numpy as np

from balms_det.deploy.boxes import are_larger, clip, decode
from balms_det.deploy.description import Proposals
from balms_det.deploy.suppression import at_least_best, class_wise_nms


def find_proposals(
    objectness: Sequence[np.ndarray],
    deltas: Sequence[np.ndarray],
    image_size: tuple[int, int],
    options: Proposals,
) -> np.ndarray:
    """Return the (R, 4) proposals of one image, the best first.

    Of each level the best anchors are decoded and clipped, and suppress one another; the best of
    all levels remain.

    Args:
        objectness: for each level (H, W, A) logits.
        deltas: for each level (H, W, A, 4).
        image_size: (height, width) without padding.
    """
    boxes, scores, levels = [], [], []
    for level, (logits, level_deltas) in enumerate(zip(objectness, deltas, strict=True)):
        flat = logits.ravel()
        best = at_least_best(flat, options.pre_nms_topk)[: options.pre_nms_topk]
        anchors = _anchors(best, logits.shape, level, options)
        boxes.append(decode(level_deltas.reshape(-1, 4)[best], anchors, options.coder))
        scores.append(flat[best])
        levels.append(np.full(len(best), level))
    all_boxes, all_scores = np.concatenate(boxes), np.concatenate(scores)
    valid = np.isfinite(all_boxes).all(axis=1) & np.isfinite(all_scores)
    all_boxes = clip(all_boxes, image_size)
    valid &= are_larger(all_boxes, options.min_box_size)
    order = np.flatnonzero(valid)
    order = order[np.argsort(-all_scores[order], kind="stable")]
    all_boxes = all_boxes[order]
    keep = class_wise_nms(
        all_boxes,
        np.concatenate(levels)[order],
        options.nms_thresh,
    )
    proposals: np.ndarray = all_boxes[keep[: options.post_nms_topk]]
    return proposals


def _anchors(
    index: np.ndarray, grid: tuple[int, ...], level: int, options: Proposals
) -> np.ndarray:
    """Return the (N, 4) anchors at flat indices of a grid (H, W, A)."""
    y, x, cell = np.unravel_index(index, grid)
    shifts = np.stack([x, y, x, y], axis=1).astype(np.float32) + np.float32(options.anchor_offset)
    cells = np.array(options.cell_anchors[level], np.float32)
    anchors: np.ndarray = shifts * np.float32(options.strides[level]) + cells[cell]
    return anchors
