"""Faults of boxes: single ones, and a file that writes boxes in another convention."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balms_det.annotations.faults import Fault, where_of
from balms_det.annotations.file import AnnotationFile

# A box may reach this far outside its image, in pixels: LVIS and COCO round coordinates.
TOLERANCE = 1.0
# Without masks a file is taken to write corners where it has this many boxes, this part of them
# leave their image as x, y, width, height, and all are within it as x1, y1, x2, y2.
_LEAST_BOXES = 10
_LEAST_OUTSIDE = 0.05
# Polygons that are compared with their boxes.
_MOST_POLYGONS = 1000


def check_boxes(file: AnnotationFile) -> Iterator[Fault]:
    """Yield images without size, and boxes that are degenerate or leave their image.

    Where all boxes together show that the file writes fractions of the image, or the corners x1,
    y1, x2, y2, that is one fault in the place of one for each box.

    Args:
        file: its sound records.
    """
    for image in file.images:
        if image["width"] == 0 or image["height"] == 0:
            message = f"the annotation file says that it is {image['width']} x {image['height']}"
            yield Fault("image_without_size", f"image {image['id']}", message)
    sizes = {image["id"]: (image["width"], image["height"]) for image in file.images}
    annotations = [a for a in file.annotations if a["image_id"] in sizes]
    if not annotations:
        return
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float64)
    image_sizes = np.array([sizes[a["image_id"]] for a in annotations], np.float64)
    ends = boxes[:, :2] + boxes[:, 2:]
    degenerate = boxes[:, 2:].min(1) <= 0
    outside = ~_within(boxes[:, :2], ends, image_sizes) & ~degenerate
    convention = _convention_fault(file, annotations, boxes, image_sizes, outside)
    if convention is not None:
        yield convention
        return
    for position in np.flatnonzero(degenerate | outside):
        annotation = annotations[position]
        width, height = sizes[annotation["image_id"]]
        kind, message = (
            ("degenerate_box", f"the box {annotation['bbox']} has no positive width and height")
            if degenerate[position]
            else (
                "box_outside_image",
                f"the box {annotation['bbox']} leaves the image of {width} x {height}",
            )
        )
        yield Fault(kind, where_of(annotation), message)


def _within(
    starts: NDArray[np.float64], ends: NDArray[np.float64], sizes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    within: NDArray[np.bool_] = np.logical_and(
        starts.min(1) >= -TOLERANCE, (ends - sizes).max(1) <= TOLERANCE
    )
    return within


def _convention_fault(
    file: AnnotationFile,
    annotations: list[dict[str, Any]],
    boxes: NDArray[np.float64],
    sizes: NDArray[np.float64],
    outside: NDArray[np.bool_],
) -> Fault | None:
    """Return the fault of a file whose boxes are not x, y, width, height in pixels, or None.

    Args:
        file: of the annotations.
        annotations: A of them.
        boxes: (A, 4) as the file has them.
        sizes: (A, 2) width and height of the boxes' images.
        outside: (A,) whether a box leaves its image.
    """
    example = f"such as {boxes[0].tolist()} in an image of {sizes[0].astype(int).tolist()}"
    if boxes.min() >= 0 and boxes.max() <= 1 and sizes.min() > 1:
        return Fault(
            "normalised_boxes",
            file.path,
            f"all {len(boxes)} boxes lie between 0 and 1, {example}; multiply boxes and polygons "
            "by the size of their images, because coordinates are pixels",
        )
    fit_as_corners = bool(
        (boxes[:, 2:] > boxes[:, :2]).all() and _within(boxes[:, :2], boxes[:, 2:], sizes).all()
    )
    many_outside = len(boxes) >= _LEAST_BOXES and outside.mean() >= _LEAST_OUTSIDE
    if (fit_as_corners and many_outside) or _are_corners_of_masks(annotations):
        return Fault(
            "corner_boxes",
            file.path,
            f"the boxes fit their images or masks as x1, y1, x2, y2 only, {example}; write them as "
            "x, y, width, height",
        )
    return None


def _are_corners_of_masks(annotations: list[dict[str, Any]]) -> bool:
    """Return whether most boxes are their polygons' corners, and not x, y, width, height."""
    compared = corners = 0
    for annotation in annotations:
        polygons = annotation.get("segmentation")
        if not isinstance(polygons, list) or not all(map(_is_polygon, polygons)) or not polygons:
            continue
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        box, first, last = np.array(annotation["bbox"]), points.min(0), points.max(0)
        is_corners = np.abs(box - [*first, *last]).max() <= TOLERANCE
        is_box = np.abs(box - [*first, *(last - first)]).max() <= TOLERANCE
        compared, corners = compared + 1, corners + (is_corners and not is_box)
        if compared == _MOST_POLYGONS:
            break
    return corners > compared / 2


def _is_polygon(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 6
        and len(value) % 2 == 0
        and {type(number) for number in value} <= {int, float}
    )
