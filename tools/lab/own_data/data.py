"""A small data set in COCO format, as a new user has it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("cup", "plate", "spoon", "fork")
SIZE = 64
_TRAIN_IMAGES, _VAL_IMAGES = 12, 4


def write_set(folder: Path) -> None:
    """Write train.json, val.json and images/ below `folder`."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, first, number in (("train", 0, _TRAIN_IMAGES), ("val", 100, _VAL_IMAGES)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id in range(first, first + number):
            pixels = rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
            for position in range(2):
                index = position if image_id % 3 else (image_id // 3) % len(NAMES)
                x, y = rng.integers(2, 34, 2).tolist()
                w, h = rng.integers(12, 28, 2).tolist()
                pixels[y : y + h, x : x + w] = 60 + 45 * index
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 10 * (index + 1),
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
            name = f"{image_id:04}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            images.append({"id": image_id, "file_name": name, "width": SIZE, "height": SIZE})
        categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def read(folder: Path, split: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{split}.json").read_text())
    return content


def write(folder: Path, split: str, content: dict[str, Any]) -> None:
    (folder / f"{split}.json").write_text(json.dumps(content))


def change(folder: Path, **fields: Any) -> None:
    """Set fields of each annotation of both splits; None removes a field, a function changes it."""
    for split in ("train", "val"):
        content = read(folder, split)
        for annotation in content["annotations"]:
            for field, value in fields.items():
                if value is None:
                    annotation.pop(field, None)
                else:
                    annotation[field] = value(annotation) if callable(value) else value
        write(folder, split, content)


def runs_of(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return the mask of a rectangle as uncompressed run lengths."""
    x, y, w, h = annotation["bbox"]
    pixels = np.zeros((SIZE, SIZE), bool)
    pixels[y : y + h, x : x + w] = True
    flat = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return {
        "size": [SIZE, SIZE],
        "counts": np.diff([0, *changes.tolist(), flat.size]).tolist(),
    }
