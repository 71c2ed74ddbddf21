"""Arithmetic on boxes, in NumPy and float32, as Detectron2 has it.

Boxes are (N, 4), x1 y1 x2 y2 in pixels.
"""

import numpy as np

from balms_det.deploy.description import BoxCoder, Levels


def decode(deltas: np.ndarray, boxes: np.ndarray, coder: BoxCoder) -> np.ndarray:
    """Return `boxes` (N, 4) moved by `deltas` (N, 4)."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    centers = boxes[:, :2] + np.float32(0.5) * sizes
    scaled = deltas / np.array(coder.weights, np.float32)
    centers = scaled[:, :2] * sizes + centers
    sizes = np.exp(np.minimum(scaled[:, 2:], np.float32(coder.scale_clamp))) * sizes
    half = np.float32(0.5) * sizes
    return np.concatenate([centers - half, centers + half], axis=1)


def clip(boxes: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return the parts of `boxes` inside an image of (height, width)."""
    height, width = image_size
    return boxes.clip(0, np.array([width, height, width, height], np.float32))


def are_larger(boxes: np.ndarray, size: float) -> np.ndarray:
    """Return (N,) bool, whether boxes are both wider and higher than `size`."""
    larger: np.ndarray = (boxes[:, 2:] - boxes[:, :2] > size).all(axis=1)
    return larger


def by_level(boxes: np.ndarray, levels: Levels) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the (N,) order of `boxes` by the feature map they are pooled from, and the boxes of
    each map."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    relative = np.sqrt(areas) / np.float32(levels.canonical_size) + np.float32(1e-8)
    num_levels = len(levels.features)
    level = np.floor(np.float32(levels.canonical_level) + np.log2(relative)) - levels.min_level
    level = level.clip(0, num_levels - 1).astype(np.int64)
    order = level.argsort(kind="stable")
    ends = np.cumsum(np.bincount(level, minlength=num_levels))[:-1]
    return order, np.split(boxes[order], ends)
