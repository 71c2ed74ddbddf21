"""Annotation files as ground truth: reading, checks, and the classes' groups."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import AnnotationFile, read_annotation_file
from balms_det.evaluation.predictions import ImagePredictions
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


def positions_of_classes(
    trained: Sequence[str], scored: Sequence[str], dataset_name: str
) -> list[int]:
    """Return where each class of the model stands among the classes of a data set.

    Args:
        trained: (K,) class names in the order of the model.
        scored: class names in the order of the data set.
        dataset_name: for the error.

    Returns:
        (K,) positions in `scored`, a permutation.

    Raises:
        InputError: the two have different names; names the first difference.
    """
    if list(trained) == list(scored):
        return list(range(len(scored)))
    remedy = "evaluate on a data set with the classes that the model was trained on"
    for names, others, whose, other in (
        (trained, scored, "the model's", f"one of {dataset_name!r}"),
        (scored, trained, f"{dataset_name!r}'s", "one of the model"),
    ):
        lacking = [name for name in names if name not in set(others)]
        if lacking:
            more = f" ({len(lacking)} such classes)" if len(lacking) > 1 else ""
            raise InputError(f"{whose} class {lacking[0]!r} is not {other}{more}; {remedy}")
    if len(trained) != len(scored):
        raise InputError(
            f"the model has {len(trained)} classes, {dataset_name!r} {len(scored)}; {remedy}"
        )
    position = {name: index for index, name in enumerate(scored)}
    return [position[name] for name in trained]


def read_ground_truth(path: str) -> AnnotationFile:
    """Read an annotation file and check that it has what the metrics of its format need.

    A file in COCO format need not state the areas of objects, or which of them are crowds: areas
    are those of the masks, of boxes where there are none, and no object is a crowd.

    Raises:
        InputError: a field is missing or contradicts another.
    """
    file = read_annotation_file(path)
    if not file.annotations:
        return file  # A test set: predictions are written, and nothing is scored.
    category_ids = {category["id"] for category in file.categories}
    for annotation in file.annotations:
        if annotation["category_id"] not in category_ids:
            raise InputError(
                f"{path}: annotation {annotation['id']} is of category "
                f"{annotation['category_id']}, which is not listed; remove it or add the category"
            )
    if file.format == "coco":
        sizes = {image["id"]: (image["height"], image["width"]) for image in file.images}
        annotations = [
            _complete(annotation, number, sizes)
            for number, annotation in enumerate(file.annotations, start=1)
        ]
        return dataclasses.replace(file, annotations=annotations)
    _check_federated(file)
    return file


def _complete(
    annotation: dict[str, Any], number: int, sizes: Mapping[int, tuple[int, int]]
) -> dict[str, Any]:
    """Return an annotation in COCO format with all fields that its metrics read.

    It is numbered from one: pycocotools takes the id 0 for "not matched".
    """
    area = annotation.get("area")
    if area is None:
        mask = annotation.get("segmentation")
        if not mask:
            area = annotation["bbox"][2] * annotation["bbox"][3]
        elif isinstance(mask, dict) and not isinstance(mask["counts"], list):
            area = mask_util.area(mask)
        else:  # polygons, or run lengths as a list
            rles = mask_util.frPyObjects(mask, *sizes[annotation["image_id"]])
            area = mask_util.area(mask_util.merge(rles) if isinstance(rles, list) else rles)
    crowd = int(annotation.get("iscrowd", 0))
    return {**annotation, "id": number, "area": float(area), "iscrowd": crowd}


def _check_federated(file: AnnotationFile) -> None:
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
                        f"{file.path}: {section} {record['id']} has no {field!r}, without which "
                        f"LVIS's metrics are not defined; {remedy}"
                    )
    for annotation in file.annotations:
        if annotation["id"] == 0:
            raise InputError(
                f"{file.path}: an annotation has the id 0, which lvis-api takes for 'not matched'; "
                "number the annotations from 1"
            )


def with_frequencies(
    file: AnnotationFile, category_ids: Sequence[int], stats: ClassStats, *, regroup: bool
) -> AnnotationFile:
    """Return the file with the groups and counts of the training set in its categories.

    Args:
        file: ground truth.
        category_ids: (K,) in `file`, in the order of the classes of `stats`.
        stats: of the training set.
        regroup: whether its groups go before those that the file states.
    """
    index = {category_id: position for position, category_id in enumerate(category_ids)}
    categories = []
    for category in file.categories:
        position = index.get(category["id"])
        if position is not None:
            known = {
                "frequency": stats.groups[position],
                "image_count": int(stats.image_counts[position]),
            }
            category = {**known, **category, **(known if regroup else {})}
        categories.append(category)
    return dataclasses.replace(file, categories=categories)


def check_masks_to_score(file: AnnotationFile) -> None:
    """Refuse ground truth in which some objects have no mask.

    Raises:
        InputError: names the first of them.
    """
    for annotation in file.annotations:
        if not annotation.get("segmentation"):
            raise InputError(
                f"{file.path}: annotation {annotation['id']} has no 'segmentation', so that masks "
                "cannot be evaluated; add it, or set MODEL.MASK_ON to False"
            )


def tasks_to_score(
    tasks: Sequence[str] | None,
    ground_truth: AnnotationFile,
    predictions: Sequence[ImagePredictions],
) -> list[str]:
    """Return the tasks to score, "bbox" and "segm", in order.

    Args:
        tasks: asked for; None for boxes, and masks where predictions and annotations have them.
        ground_truth: of the data set.
        predictions: of all images.

    Raises:
        InputError: masks are to be scored, and predictions or annotations lack them.
    """
    if tasks is not None:
        tasks = sorted(tasks)
    elif ground_truth.has_masks and any(p.masks is not None for p in predictions):
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
        check_masks_to_score(ground_truth)
    return tasks
