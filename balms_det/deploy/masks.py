"""From the mask head's small masks to those of the image, in NumPy."""

import numpy as np

_THRESHOLD = 0.5


def paste_mask(probs: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return the (height, width) bool mask of an instance: where its probability is 0.5 or more.

    Between the centres of its cells the small mask is interpolated bilinearly, outside of it is
    zero, as Detectron2's paste_masks_in_image has it. Along an axis this is a product with a
    matrix, so that the whole is a product of three.

    Args:
        probs: (M, M) probabilities in the box.
        box: (4,), x1 y1 x2 y2 in pixels of the image.
        image_size: (height, width).
    """
    height, width = image_size
    mask = np.zeros((height, width), dtype=bool)
    # A pixel beyond the box may still be as near to a cell's centre as to zero.
    left, top = np.maximum(np.floor(box[:2]) - 1, 0).astype(int)
    right = min(int(np.ceil(box[2])) + 1, width)
    bottom = min(int(np.ceil(box[3])) + 1, height)
    columns = _weights(left, right, box[0], box[2], probs.shape[1])
    rows = _weights(top, bottom, box[1], box[3], probs.shape[0])
    mask[top:bottom, left:right] = rows @ probs @ columns.T >= _THRESHOLD
    return mask


def _weights(start: int, stop: int, low: float, high: float, num_cells: int) -> np.ndarray:
    """Return (P, M) weights of M cells between `low` and `high` at the pixels of a range."""
    pixels = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    position = (pixels - low) / (high - low) * num_cells - np.float32(0.5)  # in cells
    distance = np.abs(position[:, None] - np.arange(num_cells, dtype=np.float32))
    weights: np.ndarray = (1 - distance).clip(min=0)
    return weights
