"""Crops of what goes wrong in the worst rare classes, truth beside prediction."""

import base64
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from balms_det.report.scorer import Matches, Scorer

NUM_CLASSES = 8
PER_KIND = 3  # misses, and false positives, of a class
_SIDE = 180  # pixels
_MOST = 4  # detections in a crop
_TRUTH, _PREDICTION = (0, 158, 115), (213, 94, 0)  # Okabe and Ito


@dataclass(frozen=True)
class Crop:
    """One error.

    Attributes:
        kind: "missed" or "false positive".
        caption: what was there and what was predicted.
        truth: JPEG in base64, with the objects.
        prediction: the same part of the image with the detections.
    """

    kind: str
    caption: str
    truth: str
    prediction: str


@dataclass(frozen=True)
class ClassCrops:
    """The errors of the class at index `index`, whose AP is `ap`."""

    index: int
    ap: float
    crops: list[Crop]


def worst_class_crops(
    scorer: Scorer,
    matches: Matches,
    class_ap: Sequence[float | None],
    image_root: str,
) -> list[ClassCrops]:
    """Return crops of the rare classes with the lowest AP; those without images are left out.

    Args:
        scorer: of the run.
        matches: of the run.
        class_ap: (K,).
        image_root: directory of the images.
    """
    categories = scorer.truth.categories
    scored = [
        (ap, index)
        for index, ap in enumerate(class_ap)
        if ap is not None and categories[index]["frequency"] == "r"
    ]
    worst = sorted(scored)[:NUM_CLASSES]
    drawer = _Drawer(scorer, image_root)
    false = matches.rows[~matches.is_right]
    false = false[np.argsort(-scorer.rows[false, 5], kind="stable")]
    missed = set(matches.missed)
    result = []
    for ap, index in worst:
        category_id = categories[index]["id"]
        crops = []
        for annotation in scorer.truth.annotations:
            if annotation["category_id"] == category_id and annotation["id"] in missed:
                crops.append(drawer.crop("missed", annotation["image_id"], annotation["bbox"]))
            if len(crops) == PER_KIND:
                break
        for row in false[scorer.rows[false, 6] == category_id][:PER_KIND].tolist():
            (box,) = scorer.boxes([row])
            crops.append(drawer.crop("false positive", int(scorer.rows[row, 0]), box))
        found = [crop for crop in crops if crop is not None]
        if found:
            result.append(ClassCrops(index, ap, found))
    return result


class _Drawer:
    """Draws parts of images with the objects and detections in them."""

    def __init__(self, scorer: Scorer, image_root: str) -> None:
        self._scorer = scorer
        self._root = image_root
        self._names = {c["id"]: c["name"] for c in scorer.truth.categories}
        self._images = {image["id"]: image for image in scorer.truth.images}
        self._objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in scorer.truth.annotations:
            self._objects[annotation["image_id"]].append(annotation)

    def crop(self, kind: str, image_id: int, box: Sequence[float]) -> Crop | None:
        """Return the surroundings of a box; None where the image cannot be read."""
        path = Path(self._scorer.truth.image_path(self._images[image_id], self._root))
        try:
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
        except OSError:
            return None
        area = _surroundings(box, image.size)
        objects = [
            (list(o["bbox"]), self._names[o["category_id"]])
            for o in self._objects[image_id]
            if _intersects(o["bbox"], area)
        ]
        detections = self._detections(image_id, area)
        best = [found for found in detections if found[0] == list(box)][:1]
        best += [found for found in detections if found not in best]
        best = best[:_MOST]
        return Crop(
            kind,
            f"truth: {_listed(objects)}; predicted: {_listed(best)}",
            _drawn(image, area, [b for b, _ in objects], _TRUTH, box),
            _drawn(image, area, [b for b, _ in best], _PREDICTION, box),
        )

    def _detections(
        self, image_id: int, area: tuple[int, int, int, int]
    ) -> list[tuple[list[float], str]]:
        """Return the boxes and labels of the detections that meet the area, the best first."""
        rows = np.flatnonzero(self._scorer.rows[:, 0] == image_id)
        rows = rows[np.argsort(-self._scorer.rows[rows, 5], kind="stable")]
        found = []
        for row, box in zip(rows, self._scorer.boxes(rows.tolist()), strict=True):
            if _intersects(box, area):
                score, category_id = self._scorer.rows[row, 5:7]
                found.append((box, f"{self._names[int(category_id)]} {score:.2f}"))
        return found


def _listed(boxes: Sequence[tuple[Sequence[float], str]]) -> str:
    return ", ".join(dict.fromkeys(label for _, label in boxes)) or "nothing"


def _surroundings(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a square (left, top, right, bottom) around a box, inside the image."""
    x, y, width, height = box
    side = max(1.6 * max(width, height), 32.0)
    left, top = x + width / 2 - side / 2, y + height / 2 - side / 2
    right, bottom = min(left + side, size[0]), min(top + side, size[1])
    left, top = min(max(left, 0), size[0] - 1), min(max(top, 0), size[1] - 1)
    return int(left), int(top), max(int(right), int(left) + 1), max(int(bottom), int(top) + 1)


def _intersects(box: Sequence[float], area: tuple[int, int, int, int]) -> bool:
    x, y, width, height = box
    return x < area[2] and x + width > area[0] and y < area[3] and y + height > area[1]


def _drawn(
    image: Image.Image,
    area: tuple[int, int, int, int],
    boxes: Sequence[Sequence[float]],
    color: tuple[int, int, int],
    subject: Sequence[float],
) -> str:
    """Return the area of an image with boxes, that of the error thicker, as JPEG in base64."""
    scale = _SIDE / max(area[2] - area[0], area[3] - area[1])
    size = (
        max(round((area[2] - area[0]) * scale), 1),
        max(round((area[3] - area[1]) * scale), 1),
    )
    canvas = image.crop(area).resize(size)
    draw = ImageDraw.Draw(canvas)
    for box in boxes:
        x, y, width, height = box
        corners = [
            (x - area[0]) * scale,
            (y - area[1]) * scale,
            (x + width - area[0]) * scale,
            (y + height - area[1]) * scale,
        ]
        draw.rectangle(corners, outline=color, width=4 if list(box) == list(subject) else 1)
    stream = io.BytesIO()
    canvas.save(stream, "JPEG", quality=80)
    return base64.b64encode(stream.getvalue()).decode()
