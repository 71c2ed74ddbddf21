"""How evenly the boxes of each class spread over the image: their box-counting dimension.

FRACAL (arXiv:2410.11774) corrects scores with it. Shapes: A boxes, K classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from balms_det.annotations.class_pairs import IntArray

FloatArray = npt.NDArray[np.float64]

LARGEST_GRID = 64
# Values of Detectron2's BoxMode, which this package does not import: x1 y1 x2 y2 and x1 y1 w h.
_XYXY_ABS, _XYWH_ABS = 0, 1


def box_dimensions(
    class_index: IntArray,
    centers: FloatArray,
    num_classes: int,
    *,
    largest_grid: int = LARGEST_GRID,
) -> FloatArray:
    """Return the box-counting dimension of each class's box centres (arXiv:2410.11774, section 3).

    The dimension is the slope of the least-squares line through (log G, log N_G), where N_G is the
    number of cells of a G x G grid that hold a centre, and G = 1, 2, ... while G^2 is at most the
    number of the class's boxes. It is 1 for classes with fewer than four boxes, and at least 1.

    The authors' code drops centres on the far edges of the image; here they are in the last cell.

    Args:
        class_index: (A,) in [0, num_classes).
        centers: (A, 2) x and y, as fractions of the image's width and height.
        num_classes: K.
        largest_grid: the largest G. Authors' code: 64.

    Returns:
        (K,), 1 where the centres lie on a line or are few, near 2 where they fill the image.
    """
    counts = np.bincount(class_index, minlength=num_classes)
    # Classes by falling count: those that a grid is for, and their boxes, are then the first ones.
    by_count = np.argsort(-counts, kind="stable")
    rank = np.empty(num_classes, np.int64)
    rank[by_count] = np.arange(num_classes)
    order = np.argsort(rank[class_index], kind="stable")
    ranks, centers = rank[class_index][order], centers[order]
    sorted_counts = counts[by_count]
    log_grids = np.log(np.arange(1, largest_grid + 1))
    log_cells = np.zeros((num_classes, largest_grid))
    for grid in range(2, largest_grid + 1):
        members = np.searchsorted(-sorted_counts, -(grid**2), side="right")
        if members == 0:
            break
        boxes = sorted_counts[:members].sum()
        cells = np.clip((centers[:boxes] * grid).astype(np.int64), 0, grid - 1)
        filled = np.zeros(members * grid**2, bool)
        filled[(ranks[:boxes] * grid + cells[:, 1]) * grid + cells[:, 0]] = True
        log_cells[:members, grid - 1] = np.log(filled.reshape(members, -1).sum(axis=1))
    dimensions = np.ones(num_classes)
    grids = np.minimum(np.sqrt(sorted_counts).astype(np.int64), largest_grid)
    for place in range(np.searchsorted(-grids, -2, side="right")):
        used = slice(0, grids[place])
        deviations = log_grids[used] - log_grids[used].mean()
        slope = deviations @ log_cells[place, used] / (deviations @ deviations)
        dimensions[by_count[place]] = max(slope, 1.0)
    return dimensions


def centers_in_file(
    images: Iterable[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]
) -> FloatArray | None:
    """Return the (A, 2) box centres of annotations as an annotation file has them.

    Args:
        images: with "id", "width" and "height".
        annotations: with "image_id" and "bbox", x1 y1 w h in pixels.

    Returns:
        None where an image has no size, or a box is not four numbers.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    return _fractions(
        [annotation["bbox"] for annotation in annotations],
        [sizes[annotation["image_id"]] for annotation in annotations],
    )


def centers_in_dicts(dataset_dicts: Iterable[Mapping[str, Any]]) -> FloatArray | None:
    """Return the (A, 2) box centres of Detectron2's dataset dicts, without crowds, in their order.

    Returns:
        None where an image has no size, or an annotation no axis-aligned box in pixels.
    """
    boxes, sizes = [], []
    for record in dataset_dicts:
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0) != 0:
                continue
            box, mode = annotation.get("bbox"), annotation.get("bbox_mode")
            if box is None or mode not in (_XYXY_ABS, _XYWH_ABS) or len(box) != 4:
                return None
            x, y, right, below = box
            size = (right - x, below - y) if mode == _XYXY_ABS else (right, below)
            boxes.append([x, y, *size])
            sizes.append((record.get("width"), record.get("height")))
    return _fractions(boxes, sizes)


def _fractions(boxes: Sequence[Sequence[Any]], sizes: Sequence[Sequence[Any]]) -> FloatArray | None:
    """Return the centres of boxes x1 y1 w h as fractions of the images' sizes, or None."""
    try:
        corners = np.array(boxes, np.float64).reshape(-1, 4)
        whole = np.array(sizes, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        return None
    if len(corners) != len(whole) or not (whole > 0).all() or not np.isfinite(corners).all():
        return None
    fractions: FloatArray = (corners[:, :2] + corners[:, 2:] / 2) / whole
    return fractions
