"""The precision of LVIS's and COCO's metrics by hotcoco, and the metrics that follow from it.

Shapes: T IoU thresholds, P recall points, K classes (in the order of their category ids), A area
ranges (all, small, medium, large).
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from balms_det.annotations.file import AnnotationFile
from balms_det.annotations.frequency_groups import GROUP_NAMES
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.runtime.garbage_collection import gc_disabled

# ``precision_of(ground_truth, predictions, task, max_dets)`` returns (T, P, K, A).
PrecisionOf = Callable[[AnnotationFile, Sequence[ImagePredictions], str, int], np.ndarray]

# Few enough that the dictionaries of a chunk are small beside all predictions.
_IMAGES_PER_CHUNK = 256


@gc_disabled()
def hotcoco_precision(
    ground_truth: AnnotationFile, predictions: Sequence[ImagePredictions], task: str, max_dets: int
) -> np.ndarray:
    """Return the precision (T, P, K, A), -1 where there is no ground truth, by hotcoco.

    A few images are scored at a time. The rules are those of the ground truth's format.

    COCO: `max_dets` caps the detections of a class in an image, an image judges all classes, and
    crowds are ignored.

    LVIS: `max_dets` caps the detections of an image. The cap and the federated rule (an image
    judges only classes that were verified to be present in it or absent from it) are applied before
    hotcoco sees a detection: with a thousand classes they leave a small part, and StreamingEval's
    own cap is per class. As in lvis-api, objects and detections without area are left out, and
    crowds are objects like others.
    """
    federated = ground_truth.format == "lvis"
    fields = ["id", "image_id", "category_id", "bbox", "area"]
    if not federated:
        fields.append("iscrowd")
    if task == "segm":
        fields.append("segmentation")
    category_ids = np.array([category["id"] for category in ground_truth.categories])
    annotations = defaultdict(list)
    for annotation in ground_truth.annotations:
        if annotation["area"] > 0 or not federated:
            annotations[annotation["image_id"]].append(annotation)
    detections = {prediction.image_id: prediction for prediction in predictions}

    params = hotcoco.Params(task)
    params.max_dets = [max_dets]
    evaluation = hotcoco.StreamingEval(
        ground_truth.categories, task, lvis_style=federated, params=params
    )
    for images in _chunks(ground_truth.images):
        present = [annotations[image["id"]] for image in images]
        predicted = [detections.get(image["id"]) for image in images]
        kept = None
        if federated:
            judged = [
                [annotation["category_id"] for annotation in objects] + image["neg_category_ids"]
                for image, objects in zip(images, present, strict=True)
            ]
            kept = _judged_detections(predicted, judged, category_ids, max_dets)
        rows, masks = _rows_and_masks(predicted, kept, task)
        evaluation.update(
            images,
            [{field: ann[field] for field in fields} for objects in present for ann in objects],
            rows,
            segmentation=masks if task == "segm" else None,
        )
    result = evaluation.finalize()
    result.accumulate()
    assert result.eval is not None
    precision: np.ndarray = result.eval["precision"]  # (T, P, K, A, 1): one cap on detections
    return precision[..., 0]


def _judged_detections(
    predicted: Sequence[ImagePredictions | None],
    judged: Sequence[Sequence[int]],
    category_ids: np.ndarray,
    max_dets: int,
) -> np.ndarray:
    """Return which detections of some images count, bool, one image after the other.

    Args:
        predicted: for each image, None where nothing was predicted.
        judged: for each image the ids of the categories that are judged in it.
        category_ids: int64 (K,), ascending.
        max_dets: of an image.
    """
    some = [(i, p) for i, p in enumerate(predicted) if p is not None and len(p.scores)]
    if not some:
        return np.empty(0, dtype=bool)
    sizes = [len(prediction.scores) for _, prediction in some]
    image = np.repeat([position for position, _ in some], sizes)
    scores = np.concatenate([prediction.scores for _, prediction in some])
    categories = np.concatenate([prediction.category_ids for _, prediction in some])

    # Sorted by image, then score; and so the detections of an image are where they were.
    order = np.lexsort((-scores, image))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = np.zeros(len(order), dtype=bool)
    kept[order[rank < max_dets]] = True
    is_judged = np.zeros((len(predicted), len(category_ids) + 1), dtype=bool)
    judged_in = np.repeat(np.arange(len(judged)), [len(ids) for ids in judged])
    judged_ids = np.fromiter(itertools.chain.from_iterable(judged), np.int64, len(judged_in))
    is_judged[judged_in, _class_indices(judged_ids, category_ids)] = True
    is_judged[:, -1] = False
    kept &= is_judged[image, _class_indices(categories, category_ids)]
    return kept


def _rows_and_masks(
    predicted: Sequence[ImagePredictions | None], kept: np.ndarray | None, task: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the detections of some images as hotcoco takes them.

    Args:
        predicted: for each image, None where nothing was predicted.
        kept: bool (D',), which of their detections count, by LVIS's rules; None where all do, by
            COCO's. Without an area detections do not count by LVIS's.
        task: "bbox" or "segm".

    Returns:
        float64 (D, 7): image id, box (XYWH), score, category id; and D masks, or none for boxes.
    """
    some = [p for p in predicted if p is not None and len(p.scores)]
    if not some:
        return np.empty((0, 7)), []
    sizes = [len(prediction.scores) for prediction in some]
    federated = kept is not None
    if kept is None:
        kept = np.ones(sum(sizes), dtype=bool)
    rows = np.empty((kept.sum(), 7))
    rows[:, 0] = np.repeat([prediction.image_id for prediction in some], sizes)[kept]
    rows[:, 1:5] = np.concatenate([prediction.boxes for prediction in some])[kept]
    rows[:, 5] = np.concatenate([prediction.scores for prediction in some])[kept]
    rows[:, 6] = np.concatenate([prediction.category_ids for prediction in some])[kept]
    masks: list[dict[str, Any]] = []
    if task == "segm":
        parts = np.split(kept, np.cumsum(sizes)[:-1])
        for prediction, part in zip(some, parts, strict=True):
            masks += prediction.rles(part)
        # Sizes are those of the masks. hotcoco takes them from the boxes, and uses these for
        # nothing else. (pycocotools' area() fails above 255 masks with NumPy 2.)
        rows[:, 1:5] = 0, 0, 0, 1
        rows[:, 3] = hotcoco.mask.area(masks)
    if not federated:
        return rows, masks
    has_area = rows[:, 3] * rows[:, 4] > 0
    return rows[has_area], list(itertools.compress(masks, has_area))


def _class_indices(ids: np.ndarray, category_ids: np.ndarray) -> np.ndarray:
    """Return the position of each id in the ascending `category_ids` (K,), K if it is absent."""
    index = np.searchsorted(category_ids, ids)
    known = category_ids[np.minimum(index, len(category_ids) - 1)] == ids
    return np.where(known, index, len(category_ids))


def _chunks(images: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(images), _IMAGES_PER_CHUNK):
        yield list(images[start : start + _IMAGES_PER_CHUNK])


def metrics(precision: np.ndarray, categories: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return Detectron2's nine metrics, in percent, from the precision (T, P, K, A)."""
    frequencies = np.array([category.get("frequency") for category in categories])
    all_sizes = precision[..., 0]
    selections = {
        "AP": all_sizes,
        "AP50": all_sizes[0],
        "AP75": all_sizes[5],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
        **{f"AP{group}": all_sizes[:, :, frequencies == group] for group in GROUP_NAMES},
    }
    return {name: _mean_percent(selection) for name, selection in selections.items()}


def _mean_percent(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return float(measured.mean() * 100) if measured.size else -100.0


def class_aps(precision: np.ndarray) -> list[float | None]:
    """Return the AP of each class in percent, None for classes without ground truth."""
    aps = (_mean_percent(precision[:, :, index, 0]) for index in range(precision.shape[2]))
    return [ap if ap >= 0 else None for ap in aps]


def class_records(
    categories: Sequence[Mapping[str, Any]], aps_of: Mapping[str, Sequence[float | None]]
) -> list[dict[str, Any]]:
    """Return a record for each class: its facts, and the AP under each key of `aps_of`."""
    return [
        {
            "category_id": category["id"],
            "name": category["name"],
            "frequency": category.get("frequency"),
            "image_count": category.get("image_count"),
            **{key: aps[index] for key, aps in aps_of.items()},
        }
        for index, category in enumerate(categories)
    ]
