"""Faults of masks: polygons and run-length codes."""

from collections.abc import Iterator
from typing import Any

from balms_det.annotations.box_faults import TOLERANCE
from balms_det.annotations.faults import Fault, where_of
from balms_det.annotations.file import AnnotationFile

# Twice the area, in square pixels, that three corners of a polygon must span at least.
_LEAST_TRIANGLE = 1e-6


def check_masks(file: AnnotationFile) -> Iterator[Fault]:
    """Yield masks that are missing, malformed, empty, outside, or of another size than their image.

    A file without any mask is one to train boxes on: that is one warning.
    """
    sizes = {image["id"]: [image["height"], image["width"]] for image in file.images}
    if file.annotations and not file.has_masks:
        message = "no annotation has a segmentation; only boxes can be trained"
        yield Fault("no_masks", "annotations", message, severity="warning")
        return
    for annotation in file.annotations:
        mask, size = annotation.get("segmentation"), sizes.get(annotation["image_id"])
        if isinstance(mask, list) and mask:
            found = _polygon_faults(mask, size)
        elif isinstance(mask, dict):
            found = _rle_faults(mask, size)
        elif mask is None or mask == []:
            found = iter([("missing_mask", "there is no segmentation")])
        else:
            found = iter([("malformed_mask", f"the segmentation is {mask!r:.40}")])
        for kind, message in found:
            yield Fault(kind, where_of(annotation), message)


def _polygon_faults(polygons: list[Any], size: list[int] | None) -> Iterator[tuple[str, str]]:
    """Return faults of polygons in an image of `size` (height, width), if that is known."""
    for position, polygon in enumerate(polygons):
        name = f"segmentation[{position}]"
        if not isinstance(polygon, list) or not {type(value) for value in polygon} <= {int, float}:
            yield "malformed_mask", f"{name} is {polygon!r:.40}, expected [x1, y1, x2, y2, ...]"
        elif len(polygon) % 2:
            yield "malformed_mask", f"{name} has {len(polygon)} numbers, expected x, y pairs"
        elif len(polygon) < 6:
            yield "degenerate_polygon", f"{name} has {len(polygon) // 2} points, expected 3 or more"
        elif not _spans_area(polygon):
            yield "degenerate_polygon", f"{name} has no area: {polygon!r:.60}"
        elif size is not None and not _is_within(polygon, *size):
            yield "mask_outside_image", f"{name} leaves the image of {size[1]} x {size[0]}"


def _is_within(polygon: list[float], height: int, width: int) -> bool:
    if min(polygon) < -TOLERANCE:
        return False
    if max(polygon) <= min(width, height) + TOLERANCE:
        return True  # which is most of them, and quick to see
    return max(polygon[::2]) <= width + TOLERANCE and max(polygon[1::2]) <= height + TOLERANCE


def _spans_area(polygon: list[float]) -> bool:
    """Return whether some corner lies off the line through the first corner and one other.

    Nearly always the first three corners tell, which makes this far faster than the area; and the
    area of a polygon that crosses itself can be zero although it covers pixels.
    """
    x0, y0 = polygon[:2]
    dx = dy = 0.0
    for x, y in zip(polygon[2::2], polygon[3::2], strict=True):
        if dx == 0 and dy == 0:
            dx, dy = x - x0, y - y0
        elif abs(dx * (y - y0) - dy * (x - x0)) >= _LEAST_TRIANGLE:
            return True
    return False


def _rle_faults(mask: dict[str, Any], size: list[int] | None) -> Iterator[tuple[str, str]]:
    """Return faults of a run-length encoded mask in an image of `size` (height, width), if that is
    known.

    Decoders do not find them all: pycocotools returns whatever was in memory where the runs end
    before the image does.
    """
    counts = mask.get("counts")
    try:
        runs = _run_lengths(counts)
    except ValueError:
        yield "malformed_mask", f"the run lengths {counts!r:.40} cannot be decoded"
        return
    if size is not None and mask.get("size") != size:
        yield "mask_size", f"the mask has the size {mask.get('size')}, the image {size}"
    elif size is not None and sum(runs) != size[0] * size[1]:
        yield "malformed_mask", f"the runs cover {sum(runs)} of {size[0] * size[1]} pixels"
    elif sum(runs[1::2]) == 0:
        yield "empty_mask", "no pixel is set"


def _run_lengths(counts: Any) -> list[int]:
    """Return the lengths of runs of background and object in turn, from a list or COCO's
    compressed text.

    pycocotools decodes the text only into whole masks. A character holds six bits, counted from
    "0": five of a number, low ones first, and whether more follow. From the fourth on, a number is
    the difference to the run two before.

    Raises:
        ValueError: `counts` is neither.
    """
    runs: list[int] = []
    if isinstance(counts, list):
        runs = counts
    elif isinstance(counts, str):
        value = shift = 0
        for character in counts:
            bits = ord(character) - ord("0")
            if not 0 <= bits < 64:
                raise ValueError(f"{character!r} is not a character of run lengths")
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                if bits & 16:  # the sign
                    value -= 1 << shift
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
        if shift:
            raise ValueError("the run lengths end within a number")
    if not runs or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("the run lengths are not non-negative integers")
    return runs
