"""Works on annotation files and predictions of LVIS's size; peers: Detectron2, json and lvis-api.

Files are generated, in a temporary folder, and so are the caches.
"""

import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
from detectron2.data import DatasetFromList, MetadataCatalog
from detectron2.data.datasets import load_lvis_json

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import AnnotationFile, read_annotation_file
from balms_det.data.cache import CACHE_VARIABLE, CachedDataset, open_annotations
from balms_det.evaluation import LVISEvaluator
from lab.benchmark.lvis_like import LVIS_V1, lvis_like_predictions, write_lvis_like
from lab.benchmark.measure import Comparison
from lab.lvis_api import lvis_api_precision

TRAIN_IMAGES, TRAIN_ANNOTATIONS = LVIS_V1["train"]
VAL_IMAGES, VAL_ANNOTATIONS = LVIS_V1["val"]

_IMAGES_READ = 5000


def dataset_load(
    device: str,
    *,
    classes: int = 1203,
    images: int = TRAIN_IMAGES,
    annotations: int = TRAIN_ANNOTATIONS,
) -> Iterator[Comparison]:
    """Detectron2's dictionaries of an annotation file, and making those of some images.

    The peer's time is without that to serialise all dictionaries for a loader's workers, which
    it does afterwards.

    Args:
        device: of no influence.
        classes: K.
        images: N.
        annotations: of all images.
    """
    with _lvis_like_file(classes, images, annotations) as path:
        root = "pictures/"

        def open_again() -> CachedDataset:
            return CachedDataset(open_annotations(path), root)

        def build_and_open() -> CachedDataset:
            for cache in Path(os.environ[CACHE_VARIABLE]).glob("*.cache"):
                cache.unlink()
            return open_again()

        dataset = open_again()
        sizes = _file_sizes(path)
        for variant, ours in [
            ("second and later processes", open_again),
            ("first process", build_and_open),
        ]:
            yield Comparison(
                "detectron2",
                ours,
                lambda: load_lvis_json(str(path), root),
                _differing_dictionaries,
                variant=variant,
                sizes=sizes,
            )
        order = random.Random(0).sample(range(images), min(_IMAGES_READ, images))
        serialised = DatasetFromList([dataset[index] for index in order])
        yield Comparison(
            "detectron2",
            lambda: [dataset[index] for index in order],
            lambda: [serialised[position] for position in range(len(order))],
            _differing_dictionaries,
            variant=f"dictionaries of {len(order)} images in the order of an epoch",
            sizes=sizes,
        )


def dataset_stats(
    device: str,
    *,
    classes: int = 1203,
    images: int = TRAIN_IMAGES,
    annotations: int = TRAIN_ANNOTATIONS,
) -> Iterator[Comparison]:
    """Class statistics of an annotation file, beside merely parsing it.

    Args:
        device: of no influence.
        classes: K.
        images: N.
        annotations: of all images.
    """
    with _lvis_like_file(classes, images, annotations) as path:
        sizes = _file_sizes(path)
        ways: list[tuple[str, Callable[[], ClassStats]]] = [
            ("from the cache", lambda: open_annotations(path).class_stats),
            ("without a cache", lambda: ClassStats.from_json(path)),
        ]
        parsers: list[tuple[str, Callable[[], Any]]] = [
            ("json", lambda: json.loads(path.read_bytes())),
            ("orjson", lambda: orjson.loads(path.read_bytes())),
        ]
        for variant, ours in ways:
            for parser, parse in parsers:
                yield Comparison(
                    parser, ours, parse, _differing_counts, variant=variant, sizes=sizes
                )


def lvis_evaluation(
    device: str,
    *,
    classes: int = 1203,
    images: int = VAL_IMAGES,
    detections: int = 300,
    peer_images: int = 2000,
) -> Iterator[Comparison]:
    """Scoring a detector's boxes and masks by LVIS's metrics.

    lvis-api scores the first `peer_images` images, and its time is scaled to all, for in each image
    it goes through all classes. Outputs are compared on these images.

    Args:
        device: of no influence.
        classes: K.
        images: N.
        detections: on each image.
        peer_images: that lvis-api scores, at most `images`.
    """
    peer_images = min(peer_images, images)
    annotations = max(VAL_ANNOTATIONS * images // VAL_IMAGES, 1)
    with _lvis_like_file(classes, images, annotations) as path:
        file = read_annotation_file(path)
        predictions = lvis_like_predictions(file, detections=detections)
        some = predictions[:peer_images]
        part = _with_first_images(file, peer_images, path.with_name("part.json"))
        sizes = {
            "peer_images": peer_images,
            "predictions_mb": sum(
                p.boxes.nbytes + p.scores.nbytes + p.category_ids.nbytes + len(p.masks or b"")
                for p in predictions
            )
            >> 20,
        }
        del file
        for task in ("bbox", "segm"):
            ours = _evaluator(path, task)
            ours_on_part = _evaluator(part, task)
            peer = _evaluator(part, task, precision_of=lvis_api_precision)
            yield Comparison(
                "lvis",
                lambda ours=ours: ours.score(predictions),
                lambda peer=peer: peer.score(some),
                lambda _, theirs, same=ours_on_part: _metric_difference(same.score(some), theirs),
                variant={"bbox": "boxes", "segm": "masks"}[task],
                dtype="float64",
                sizes=sizes,
                peer_part=peer_images / images,
            )
        whole = _evaluator(path, "bbox", "segm", output_dir=path.with_name("results"))
        yield Comparison(
            "lvis",
            lambda: whole.evaluate_predictions(predictions),
            None,
            variant="boxes and masks, from the end of inference to the files and the table",
            dtype="float64",
            sizes=sizes,
        )


@contextmanager
def _lvis_like_file(classes: int, images: int, annotations: int) -> Iterator[Path]:
    """An annotation file in a folder that is there for as long as it is measured."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        write_lvis_like(path, images=images, annotations=annotations, classes=classes)
        with mock.patch.dict(os.environ, {CACHE_VARIABLE: os.path.join(folder, "caches")}):
            yield path


def _file_sizes(path: Path) -> dict[str, int]:
    """Return the sizes of the annotation file and of its cache, which exists afterwards."""
    cache = open_annotations(path).path
    return {"file_mb": path.stat().st_size >> 20, "cache_mb": cache.stat().st_size >> 20}


def _with_first_images(file: AnnotationFile, number: int, path: Path) -> Path:
    images = file.images[:number]
    ids = {image["id"] for image in images}
    annotations = [a for a in file.annotations if a["image_id"] in ids]
    content = {"images": images, "annotations": annotations, "categories": file.categories}
    path.write_bytes(orjson.dumps(content))
    return path


def _evaluator(path: Path, *tasks: str, **options: Any) -> LVISEvaluator:
    name = f"benchmark {path.name}"
    categories = read_annotation_file(path).categories
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_classes=[category["name"] for category in categories]
    )
    try:
        return LVISEvaluator(name, tasks=tasks, distributed=False, **options)
    finally:
        MetadataCatalog.remove(name)


def _differing_dictionaries(ours: Any, theirs: Any) -> float:
    """How many images' dictionaries differ; "iscrowd" is zero where Detectron2 has none."""
    assert len(ours) == len(theirs)
    return float(sum(_with_crowds(a) != _with_crowds(b) for a, b in zip(ours, theirs, strict=True)))


def _with_crowds(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "annotations": [{"iscrowd": 0, **a} for a in record["annotations"]]}


def _differing_counts(ours: ClassStats, content: dict[str, Any]) -> float:
    """Return the largest difference between our instance counts and those of the parsed file."""
    counted = np.bincount([a["category_id"] for a in content["annotations"]])[1:]
    counts = np.zeros(ours.num_classes, np.int64)
    counts[: len(counted)] = counted
    return float(np.abs(ours.instance_counts - counts).max())


def _metric_difference(
    ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]
) -> float:
    assert ours.keys() == theirs.keys()
    return max(abs(ours[task][key] - theirs[task][key]) for task in ours for key in ours[task])
