"""A trained model that predicts images one at a time, and the names of its classes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import frequency_group
from balms_det.engine.checkpoint import LongTailCheckpointer
from balms_det.engine.trainer import build_long_tail_model
from balms_det.modeling import prepared_for_inference
from balms_det.runtime.errors import InputError


class Classes(NamedTuple):
    """Facts about the model's K classes; `groups` is None where their frequency is unknown."""

    category_ids: Sequence[int]
    names: Sequence[str]
    groups: Sequence[str] | None


def resolve_classes(cfg: Any, weights: str, stats: ClassStats | None) -> Classes:
    """Return names and groups of the model's classes, without the training data.

    Raises:
        InputError: they are unknown, or are of another number of classes.
    """
    if stats is not None:
        classes = Classes(stats.category_ids, stats.names, stats.groups)
    else:
        classes = _classes_of_datasets([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN])
    num_classes, known = cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(classes.names)
    if known != num_classes:
        remedy = (
            f"add `MODEL.ROI_HEADS.NUM_CLASSES {known}`, or give the config.yaml of the run that "
            "trained it"
            if known
            else "set MODEL.LONG_TAIL.STATS_FILE to the annotations it was trained on"
        )
        raise InputError(
            f"{weights}: the configuration has {num_classes} classes, but the names of {known} are "
            f"known; {remedy}"
        )
    return classes


def _classes_of_datasets(names: list[str]) -> Classes:
    """Return the classes of the first of these data sets that Detectron2 knows, files present or
    not."""
    for name in names:
        metadata = MetadataCatalog.get(name)
        if name.startswith("lvis_v1"):
            lvis = get_lvis_instances_meta(name)
            records = lvis["class_image_count"]
            return Classes(
                [record["id"] for record in records],
                lvis["thing_classes"],
                [frequency_group(record["image_count"]) for record in records],
            )
        if metadata.get("thing_classes"):
            to_contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
            ids = list(to_contiguous or range(1, len(metadata.thing_classes) + 1))
            return Classes(ids, metadata.thing_classes, metadata.get("class_groups"))
    return Classes([], [], None)


class ImagePredictor:
    """A model that predicts one image at a time, prepared as MODEL.LONG_TAIL.INFERENCE says."""

    def __init__(self, cfg: Any, weights: str, stats: ClassStats | None) -> None:
        """
        Args:
            cfg: the configuration.
            weights: path of the checkpoint.
            stats: of the training set; None where nobody knows them.

        Raises:
            InputError: the checkpoint is missing or does not fit.
        """
        model = build_long_tail_model(cfg, stats).eval()
        LongTailCheckpointer(model, class_stats=stats).load(weights)
        self._model = prepared_for_inference(model, cfg.MODEL.LONG_TAIL.INFERENCE)
        shortest = cfg.INPUT.MIN_SIZE_TEST
        self._resize = ResizeShortestEdge([shortest, shortest], cfg.INPUT.MAX_SIZE_TEST)
        self._is_rgb = cfg.INPUT.FORMAT == "RGB"

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """Return the predictions, on the CPU, for an (H, W, 3) uint8 RGB image."""
        height, width = image.shape[:2]
        ordered = image if self._is_rgb else image[:, :, ::-1]
        resized = self._resize.get_transform(ordered).apply_image(ordered)
        tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
        (output,) = self._model([{"image": tensor, "height": height, "width": width}])
        return output["instances"].to(torch.device("cpu"))


def to_records(instances: Instances, classes: Classes) -> list[dict[str, Any]]:
    """Return JSON-ready records of one image's predictions, the most certain first."""
    boxes = instances.pred_boxes.tensor.clone()
    boxes[:, 2:] -= boxes[:, :2]
    records = []
    for i, (box, score, index) in enumerate(
        zip(
            boxes.tolist(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ):
        record = {
            "bbox": box,
            "score": score,
            "category_id": int(classes.category_ids[index]),
            "category_name": classes.names[index],
            "frequency": classes.groups[index] if classes.groups else None,
        }
        if instances.has("pred_masks"):
            mask = np.asfortranarray(instances.pred_masks[i].numpy().astype(np.uint8))
            rle = mask_util.encode(mask)
            record["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
        records.append(record)
    return records
