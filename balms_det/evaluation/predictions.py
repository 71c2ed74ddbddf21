"""A model's predictions on a data set: compact in memory, between processes, and on disk."""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
import orjson
from detectron2.structures import Instances
from detectron2.utils import comm

from balms_det.runtime.atomic_file import atomic_file
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
