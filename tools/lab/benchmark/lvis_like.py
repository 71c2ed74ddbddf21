"""Annotations and predictions of LVIS v1's size, without images: what is measured on.

Counts are LVIS's: images, annotations and classes, with its long tail, 3.4 classes in an image, and
some ten more known to be absent from it. Shapes are made up: star-shaped polygons of 8 to 36 points
on images of 480 x 640 pixels.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from hotcoco import mask as coco_mask

from balms_det.annotations.file import AnnotationFile
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.runtime.atomic_file import atomic_file
from balms_det.synthetic import lvis_v1_curve

LVIS_V1 = {"train": (100_170, 1_270_141), "val": (19_809, 244_707)}  # images, annotations

_HEIGHT, _WIDTH = 480, 640
_CLASSES_PER_IMAGE = 3.4
_NEGATIVES = 10
_IMAGES_PER_CHUNK = 2000


def write_lvis_like(
    path: str | os.PathLike[str], *, images: int, annotations: int, classes: int, seed: int = 0
) -> None:
    """Write an annotation file in LVIS v1 format; the same arguments give the same bytes.

    Args:
        path: of the file.
        images: number of images.
        annotations: number of annotations, at least about 3.4 times the images.
        classes: K; each occurs if there are images enough.
        seed: other seeds give other annotations.
    """
    rng = np.random.default_rng(seed)
    image_of, class_of = _pairs(rng, images, classes)
    # Few (image, class) pairs have many instances, as bananas or books do.
    weights = rng.lognormal(sigma=1.3, size=len(image_of))
    instances = 1 + rng.multinomial(max(annotations - len(image_of), 0), weights / weights.sum())
    image_of, class_of = np.repeat(image_of, instances), np.repeat(class_of, instances)
    bounds = np.searchsorted(image_of, np.arange(images + 1))

    with atomic_file(path) as file:
        file.write(b'{"annotations":[')
        for start in range(0, images, _IMAGES_PER_CHUNK):
            stop = min(start + _IMAGES_PER_CHUNK, images)
            rows = slice(bounds[start], bounds[stop])
            records = list(_annotations(rng, image_of[rows], class_of[rows], bounds[start]))
            separator = b"," if rows.stop < bounds[-1] else b""
            file.write(orjson.dumps(records)[1:-1] + separator)
        negatives = rng.integers(1, classes + 1, (images, _NEGATIVES))
        partly = rng.random(images) < 0.1
        records = []
        for image in range(images):
            present = np.unique(class_of[bounds[image] : bounds[image + 1]]) + 1
            absent = np.setdiff1d(negatives[image], present)
            name = f"{image + 1:012}.jpg"
            records.append(
                {
                    "id": image + 1,
                    "height": _HEIGHT,
                    "width": _WIDTH,
                    "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                    "neg_category_ids": absent.tolist(),
                    "not_exhaustive_category_ids": present[: int(partly[image])].tolist(),
                }
            )
        file.write(b'],"images":' + orjson.dumps(records))
        counts = np.bincount(np.unique(class_of * images + image_of) // images, minlength=classes)
        categories = [
            {
                "id": index + 1,
                "name": f"class_{index + 1}",
                "frequency": "r" if count <= 10 else "c" if count <= 100 else "f",
                "image_count": count,
            }
            for index, count in enumerate(counts.tolist())
        ]
        file.write(b',"categories":' + orjson.dumps(categories) + b"}")


def _pairs(rng: np.random.Generator, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Which classes are in which image: (P,) image and class indices, by image, without repeats."""
    curve = lvis_v1_curve(classes)
    number = max(int(_CLASSES_PER_IMAGE * images) - classes, 0)
    drawn = rng.choice(classes, number, p=curve / curve.sum())
    class_of = rng.permutation(np.concatenate([np.arange(classes), drawn]))
    image_of = np.concatenate([np.arange(images), rng.integers(images, size=len(class_of))])
    pairs = np.unique(image_of[: len(class_of)] * classes + class_of)
    return pairs // classes, pairs % classes


def _annotations(
    rng: np.random.Generator, image_of: np.ndarray, class_of: np.ndarray, first: int
) -> Iterator[dict[str, Any]]:
    """Return the records of some annotations, whose ids continue after `first`."""
    number = len(image_of)
    size = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    centre = rng.random((number, 2)) * ([_WIDTH, _HEIGHT] - size) + size / 2
    points = rng.integers(8, 37, number)
    ends = np.cumsum(points)
    owner = np.repeat(np.arange(number), points)
    angle = (np.arange(len(owner)) - np.repeat(ends - points, points)) / points[owner] * 2 * np.pi
    radius = rng.uniform(0.6, 1.0, len(owner)) / 2
    outline = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]
    polygons = np.round(centre[owner] + outline * size[owner], 2)
    starts = ends - points
    low = np.minimum.reduceat(polygons, starts) if number else polygons
    high = np.maximum.reduceat(polygons, starts) if number else polygons
    boxes = np.round(np.concatenate([low, high - low], axis=1), 2)
    areas = np.round(0.6 * boxes[:, 2] * boxes[:, 3], 2)
    flat = polygons.ravel().tolist()
    rows = zip(
        image_of.tolist(),
        class_of.tolist(),
        boxes.tolist(),
        areas.tolist(),
        (2 * starts).tolist(),
        (2 * ends).tolist(),
        strict=True,
    )
    for index, (image, class_index, box, area, start, stop) in enumerate(rows):
        yield {
            "id": int(first) + index + 1,
            "image_id": image + 1,
            "category_id": class_index + 1,
            "bbox": box,
            "area": area,
            "segmentation": [flat[start:stop]],
        }


def lvis_like_predictions(
    file: AnnotationFile, *, detections: int, seed: int = 0
) -> list[ImagePredictions]:
    """Return plausible predictions on the images of `file`: `detections` boxes and masks on each.

    A third are near an object and of its class, with the higher scores. The others are near objects
    as well, where detectors look, but of classes drawn by their frequency in the file.
    """
    rng = np.random.default_rng(seed)
    of_image = defaultdict(list)
    for annotation in file.annotations:
        of_image[annotation["image_id"]].append(annotation)
    frequency = np.bincount([a["category_id"] for a in file.annotations])
    likely = rng.choice(len(frequency), 1_000_000, p=frequency / frequency.sum())
    some = file.annotations[:10]  # where there are no objects
    return [
        _detections_on(rng, image, of_image[image["id"]] or some, likely, detections)
        for image in file.images
    ]


def _detections_on(
    rng: np.random.Generator,
    image: dict[str, Any],
    objects: list[dict[str, Any]],
    likely: np.ndarray,
    detections: int,
) -> ImagePredictions:
    size = image["height"], image["width"]
    # A few tens of different shapes, for drawing every one would take most of an hour.
    shapes = []
    for _ in range(1 + 20 // len(objects)):
        for annotation in objects:
            x, y, width, height = annotation["bbox"]
            shift = np.tile(rng.normal(0, 0.08, 2) * (width, height), 2)
            box = np.array([x, y, width, height])
            box[:2] += shift[:2]
            polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2) + shift[:2]
            shapes.append((box, coco_mask.fr_poly(polygon.ravel().tolist(), *size)["counts"]))
    which = rng.integers(len(shapes), size=detections)
    right = np.arange(detections) < detections // 3
    own = np.array([annotation["category_id"] for annotation in objects])[which % len(objects)]
    scores = rng.random(detections, dtype=np.float32) ** np.where(right, 1, 4)
    boxes = np.stack([shapes[i][0] for i in which]) + rng.normal(0, 1, (detections, 4))
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 1)
    return ImagePredictions(
        image_id=image["id"],
        image_size=size,
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        category_ids=np.where(right, own, rng.choice(likely, detections)),
        masks=b"\n".join(shapes[i][1] for i in which),
    )
