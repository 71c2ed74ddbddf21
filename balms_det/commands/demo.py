"""Draw a model's predictions on images, and write them as JSON.

balms-det demo --config-file C --weights W --input FILE|DIR|GLOB --output DIR [KEY VALUE ...]

Writes a image of the same name for every input, and predictions.json: a list with, for each
image, file_name, height, width and instances (bbox as x, y, width, height in pixels; score;
category_id; category_name; frequency; segmentation as COCO RLE). Class names come from the
checkpoint, else from MODEL.LONG_TAIL.STATS_FILE, else from the data sets that the configuration
names; none of their files needs to be present.
"""

import argparse
import glob
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pycocotools.mask as mask_util
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import Instances
from PIL import Image

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import frequency_group
from balms_det.commands.arguments import add_dataset_argument, add_overrides
from balms_det.engine import (
    LongTailCheckpointer,
    build_long_tail_model,
    inference_class_stats,
    load_config,
)
from balms_det.evaluation.visualize import draw_predictions
from balms_det.modeling import prepared_for_inference
from balms_det.runtime.errors import InputError
from balms_det.runtime.progress import progress_bar

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", default="", help="checkpoint; default: MODEL.WEIGHTS")
    parser.add_argument("--input", required=True, nargs="+", metavar="FILE|DIR|GLOB")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        help="lowest score of what is drawn and written; default 0.5",
    )
    add_dataset_argument(parser)
    add_overrides(parser)
    return parser.parse_args(argv)


def find_images(patterns: list[str]) -> list[str]:
    """Return the files that `patterns` (files, folders, globs) name, in order, each once.

    Raises:
        InputError: a pattern names nothing, or a folder holds no images.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if os.path.isdir(pattern):
            matches = sorted(
                str(path) for path in Path(pattern).iterdir() if path.suffix.lower() in SUFFIXES
            )
        elif os.path.isfile(pattern):
            matches = [pattern]
        else:
            matches = sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
        if not matches:
            raise InputError(
                f"{pattern}: no image is found there; give a file, a folder or a quoted glob"
            )
        found.update(dict.fromkeys(matches))
    return list(found)


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
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if len(classes.names) != num_classes:
        raise InputError(
            f"{weights}: the model has {num_classes} classes, but the names of "
            f"{len(classes.names)} are known; set MODEL.LONG_TAIL.STATS_FILE to the annotations "
            "it was trained on"
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


class Predictor:
    """A model that predicts one image at a time, prepared as MODEL.LONG_TAIL.INFERENCE says."""

    def __init__(self, cfg: Any, weights: str, stats: ClassStats | None) -> None:
        model = build_long_tail_model(cfg, stats).eval()
        LongTailCheckpointer(model).load(weights)
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


def refuse_equal_names(images: list[str]) -> None:
    """Refuse images of equal names, whose drawings would overwrite one another.

    Raises:
        InputError: names both.
    """
    taken: dict[str, str] = {}
    for path in images:
        other = taken.setdefault(Path(path).name, path)
        if other != path:
            raise InputError(
                f"{other} and {path} have the same name, and their drawings would overwrite one "
                "another; run them with an --output of their own"
            )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cfg = load_config(args)
    weights = args.weights or cfg.MODEL.WEIGHTS
    images = find_images(args.input)
    stats = inference_class_stats(cfg, weights)
    classes = resolve_classes(cfg, weights, stats)
    predictor = Predictor(cfg, weights, stats)
    refuse_equal_names(images)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    predictions, unreadable = [], []
    for path in progress_bar(images, "Predicting"):
        try:
            image = read_image(path, format="RGB")
        except OSError as error:
            unreadable.append(f"{path}: the image cannot be read ({error}); repair or remove it")
            continue
        instances = predictor(image)
        instances = instances[instances.scores >= args.confidence_threshold]
        drawn = draw_predictions(image, instances, classes.names, classes.groups)
        Image.fromarray(drawn).save(output / Path(path).name)
        height, width = image.shape[:2]
        predictions.append(
            {
                "file_name": path,
                "height": height,
                "width": width,
                "instances": to_records(instances, classes),
            }
        )
    (output / "predictions.json").write_bytes(orjson.dumps(predictions))
    print(f"Wrote {len(predictions)} images and predictions.json to {output}.")
    if unreadable:
        for line in unreadable:
            print(line, file=sys.stderr)
        raise InputError(
            f"{len(unreadable)} of {len(images)} images could not be read (listed above); "
            "the others are done"
        )
