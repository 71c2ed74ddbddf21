"""From an annotation file to Detectron2's standard dictionaries."""

from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from balms_det.annotations.file import AnnotationFile

_FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def contiguous_ids(file: AnnotationFile) -> dict[int, int]:
    """Return the category id in the file -> class index in [0, K)."""
    return {category["id"]: index for index, category in enumerate(file.categories)}


def load_dataset_dicts(file: AnnotationFile, image_root: str) -> list[dict[str, Any]]:
    """Return Detectron2's standard dictionaries of the file's images, in the order of their ids.

    Masks are kept as the file has them, polygons or RLE; the run lengths of uncompressed RLE are
    compressed, because Detectron2 reads no others. Polygons of fewer than three points are dropped,
    and an object without any other has no mask. Crowd regions are kept and marked, and Detectron2
    leaves them out of training.
    """
    to_contiguous = contiguous_ids(file)
    annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in file.images}
    for annotation in file.annotations:
        record = {
            "bbox": annotation["bbox"],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": to_contiguous[annotation["category_id"]],
            "iscrowd": annotation.get("iscrowd", 0),
        }
        segmentation = _mask_as_trained(annotation.get("segmentation"))
        if segmentation:
            record["segmentation"] = segmentation
        annotations[annotation["image_id"]].append(record)
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


def _mask_as_trained(mask: Any) -> Any:
    if isinstance(mask, list):
        return [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        compressed = mask_util.frPyObjects(mask, *mask["size"])
        return {"size": mask["size"], "counts": compressed["counts"].decode()}
    return mask
