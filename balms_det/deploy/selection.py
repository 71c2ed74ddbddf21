"""From class probabilities and boxes to the best detections, in NumPy.

The walk from the best-scored candidate down, in growing chunks, is that of
:func:`balms_det.modeling.inference.select_detections`, where its reason stands.

Shapes: R RoIs, K classes, N detections.
"""

from collections.abc import Callable

import numpy as np

from balms_det.deploy.description import Boxes
from balms_det.deploy.suppression import at_least_best, class_wise_nms

# Most candidates survive suppression, so that a few times as many as are wanted suffice.
_FIRST_CHUNK = 4


def select(
    scores: np.ndarray,
    boxes_at: Callable[[np.ndarray, np.ndarray], np.ndarray],
    options: Boxes,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and classes, each (N,), of the detections of one image, the best first.

    Args:
        scores: (R, K) probabilities, finite.
        boxes_at: returns (N, 4) boxes, clipped to the image, for rows and classes.
    """
    flat = scores.ravel()
    candidates = np.flatnonzero(flat > options.score_thresh)
    values = flat[candidates]
    chunk = len(values) if options.topk < 0 else max(1, _FIRST_CHUNK * options.topk)
    wanted = len(values) if options.topk < 0 else options.topk
    while True:
        index = candidates[at_least_best(values, chunk)]
        rows, classes = np.divmod(index, scores.shape[1])
        boxes = boxes_at(rows, classes)
        keep = class_wise_nms(boxes, classes, options.nms_thresh)
        if len(keep) >= wanted or len(index) == len(values):
            return rows[keep[:wanted]], classes[keep[:wanted]]
        chunk *= _FIRST_CHUNK
