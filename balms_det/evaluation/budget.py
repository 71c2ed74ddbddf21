"""AP under other budgets of detections, from one set of stored predictions.

LVIS counts 300 detections of an image, of all classes together. Per-class AP ranks the detections
of one class only, so how classes compare with one another matters through that cap, and a method
can gain by filling it with rare classes. Hence the same predictions are also scored under other
caps, and with a fixed budget for each class and none for the image: AP-Fixed (Dave et al.,
"Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details", arXiv:2102.01066).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from balms_det.evaluation.lvis import LVISEvaluator
from balms_det.evaluation.predictions import ImagePredictions

# More than there are in any image.
_ALL = 1_000_000


def score_with_caps(
    dataset_name: str, predictions: Sequence[ImagePredictions], caps: Iterable[int]
) -> dict[int, dict[str, Any]]:
    """Score each image's best detections, for several caps.

    That is what a model with ``TEST.DETECTIONS_PER_IMAGE`` at the cap would score, because
    Detectron2 keeps the best detections, too, after everything else.

    Args:
        dataset_name: a registered set.
        predictions: in the order of their image ids, at least as many of an image as the caps.
        caps: each 1 or more.

    Returns:
        cap -> task -> metric in percent; and under "per_class" the evaluator's records.
    """
    return {cap: _score(dataset_name, predictions, cap) for cap in caps}


def score_with_class_budget(
    dataset_name: str, predictions: Sequence[ImagePredictions], budget: int
) -> dict[str, Any]:
    """Return aP-Fixed: score the best `budget` detections of each class over the whole data set.

    Returns:
        As one value of :func:`score_with_caps`.
    """
    return _score(dataset_name, best_of_each_class(predictions, budget), _ALL)


def best_of_each_class(
    predictions: Sequence[ImagePredictions], budget: int
) -> list[ImagePredictions]:
    """Return the `budget` best-scored detections of each class over all images, ties in their
    order."""
    if not predictions:
        return []
    sizes = [len(prediction.scores) for prediction in predictions]
    scores = np.concatenate([prediction.scores for prediction in predictions])
    category_ids = np.concatenate([prediction.category_ids for prediction in predictions])
    order = np.lexsort((-scores, category_ids))  # stable: class by class, the best first
    first_of_class = np.searchsorted(category_ids[order], category_ids[order])
    kept = np.zeros(len(scores), dtype=bool)
    kept[order] = np.arange(len(scores)) - first_of_class < budget
    return [
        prediction.select(np.flatnonzero(mask))
        for prediction, mask in zip(predictions, np.split(kept, np.cumsum(sizes)[:-1]), strict=True)
    ]


def best_of_each_image(predictions: Sequence[ImagePredictions], cap: int) -> list[ImagePredictions]:
    """Return the `cap` best-scored detections of each image, ties in their order."""
    return [
        prediction.select(np.sort(np.argsort(-prediction.scores, kind="stable")[:cap]))
        for prediction in predictions
    ]


def _score(dataset_name: str, predictions: Sequence[ImagePredictions], cap: int) -> dict[str, Any]:
    evaluator = LVISEvaluator(dataset_name, distributed=False, max_dets_per_image=cap)
    return {**evaluator.score(predictions), "per_class": evaluator.per_class}
