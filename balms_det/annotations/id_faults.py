"""Faults of ids and boxes, found by hotcoco's healthcheck."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hotcoco import COCO

from balms_det.annotations.faults import Fault, where_of
from balms_det.annotations.file import AnnotationFile

# A box may reach this far outside its image, in pixels: LVIS and COCO round coordinates.
_BOX_TOLERANCE = 1.0

# Position in the file's annotations, by healthcheck's code.
_Findings = dict[str, list[int]]


def check_ids_and_boxes(
    file: AnnotationFile, image_ids: set[int], category_ids: set[int]
) -> list[Fault]:
    """Return the findings of hotcoco's healthcheck that spoil training, one fault per record.

    Its other findings are opinions (fewer than ten instances of a class) or do not fit: it counts
    crowd regions as instances.

    Args:
        file: its sound records.
        image_ids, category_ids: of all records, sound or not.
    """
    if not file.images and not file.annotations and not file.categories:
        return []
    found = _findings(file)
    return [
        *_duplicates(file, found),
        *_images_without_size(file, found),
        *_faults_of_annotations(file, found, image_ids, category_ids),
    ]


def _findings(file: AnnotationFile) -> _Findings:
    # Annotations are numbered by position, so that each finding leads to one record even where
    # ids repeat. Healthcheck gets only the fields that it checks: it refuses malformed masks.
    report = COCO(
        {
            "images": [{k: image[k] for k in ("id", "width", "height")} for image in file.images],
            "annotations": [
                {
                    "id": position,
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": annotation["bbox"],
                }
                for position, annotation in enumerate(file.annotations)
            ],
            "categories": [
                {k: category[k] for k in ("id", "name")} for category in file.categories
            ],
        }
    ).healthcheck()
    return {
        finding["code"]: sorted(finding["affected_ids"])
        for finding in report["errors"] + report["warnings"]
    }


def _duplicates(file: AnnotationFile, found: _Findings) -> Iterator[Fault]:
    for section, records in (("image", file.images), ("category", file.categories)):
        count = Counter(record["id"] for record in records)
        for record_id in found.get(f"duplicate_{section}_id", ()):
            message = f"{count[record_id]} records have this id"
            yield Fault(f"duplicate_{section}_id", f"{section} {record_id}", message)
    for annotation_id, count_of_id in Counter(a["id"] for a in file.annotations).items():
        if count_of_id > 1:
            message = f"{count_of_id} annotations have this id"
            yield Fault("duplicate_annotation_id", f"annotation {annotation_id}", message)


def _images_without_size(file: AnnotationFile, found: _Findings) -> Iterator[Fault]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in file.images}
    for image_id in found.get("zero_dimensions", ()):
        width, height = sizes[image_id]
        message = f"the annotation file says that it is {width} x {height}"
        yield Fault("image_without_size", f"image {image_id}", message)


def _faults_of_annotations(
    file: AnnotationFile, found: _Findings, image_ids: set[int], category_ids: set[int]
) -> Iterator[Fault]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in file.images}

    def outside(annotation: dict[str, Any]) -> str:
        width, height = sizes[annotation["image_id"]]
        return f"the box {annotation['bbox']} leaves the image of {width} x {height}"

    def is_rounded(annotation: dict[str, Any]) -> bool:
        return _is_within_tolerance(annotation["bbox"], *sizes[annotation["image_id"]])

    # Healthcheck's code, the kind, the message, and when the finding does not count as a fault.
    rules: tuple[
        tuple[str, str, Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], bool]], ...
    ] = (
        (
            "orphan_image_id",
            "unknown_image",
            lambda a: f"no image has the id {a['image_id']}",
            lambda a: a["image_id"] in image_ids,
        ),
        (
            "orphan_category_id",
            "unknown_category",
            lambda a: f"no category has the id {a['category_id']}",
            lambda a: a["category_id"] in category_ids,
        ),
        (
            "degenerate_bbox",
            "degenerate_box",
            lambda a: f"the box {a['bbox']} has no positive width and height",
            lambda a: False,
        ),
        ("bbox_out_of_bounds", "box_outside_image", outside, is_rounded),
    )
    for code, kind, message_of, is_excused in rules:
        for position in found.get(code, ()):
            annotation = file.annotations[position]
            if not is_excused(annotation):
                yield Fault(kind, where_of(annotation), message_of(annotation))


def _is_within_tolerance(box: list[float], width: int, height: int) -> bool:
    x, y, box_width, box_height = box
    return (
        min(x, y) >= -_BOX_TOLERANCE
        and x + box_width <= width + _BOX_TOLERANCE
        and y + box_height <= height + _BOX_TOLERANCE
    )
