"""From an annotation file to Detectron2's standard dictionaries."""

import logging
from typing import Any

from detectron2.structures import BoxMode

from balms_det.annotations.file import AnnotationFile
from balms_det.runtime.errors import InputError

logger = logging.getLogger(__name__)

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def contiguous_ids(file: AnnotationFile) -> dict[int, int]:
    """Return the category id in the file -> class index in [0, K)."""
    return {category["id"]: index for index, category in enumerate(file.categories)}


def load_dataset_dicts(file: AnnotationFile, image_root: str) -> list[dict[str, Any]]:
    """Return Detectron2's standard dictionaries of the file's images, in the order of their ids.

    Masks are kept as the file has them, polygons or RLE. Polygons of fewer than three points are
    dropped, and with them objects that have no other; crowd regions are kept and marked, and
    Detectron2 leaves them out of training.
    """
    to_contiguous = contiguous_ids(file)
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in file.images}
    num_without_mask = 0
    for annotation in file.annotations:
        record = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": to_contiguous[annotation["category_id"]],
            "iscrowd": annotation.get("iscrowd", 0),
        }
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            segmentation = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
        if segmentation:
            record["segmentation"] = segmentation
        elif "segmentation" in annotation:
            num_without_mask += 1
            continue
        if annotation["image_id"] not in annotations:
            raise InputError(
                f"{file.path}: annotation {annotation['id']} is of image "
                f"{annotation['image_id']}, which is not listed; remove it or add the image"
            )
        annotations[annotation["image_id"]].append(record)
    if num_without_mask:
        logger.warning(
            "%s: left out %d objects whose mask has no polygon of three points or more",
            file.path,
            num_without_mask,
        )
    return [
        {
            "file_name": file.image_path(image, image_root),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            **{field: image[field] for field in _FEDERATED_FIELDS if field in image},
            "annotations": annotations[image["id"]],
        }
        for image in sorted(file.images, key=lambda image: image["id"])
    ]
