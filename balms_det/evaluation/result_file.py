"""Reading result files in COCO's format, of any framework and of any size."""

import itertools
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np

from balms_det.annotations.file import opened, parse_json
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.runtime.errors import InputError
from balms_det.runtime.garbage_collection import gc_disabled

# Few enough bytes that the parsed records of a part are small beside all predictions.
_PART_BYTES = 32 << 20
# The end of a record and the beginning of the next. It is not inside a record: the results' only
# inner objects are masks, one for a record, and run-length codes use neither braces nor commas.
_BETWEEN_RECORDS = re.compile(rb"\}\s*,\s*(?=\{)")
# Looked through for the end of a record; a larger mask only makes a larger part.
_TAIL_BYTES = 1 << 20


@gc_disabled()
def read_predictions(
    path: str | os.PathLike[str],
    sizes: Mapping[int, tuple[int, int]] | None = None,
    *,
    part_bytes: int = _PART_BYTES,
) -> list[ImagePredictions]:
    """Read a result file: a JSON list of ``image_id``, ``category_id``, ``score``, ``bbox`` (XYWH)
    and ``segmentation`` (compressed or uncompressed RLE, or polygons), one record per detection.

    A record needs a box or a mask. Boxes that are absent are those of the masks. The file is parsed
    in parts, since the records of a large one take several times the memory of the result.

    Args:
        path: of the file.
        sizes: image id -> (height, width), which polygons need.
        part_bytes: about as many bytes are parsed at a time.

    Returns:
        In the order of the image ids; detections in the order of the file.

    Raises:
        InputError: the file cannot be read, or is not in COCO's result format.
    """
    parts: dict[int, list[ImagePredictions]] = defaultdict(list)
    try:
        for records in _parts(path, part_bytes):
            _add_records(parts, records, sizes or {})
        return [_joined(parts.pop(image_id)) for image_id in sorted(parts)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: these are no predictions in COCO's result format ({error!r}); give the "
            "lvis_instances_results.json that an evaluation wrote, or a list of records with "
            "image_id, category_id, score, and bbox or segmentation"
        ) from error


def _parts(path: str | os.PathLike[str], part_bytes: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of a JSON list, a part at a time."""
    with opened(path) as file:
        rest = b""
        while block := file.read(part_bytes):
            data = rest + block
            *_, last = [None, *_BETWEEN_RECORDS.finditer(data, max(len(data) - _TAIL_BYTES, 0))]
            if last is None:
                rest = data
                continue
            yield parse_json(data[: last.start() + 1] + b"]", path)
            rest = b"[" + data[last.end() :]
        yield parse_json(rest, path)


def _add_records(
    parts: dict[int, list[ImagePredictions]],
    records: list[dict[str, Any]],
    sizes: Mapping[int, tuple[int, int]],
) -> None:
    """Append the detections of each image to `parts`."""
    if not records:
        return
    number = len(records)
    image_ids = np.fromiter([record["image_id"] for record in records], np.int64, number)
    scores = np.fromiter([record["score"] for record in records], np.float32, number)
    categories = np.fromiter([record["category_id"] for record in records], np.int64, number)
    codes = _run_lengths(records, sizes) if "segmentation" in records[0] else None
    if "bbox" in records[0]:
        sides = itertools.chain.from_iterable([record["bbox"] for record in records])
        boxes = np.fromiter(sides, np.float32).reshape(number, 4)
    elif codes is not None:
        boxes = hotcoco.mask.to_bbox(codes).astype(np.float32)
    else:
        raise KeyError("bbox")
    # The records of an image mostly follow one another, and so a run of them is an image's part.
    bounds = np.flatnonzero(np.diff(image_ids, prepend=-1, append=-1)).tolist()
    for start, stop in itertools.pairwise(bounds):
        size, masks = (0, 0), None
        if codes is not None:
            size = tuple(codes[start]["size"])
            masks = "\n".join([code["counts"] for code in codes[start:stop]]).encode()
        image_id = int(image_ids[start])
        part = slice(start, stop)
        parts[image_id].append(
            ImagePredictions(image_id, size, boxes[part], scores[part], categories[part], masks)
        )


def _run_lengths(
    records: Sequence[Mapping[str, Any]], sizes: Mapping[int, tuple[int, int]]
) -> list[dict[str, Any]]:
    """Return the masks of records as compressed run-length codes, whose counts are strings."""
    masks = [record["segmentation"] for record in records]
    for position, mask in enumerate(masks):
        if isinstance(mask, list):
            image_id = records[position]["image_id"]
            if image_id not in sizes:
                raise ValueError(f"polygons in image {image_id}, whose size is not known")
            height, width = sizes[image_id]
            polygons = hotcoco.mask.fr_py_objects(mask, height, width)
            mask = hotcoco.mask.merge(polygons)
        elif isinstance(mask["counts"], str):
            continue
        else:
            mask = hotcoco.mask.fr_py_objects(mask, *mask["size"])
        masks[position] = {"size": mask["size"], "counts": mask["counts"].decode()}
    return masks


def _joined(parts: list[ImagePredictions]) -> ImagePredictions:
    """Return the detections of one image that came in several parts."""
    first = parts[0]
    if len(parts) == 1:
        return first
    masks = [part.masks for part in parts if part.masks is not None]
    return ImagePredictions(
        first.image_id,
        first.image_size,
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.category_ids for part in parts]),
        b"\n".join(masks) if masks else None,
    )
