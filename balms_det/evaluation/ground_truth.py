"""Annotation files as the ground truth of LVIS's metrics: reading and checks."""

from collections.abc import Mapping, Sequence

import numpy as np

from balms_det.annotations.file import AnnotationFile, read_annotation_file
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.evaluation.report import GROUP_NAMES
from balms_det.runtime.errors import InputError


def category_ids_of(
    thing_classes: Sequence[str], to_contiguous: Mapping[int, int] | None
) -> np.ndarray:
    """Return the category id of each class index, int64 (K,)."""
    if to_contiguous is None:
        return np.arange(1, len(thing_classes) + 1)
    category_ids = np.zeros(len(thing_classes), dtype=np.int64)
    category_ids[list(to_contiguous.values())] = list(to_contiguous)
    return category_ids


def read_ground_truth(path: str) -> AnnotationFile:
    """Read an annotation file and check that it has what LVIS's metrics need.

    Raises:
        InputError: a field is missing or contradicts another.
    """
    file = read_annotation_file(path)
    if file.annotations:  # In a test set there are none: nothing is scored.
        check_ground_truth(file)
    return file


def check_ground_truth(file: AnnotationFile) -> None:
    """Check that a file that has been read has what LVIS's metrics need.

    Raises:
        InputError: a field is missing or contradicts another.
    """
    path = file.path
    remedy = "give an annotation file in LVIS v1 format"
    for section, records, fields in [
        ("image", file.images, ("neg_category_ids", "not_exhaustive_category_ids")),
        ("category", file.categories, ("frequency",)),
        ("annotation", file.annotations, ("area",)),
    ]:
        for record in records:
            for field in fields:
                if field not in record:
                    raise InputError(
                        f"{path}: {section} {record['id']} has no {field!r}, without which LVIS's "
                        f"metrics are not defined; {remedy}"
                    )
    for category in file.categories:
        if category["frequency"] not in GROUP_NAMES:
            raise InputError(
                f"{path}: category {category['id']} has the frequency {category['frequency']!r}, "
                f"expected one of {', '.join(GROUP_NAMES)}; {remedy}"
            )
    category_ids = {category["id"] for category in file.categories}
    for annotation in file.annotations:
        if annotation["category_id"] not in category_ids:
            raise InputError(
                f"{path}: annotation {annotation['id']} is of category "
                f"{annotation['category_id']}, which is not listed; remove it or add the category"
            )
        if annotation["id"] == 0:
            raise InputError(
                f"{path}: an annotation has the id 0, which lvis-api takes for 'not matched'; "
                "number the annotations from 1"
            )


def tasks_to_score(
    tasks: Sequence[str] | None,
    ground_truth: AnnotationFile,
    predictions: Sequence[ImagePredictions],
) -> list[str]:
    """Return the tasks to score, "bbox" and "segm", in order.

    Args:
        tasks: asked for; None for boxes, and masks where predictions have them.
        ground_truth: of the data set.
        predictions: of all images.

    Raises:
        InputError: masks are to be scored, and predictions or annotations lack them.
    """
    if tasks is not None:
        tasks = sorted(tasks)
    elif any(prediction.masks is not None for prediction in predictions):
        tasks = ["bbox", "segm"]
    else:
        tasks = ["bbox"]
    if "segm" in tasks:
        for prediction in predictions:
            if prediction.masks is None and len(prediction.scores):
                raise InputError(
                    "masks cannot be evaluated, because the predictions for image "
                    f"{prediction.image_id} have none; set MODEL.MASK_ON to True or evaluate "
                    "boxes only"
                )
        for annotation in ground_truth.annotations:
            if not annotation.get("segmentation"):
                raise InputError(
                    f"{ground_truth.path}: annotation {annotation['id']} has no "
                    "'segmentation', so that masks cannot be evaluated; add it, or set "
                    "MODEL.MASK_ON to False"
                )
    return tasks
