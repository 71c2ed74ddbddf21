"""The confusion matrix of a data set whose images judge only some of the classes, as LVIS's do.

An image of LVIS judges the classes that are annotated in it and those that were verified to be
absent from it (Gupta et al., arXiv:1908.03195). A detection of any other class may be right or
wrong, and so it is neither a confusion nor a false positive here, as in AP.

Shapes: K classes, in the order of their category ids; index K is the background. D detections and
G objects are those of all images.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.scoring import class_indices, counted
from balms_det.runtime.garbage_collection import gc_disabled


@dataclass(frozen=True)
class Confusion:
    """How often objects of each class were detected as each class.

    Every object is in one cell of :attr:`matrix`, and every detection that is judged is in one cell
    of either array.

    Attributes:
        matrix: int64 (K + 1, K + 1); row: class of the object, column: class of the detection. The
            diagonal has the objects that are found, column K those that are missed, and row K the
            false positives that lie on no object.
        repeated: int64 (K, K); false positives on an object that another detection has taken. The
            diagonal has duplicates.
    """

    matrix: np.ndarray
    repeated: np.ndarray

    def between(self, labels: Sequence[str], order: Sequence[str]) -> np.ndarray:
        """Return the matrix between groups of classes: int64 (len(order) + 1,) twice.

        The diagonal counts all objects that are detected as a class of their own group, also as a
        wrong one.

        Args:
            labels: (K,) the group of each class.
            order: the groups; the background comes after them.
        """
        index = np.array([*(order.index(label) for label in labels), len(order)])
        result = np.zeros((len(order) + 1, len(order) + 1), np.int64)
        np.add.at(result, (index[:, None], index[None, :]), self.matrix)
        return result


@gc_disabled()
def federated_confusion(
    ground_truth: AnnotationFile,
    predictions: Sequence[ImagePredictions],
    task: str = "bbox",
    *,
    iou_threshold: float = 0.5,
    min_score: float = 0.0,
    max_dets: int = 300,
) -> Confusion:
    """Match the detections of each image to its objects, and count.

    1. The `max_dets` best detections of an image count, down to `min_score`, of classes that are
       annotated in the image or verified to be absent.
    2. By descending score, each takes the free object of its own class that it overlaps most, as
       in AP at this threshold. Detections that took none are ignored where the image's annotations
       of their class are not exhaustive, or where they lie on a crowd of their class.
    3. By descending score, each of the others takes the free object of another class that it
       overlaps most: a confusion.
    4. What is left is repeated where it overlaps an object, and otherwise on the background.

    Objects and detections without area are left out.

    Args:
        ground_truth: with LVIS's federated fields, as
            :func:`balms_det.evaluation.ground_truth.read_ground_truth` checks them.
        predictions: of any of the images.
        task: "bbox" compares boxes, "segm" masks.
        iou_threshold: in (0, 1]; what overlaps less does not match.
        min_score: of the detections.
        max_dets: of an image, of all classes together.
    """
    category_ids = np.array([category["id"] for category in ground_truth.categories], np.int64)
    objects, crowds = _objects_by_image(ground_truth)
    by_image = {prediction.image_id: prediction for prediction in predictions}
    predicted = [by_image.get(image["id"]) for image in ground_truth.images]
    judged = [
        [annotation["category_id"] for annotation in objects[image["id"]]]
        + list(image["neg_category_ids"])
        for image in ground_truth.images
    ]
    kept = np.split(
        counted(predicted, judged, category_ids, max_dets),
        np.cumsum([0 if p is None else len(p.scores) for p in predicted])[:-1],
    )
    matches = _Matches(category_ids, _Overlap(ground_truth, task), iou_threshold)
    for image, prediction, mask in zip(ground_truth.images, predicted, kept, strict=True):
        here = objects[image["id"]]
        if prediction is not None:
            rows = np.flatnonzero(mask & (prediction.scores >= min_score))
            rows = rows[np.argsort(-prediction.scores[rows], kind="stable")]
            matches.add_detections(prediction.select(rows), image, here, crowds[image["id"]])
        matches.add_objects(here)
    return matches.count()


def _objects_by_image(
    ground_truth: AnnotationFile,
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, list[dict[str, Any]]]]:
    """Return the objects and the crowds of each image; LVIS has no crowds."""
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    crowds: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in ground_truth.annotations:
        if annotation["area"] > 0:
            is_crowd = ground_truth.format == "coco" and annotation.get("iscrowd", 0)
            (crowds if is_crowd else objects)[annotation["image_id"]].append(annotation)
    return objects, crowds


class _Overlap:
    """Intersection over union of detections and annotations, of boxes or masks."""

    def __init__(self, ground_truth: AnnotationFile, task: str) -> None:
        self._task = task
        self._size = {
            image["id"]: (image["height"], image["width"]) for image in ground_truth.images
        }

    def has_area(self, detections: ImagePredictions) -> np.ndarray:
        """Return (D,) bool."""
        if self._task == "segm":
            masks = detections.rles()
            return np.asarray(hotcoco.mask.area(masks) if masks else [], np.int64) > 0
        return np.asarray((detections.boxes[:, 2:] > 0).all(axis=1))

    def of(
        self,
        detections: ImagePredictions,
        annotations: Sequence[dict[str, Any]],
        *,
        crowds: bool = False,
    ) -> np.ndarray:
        """Return (D, G); for crowds, the part of the detection that is on the crowd."""
        if not len(detections.scores) or not annotations:
            return np.zeros((len(detections.scores), len(annotations)))
        crowd = np.full(len(annotations), crowds)
        if self._task == "segm":
            masks = [self._mask(annotation) for annotation in annotations]
            return hotcoco.primitives.mask_iou(detections.rles(), masks, crowd)
        boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64)
        return hotcoco.primitives.bbox_iou(detections.boxes.astype(np.float64), boxes, crowd)

    def _mask(self, annotation: dict[str, Any]) -> dict[str, Any]:
        segmentation = annotation["segmentation"]
        codes = hotcoco.mask.fr_py_objects(segmentation, *self._size[annotation["image_id"]])
        return hotcoco.mask.merge(codes) if isinstance(codes, list) else codes


class _Matches:
    """The pairs of a detection and an object of its image that overlap enough, of all images."""

    def __init__(self, category_ids: np.ndarray, overlap: _Overlap, iou_threshold: float) -> None:
        self._category_ids = category_ids
        self._overlap = overlap
        self._threshold = min(iou_threshold, 1 - 1e-10)  # as pycocotools has it
        self._num_detections = self._num_objects = 0
        none = np.zeros(0, np.int64)
        self._pairs = [(none, none, np.zeros(0))]  # of each image: detection, object, overlap
        self._object_classes, self._detection_classes = [none], [none]
        self._excused = [np.zeros(0, bool)]

    def add_detections(
        self,
        detections: ImagePredictions,
        image: dict[str, Any],
        objects: Sequence[dict[str, Any]],
        crowds: Sequence[dict[str, Any]],
    ) -> None:
        """Add the judged detections of an image, by descending scores, before its objects."""
        detections = detections.select(np.flatnonzero(self._overlap.has_area(detections)))
        ious = self._overlap.of(detections, objects)
        row, column = np.nonzero(ious >= self._threshold)
        self._pairs.append(
            (row + self._num_detections, column + self._num_objects, ious[row, column])
        )
        excused = np.isin(detections.category_ids, image["not_exhaustive_category_ids"])
        on_crowd = self._overlap.of(detections, crowds, crowds=True) >= self._threshold
        crowd_ids = np.array([crowd["category_id"] for crowd in crowds], np.int64)
        excused |= (on_crowd & (detections.category_ids[:, None] == crowd_ids)).any(axis=1)
        self._excused.append(excused)
        self._detection_classes.append(class_indices(detections.category_ids, self._category_ids))
        self._num_detections += len(detections.scores)

    def add_objects(self, objects: Sequence[dict[str, Any]]) -> None:
        ids = np.array([annotation["category_id"] for annotation in objects], np.int64)
        self._object_classes.append(class_indices(ids, self._category_ids))
        self._num_objects += len(objects)

    def count(self) -> Confusion:
        """Match (steps 2 to 4), and count."""
        detection, taken, iou = (np.concatenate(x) for x in zip(*self._pairs, strict=True))
        # As in pycocotools, the later one of two objects that overlap equally.
        order = np.lexsort((-taken, -iou, detection))
        detection, taken = detection[order], taken[order]
        object_classes = np.concatenate(self._object_classes)
        detection_classes = np.concatenate(self._detection_classes)
        of_detection = np.full(len(detection_classes), -1)
        is_free = np.ones(len(object_classes), dtype=bool)
        same = object_classes[taken] == detection_classes[detection]
        _take(detection[same], taken[same], of_detection, is_free)
        ignored = np.concatenate(self._excused) & (of_detection < 0)
        other = ~same & ~ignored[detection]
        _take(detection[other], taken[other], of_detection, is_free)

        num_classes = len(self._category_ids)
        matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
        matched = np.flatnonzero(of_detection >= 0)
        rows = object_classes[of_detection[matched]]
        np.add.at(matrix, (rows, detection_classes[matched]), 1)
        matrix[:num_classes, num_classes] = np.bincount(
            object_classes[is_free], minlength=num_classes
        )
        left = (of_detection < 0) & ~ignored
        overlapping, first = np.unique(detection, return_index=True)
        most = taken[first]  # the object that each of them overlaps most
        on_object = left[overlapping]
        repeated = np.zeros((num_classes, num_classes), np.int64)
        columns = detection_classes[overlapping[on_object]]
        np.add.at(repeated, (object_classes[most[on_object]], columns), 1)
        left[overlapping] = False
        matrix[num_classes, :num_classes] = np.bincount(
            detection_classes[left], minlength=num_classes
        )
        return Confusion(matrix, repeated)


def _take(
    detection: np.ndarray, taken: np.ndarray, of_detection: np.ndarray, is_free: np.ndarray
) -> None:
    """Let each detection, in their order, take the first object that is free; changes both arrays.

    Args:
        detection: int64 (P,), ascending; of the pairs that may match.
        taken: int64 (P,); their objects, for one detection by descending overlap.
        of_detection: int64 (D,), the object that each detection has taken, -1 for none.
        is_free: bool (G,).
    """
    possible = (of_detection[detection] < 0) & is_free[taken]
    detection, taken = detection[possible], taken[possible]
    free, last = set(taken.tolist()), -1
    for row, column in zip(detection.tolist(), taken.tolist(), strict=True):
        if row != last and column in free:
            last = row
            free.remove(column)
            of_detection[row] = column
    is_free[of_detection[of_detection >= 0]] = False
