"""The causes of one run's errors, by hotcoco: TIDE, calibration, and what matches.

Shapes: K classes, in the order of their category ids; D detections that count.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np

from balms_det.annotations.file import AnnotationFile
from balms_det.annotations.frequency_groups import GROUP_NAMES
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.scoring import judged_detections
from balms_det.report.average_precision import NO_CAP, class_cap
from balms_det.runtime.garbage_collection import gc_disabled

ALL_CLASSES = "all"
_ALL_SIZES = [[0.0, 1e10]]
_OUTSIDE = 1e12  # an area that is in no range of sizes


@dataclasses.dataclass(frozen=True)
class Matches:
    """Which detections and objects match at IoU 0.5, by hotcoco.

    Attributes:
        rows: int64 (D',), of :attr:`Scorer.rows`; detections that are ignored are left out.
        is_right: bool (D',).
        missed: ids of the annotations that no detection found.
    """

    rows: np.ndarray
    is_right: np.ndarray
    missed: list[int]


class Scorer:
    """A ground truth and the detections of one run that count on it, as hotcoco holds them.

    Attributes:
        rows: float64 (D, 7): image id, box (XYWH), score, category id. For masks the box is not
            that of the detection.
        group_of: category id -> "r", "c" or "f".
        base: the evaluation of all classes at IoU 0.5 to 0.95.
    """

    def __init__(
        self,
        truth: AnnotationFile,
        predictions: Sequence[ImagePredictions],
        task: str,
        image_cap: int | None,
    ) -> None:
        """
        Args:
            truth: with LVIS's fields, as :func:`balms_det.evaluation.federated.federated_view`
                returns it.
            predictions: of any of its images.
            task: "bbox" or "segm".
            image_cap: detections of an image that count; None for all.
        """
        self.task = task
        self.truth = truth
        self.image_cap = image_cap
        self._class_cap = class_cap(truth)
        self._category_ids = np.array([category["id"] for category in truth.categories], np.int64)
        self.group_of = {c["id"]: c["frequency"] for c in truth.categories}
        self._gt = _hotcoco_truth(truth, task)
        self.rows, self._dt = self._loaded(predictions)
        self.base = self._evaluated()

    @gc_disabled()
    def _loaded(self, predictions: Sequence[ImagePredictions]) -> tuple[np.ndarray, hotcoco.COCO]:
        by_image = {prediction.image_id: prediction for prediction in predictions}
        present: dict[int, list[int]] = defaultdict(list)
        for annotation in self.truth.annotations:
            if annotation["area"] > 0:
                present[annotation["image_id"]].append(annotation["category_id"])
        rows, masks = judged_detections(
            [by_image.get(image["id"]) for image in self.truth.images],
            [present[image["id"]] + image["neg_category_ids"] for image in self.truth.images],
            self._category_ids,
            self.task,
            NO_CAP if self.image_cap is None else self.image_cap,
        )
        segmentation: list[Any] | None = masks if self.task == "segm" else None
        return rows, self._gt.load_res(rows, segmentation=segmentation)

    def _evaluated(
        self,
        *,
        category_ids: Sequence[int] | None = None,
        only_half: bool = False,
        truth: hotcoco.COCO | None = None,
    ) -> hotcoco.COCOeval:
        """Return an evaluation that has been evaluated, and not accumulated.

        Args:
            category_ids: of the classes; default all.
            only_half: at IoU 0.5 alone; default at 0.5 to 0.95.
            truth: default all objects.
        """
        evaluation = hotcoco.LVISeval(truth or self._gt, self._dt, self.task)
        params = evaluation.params
        params.max_dets = [self._class_cap]
        params.area_rng, params.area_rng_lbl = _ALL_SIZES, ["all"]
        if only_half:
            params.iou_thrs = [0.5]
        if category_ids is not None:
            params.cat_ids = list(category_ids)
        evaluation.evaluate()
        return evaluation

    def classes_of(self, group: str) -> list[int]:
        """Return the ids of a group's classes."""
        return [i for i, other in self.group_of.items() if group in (other, ALL_CLASSES)]

    def groups(self) -> list[str]:
        """Return "all", and the groups that have an object."""
        present = {self.group_of[a["category_id"]] for a in self.truth.annotations if a["area"] > 0}
        return [ALL_CLASSES, *(group for group in GROUP_NAMES if group in present)]

    def tide(self) -> dict[str, dict[str, float]]:
        """Return TIDE's ΔAP in percentage points: group -> type of error -> how much its repair
        would add to the group's AP50; and the AP50 as "AP50".

        hotcoco averages over the classes that have objects inside the range of sizes. Objects of
        the other groups get an area outside, and so a group's part is exact, confusions with other
        groups included: weighted by their numbers of classes, the groups' parts add up to "all".
        """
        result = {}
        for group in self.groups():
            evaluation = self.base
            if group != ALL_CLASSES:
                truth = _hotcoco_truth(self.truth, self.task, set(self.classes_of(group)))
                evaluation = self._evaluated(only_half=True, truth=truth)
            errors = evaluation.tide_errors()
            changes = {name: 100 * value for name, value in errors["delta_ap"].items()}
            result[group] = {**changes, "AP50": 100 * errors["ap_base"]}
        return result

    def calibration(self, bins: int = 10) -> dict[str, dict[str, Any]]:
        """Return group -> hotcoco's calibration at IoU 0.5: ``ece``, ``bins``, ``per_category``."""
        result = {}
        for group in self.groups():
            evaluation = self.base
            if group != ALL_CLASSES:
                evaluation = self._evaluated(only_half=True, category_ids=self.classes_of(group))
            result[group] = evaluation.calibration(bins, 0.5)
        return result

    @gc_disabled()
    def matches(self) -> Matches:
        """Return the matches at IoU 0.5."""
        found = self.base.image_diagnostics(iou_thr=0.5)
        status = found["dt_status"]
        rows = np.fromiter(status, np.int64, len(status)) - 1  # ids are rows, from one
        right = np.fromiter((value == "tp" for value in status.values()), bool, len(status))
        missed = [number for number, value in found["gt_status"].items() if value == "fn"]
        return Matches(rows, right, missed)

    def boxes(self, rows: Sequence[int]) -> list[list[float]]:
        """Return the boxes (XYWH) of some of :attr:`rows`."""
        if self.task == "bbox":
            return [self.rows[row, 1:5].tolist() for row in rows]
        records = self._dt.load_anns([row + 1 for row in rows])
        return [hotcoco.mask.to_bbox(r["segmentation"]).tolist() for r in records]


def _hotcoco_truth(
    truth: AnnotationFile, task: str, counting: set[int] | None = None
) -> hotcoco.COCO:
    """Return the ground truth; objects of classes that are not `counting` are of no size.

    As in lvis-api, objects without area are left out; crowds count as such in COCO only.
    """
    fields = ["id", "image_id", "category_id", "bbox", "area"]
    fields += ["segmentation"] if task == "segm" else []
    fields += ["iscrowd"] if truth.format == "coco" else []
    annotations = []
    for annotation in truth.annotations:
        if annotation["area"] <= 0:
            continue
        record = {field: annotation.get(field, 0) for field in fields}
        if counting is not None and annotation["category_id"] not in counting:
            record["area"] = _OUTSIDE
        annotations.append(record)
    return hotcoco.COCO(
        {"images": truth.images, "annotations": annotations, "categories": truth.categories}
    )
