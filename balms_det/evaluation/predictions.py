"""A model's predictions on a data set: compact in memory, between processes, and on disk."""

import dataclasses
import itertools
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import orjson
from detectron2.structures import Instances
from detectron2.utils import comm

from balms_det.annotations.file import read_json
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError
from balms_det.runtime.garbage_collection import gc_disabled

# Few enough that the pickled arrays of a round are small beside all predictions.
_IMAGES_PER_ROUND = 256


@dataclass(frozen=True)
class ImagePredictions:
    """The N detections of one image, compact in memory and quick to pickle.

    Attributes:
        image_size: height and width.
        boxes: float32 (N, 4), XYWH in pixels.
        scores: float32 (N,).
        category_ids: int64 (N,), ids as in the annotation file.
        masks: the compressed RLE counts of the N masks joined by line feeds, which RLE does not
            use; None where there are only boxes.
    """

    image_id: int
    image_size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray
    masks: bytes | None

    def records(self, tasks: Sequence[str]) -> list[dict[str, Any]]:
        """Return the detections in COCO's result format, with what `tasks` need."""
        records: list[dict[str, Any]] = [
            {"image_id": self.image_id, "category_id": category_id, "score": score}
            for category_id, score in zip(
                self.category_ids.tolist(), self.scores.tolist(), strict=True
            )
        ]
        if "bbox" in tasks:
            for record, box in zip(records, self.boxes.tolist(), strict=True):
                record["bbox"] = box
        if "segm" in tasks:
            for record, rle in zip(records, self.rles(), strict=True):
                record["segmentation"] = rle
        return records

    def rles(self, kept: Iterable[bool] | None = None) -> list[dict[str, Any]]:
        """Return the masks, in COCO's format; with `kept` (N,) only those for which it is true."""
        size = list(self.image_size)
        counts: Iterable[str] = self.masks.decode().split("\n") if self.masks else ()
        if kept is not None:
            counts = itertools.compress(counts, kept)
        return [{"size": size, "counts": c} for c in counts]

    def select(self, rows: np.ndarray) -> "ImagePredictions":
        """Return the detections at the given rows."""
        masks = None
        if self.masks is not None:
            counts = self.masks.split(b"\n")
            masks = b"\n".join(counts[row] for row in rows.tolist())
        return dataclasses.replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            category_ids=self.category_ids[rows],
            masks=masks,
        )


def compressed_masks(instances: Instances) -> bytes | None:
    """Return the masks of `instances` as :class:`ImagePredictions` keeps them, None without
    masks."""
    if instances.has("pred_masks_rle"):
        counts = [rle["counts"] for rle in instances.pred_masks_rle]
        return b"\n".join(c.encode() if isinstance(c, str) else c for c in counts)
    if instances.has("pred_masks"):
        # One at a time: twice as fast as pycocotools on the stack, and the same bytes.
        masks = instances.pred_masks.bool().cpu().numpy()
        return b"\n".join(hotcoco.mask.encode(mask)["counts"] for mask in masks)
    return None


def gather_predictions(predictions: list[ImagePredictions]) -> list[ImagePredictions]:
    """Return the predictions of all processes, in the main process; nothing in the others."""
    gathered = []
    for start in range(0, max(comm.all_gather(len(predictions))), _IMAGES_PER_ROUND):
        for part in comm.gather(predictions[start : start + _IMAGES_PER_ROUND], dst=0):
            gathered += part
    return gathered


def read_predictions(path: str | os.PathLike[str]) -> list[ImagePredictions]:
    """Read what :func:`write_predictions` wrote, in the order of the image ids.

    Raises:
        InputError: the file cannot be read, or is not in COCO's result format.
    """
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for record in read_json(path):
            by_image[record["image_id"]].append(record)
        return [_from_records(image_id, by_image.pop(image_id)) for image_id in sorted(by_image)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: these are no predictions in COCO's result format ({error!r}); give the "
            "lvis_instances_results.json that an evaluation wrote"
        ) from error


def _from_records(image_id: int, records: list[dict[str, Any]]) -> ImagePredictions:
    masks = [record["segmentation"] for record in records if "segmentation" in record]
    return ImagePredictions(
        image_id=image_id,
        image_size=tuple(masks[0]["size"]) if masks else (0, 0),  # of use to masks alone
        boxes=np.array([record["bbox"] for record in records], np.float32),
        scores=np.array([record["score"] for record in records], np.float32),
        category_ids=np.array([record["category_id"] for record in records], np.int64),
        masks=b"\n".join(mask["counts"].encode() for mask in masks) if masks else None,
    )


@gc_disabled()
def write_predictions(path: Path, predictions: Sequence[ImagePredictions]) -> None:
    """Write COCO's result format, an image at a time."""
    with atomic_file(path) as file:
        separator = b"["
        for prediction in predictions:
            tasks = ("bbox", "segm") if prediction.masks is not None else ("bbox",)
            records = prediction.records(tasks)
            if records:
                file.write(separator + orjson.dumps(records)[1:-1])
                separator = b",\n"
        file.write(b"[]" if separator == b"[" else b"]")
