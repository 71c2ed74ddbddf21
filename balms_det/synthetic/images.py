"""One image and its labels: glyphs, textured, on a textured background.

Shapes: S is the side of the square image in pixels.
"""

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from balms_det.synthetic.glyphs import glyph_bitmap
from balms_det.synthetic.options import GlyphOptions

SPLIT_SEEDS = {"train": 1, "val": 2}

_MAX_ROTATION = math.radians(20)  # more would turn one class into another: 6 and 9, two arrows
_MAX_STRETCH = 1.25  # of one axis against the other, either way
_MIN_VISIBLE_FRACTION = 0.4  # of an object's pixels, those outside the image included
_MIN_VISIBLE_PIXELS = 16
_PLACEMENT_ATTEMPTS = 20


@dataclass(frozen=True)
class ImageTask:
    split: str
    image_id: int
    classes: tuple[int, ...]  # one entry per object, in the order of placement


@dataclass(frozen=True)
class ImageLabels:
    task: ImageTask
    objects: list[dict[str, Any]]  # annotations without "id" and "image_id"
    not_exhaustive: list[int]  # category ids
    negatives: list[int]  # category ids


def draw_image(
    task: ImageTask, *, options: GlyphOptions, characters: Sequence[str], out_dir: Path
) -> ImageLabels:
    """Draw and write one image, and label it."""
    rng = np.random.default_rng([options.seed, SPLIT_SEEDS[task.split], task.image_id])
    scene = _Scene(options, rng)
    placed: list[tuple[int, int]] = []  # (class, mark in the scene)
    for class_index in task.classes:
        mark = scene.place(characters[class_index])
        if mark is not None:
            placed.append((class_index, mark))

    not_exhaustive = []
    if placed and rng.random() < options.not_exhaustive:
        class_index, _ = placed[rng.integers(len(placed))]
        if scene.place(characters[class_index]) is not None:
            not_exhaustive.append(class_index + 1)

    present = sorted({class_index for class_index, _ in placed})
    absent = np.setdiff1d(np.arange(options.classes), present)
    negatives = rng.choice(absent, min(options.negatives, len(absent)), replace=False)

    encoded, jpeg = cv2.imencode(".jpg", scene.finished_picture(), [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert encoded
    (out_dir / relative_path(task)).write_bytes(jpeg.tobytes())
    return ImageLabels(
        task=task,
        objects=scene.annotations(placed),
        not_exhaustive=not_exhaustive,
        negatives=sorted(int(class_index) + 1 for class_index in negatives),
    )


def relative_path(task: ImageTask) -> str:
    # JPEG, as LVIS has: a quarter of PNG's size and quick to read. Masks do not depend on pixels.
    return f"{task.split}/{task.image_id:012d}.jpg"


class _Scene:
    """A image being composed, and to whom each of its pixels belongs.

    Objects are marked 1, 2, ... in the order of placement; 0 is the background.
    """

    def __init__(self, options: GlyphOptions, rng: np.random.Generator) -> None:
        self._rng = rng
        self._size = options.size
        self._lengths = (options.min_scale * options.size, options.max_scale * options.size)
        self._owner = np.zeros((options.size, options.size), dtype=np.int16)
        self._needed = [0.0]  # by mark: the pixels that must stay visible
        self._visible = np.zeros(1, dtype=np.int64)  # by mark
        self._picture = _background(rng, options.size)

    def place(self, character: str) -> int | None:
        """Return add an object on top of all others or beneath them, and return its mark.

        A place is accepted if enough of it, and of every object it covers, stays visible, so that
        nothing is in the image that a label could not name. Objects get smaller as attempts
        fail; None when all have failed.
        """
        rng = self._rng
        mark = len(self._needed)
        shortest, longest = self._lengths
        for attempt in range(_PLACEMENT_ATTEMPTS):
            room = (longest / shortest) ** (1 - attempt / _PLACEMENT_ATTEMPTS)
            stamp = _stamp(character, shortest * room ** rng.random(), rng)
            height, width = stamp.shape
            top, left = (int(rng.uniform(0, self._size) - side / 2) for side in stamp.shape)
            window = (
                slice(max(top, 0), min(top + height, self._size)),
                slice(max(left, 0), min(left + width, self._size)),
            )
            inside = stamp[
                window[0].start - top : window[0].stop - top,
                window[1].start - left : window[1].stop - left,
            ]
            owner = self._owner[window]
            beneath = rng.random() < 0.5
            painted = inside & (owner == 0) if beneath else inside
            area = int(painted.sum())
            needed = max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_FRACTION * int(stamp.sum()))
            visible = self._visible - np.bincount(owner[painted], minlength=mark)
            if area < needed or (visible[1:] < self._needed[1:]).any():
                continue
            self._visible = np.append(visible, area)
            self._needed.append(needed)
            owner[painted] = mark
            texture = _texture(rng, owner.shape, _vivid_colours(rng))
            np.copyto(self._picture[window], texture, where=painted[:, :, None])
            return mark
        return None

    def finished_picture(self) -> NDArray[np.uint8]:
        """Return the (S, S, 3) image; edges are softened a little, as a lens would."""
        return np.asarray(cv2.GaussianBlur(self._picture, (3, 3), 0.6), dtype=np.uint8)

    def annotations(self, placed: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Return the category, box, area and mask of the visible part of each (class, mark)."""
        if not placed:
            return []
        marks = np.array([mark for _, mark in placed], dtype=np.int16)
        # (objects, columns, rows) in C order, because pycocotools wants its transpose in Fortran's.
        masks = np.ascontiguousarray(self._owner.T) == marks[:, None, None]
        rles = coco_mask.encode(masks.view(np.uint8).T)
        return [
            {
                "category_id": class_index + 1,
                "bbox": box,
                "area": float(area),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
            for (class_index, _), box, area, rle in zip(
                placed, coco_mask.toBbox(rles).tolist(), coco_mask.area(rles), rles, strict=True
            )
        ]


def _stamp(character: str, length: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return the character rotated and stretched at random, its longer side about `length`
    pixels."""
    bitmap = glyph_bitmap(character)
    angle = rng.uniform(-_MAX_ROTATION, _MAX_ROTATION)
    stretch = _MAX_STRETCH ** rng.uniform(-0.5, 0.5)
    scale = length / max(bitmap.shape)
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    linear = np.array([[cos * stretch, -sin / stretch], [sin * stretch, cos / stretch]])
    source_size = np.array(bitmap.shape[::-1])
    width, height = np.ceil(np.abs(linear) @ source_size).astype(int) + 1
    # Centre onto centre; cv2 has pixel centres at integers.
    shift = np.array([width - 1, height - 1]) / 2 - linear @ ((source_size - 1) / 2)
    affine = np.column_stack([linear, shift])
    return cv2.warpAffine(bitmap, affine, (int(width), int(height)), flags=cv2.INTER_LINEAR) > 127


def _background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Return patches of two textures in muted colours."""
    picture, patches = (_texture(rng, (size, size), _muted_colours(rng)) for _ in range(2))
    np.copyto(picture, patches, where=(_noise(rng, (size, size)) < 0.5)[:, :, None])
    return picture


_RAMP = np.linspace(0, 1, 256)[:, None]


def _texture(
    rng: np.random.Generator, shape: tuple[int, int], colours: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return a mixture of two `colours` (2, 3), by waves (stripes to a gradient) or by cloudy
    noise."""
    if rng.random() < 0.5:
        mixture = _noise(rng, shape)
    else:
        height, width = shape
        shortest_wave, longest_wave = 5.0, 3.0 * max(height, width)
        wave_length = shortest_wave * (longest_wave / shortest_wave) ** rng.random()
        angle, phase = rng.uniform(0, 2 * math.pi, 2)
        frequency = 2 * math.pi / wave_length
        x = np.arange(width, dtype=np.float32) * np.float32(frequency * math.cos(angle))
        y = np.arange(height, dtype=np.float32) * np.float32(frequency * math.sin(angle))
        y += np.float32(phase)
        # cos(x + y), without a cosine per pixel.
        wave = np.outer(np.cos(y), np.cos(x)) - np.outer(np.sin(y), np.sin(x))
        mixture = (0.5 + 0.5 * wave).astype(np.float32, copy=False)
    levels = np.clip(255 * mixture, 0, 255).astype(np.uint8)
    palette = colours[0] + _RAMP * (colours[1] - colours[0])
    coloured = cv2.applyColorMap(levels, palette.astype(np.uint8)[:, None, :])
    return np.asarray(coloured, dtype=np.uint8)


def _noise(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return smooth noise, mostly in [0, 1], with a few to a dozen blobs along a side."""
    cells = int(rng.integers(3, 13))
    coarse = rng.random((cells, cells), dtype=np.float32)
    smooth = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, dtype=np.float32)


def _vivid_colours(rng: np.random.Generator) -> NDArray[np.float64]:
    hue = rng.random()
    return _rgb([(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.6, 1), v)
                 for v in (rng.uniform(0.3, 0.75), rng.uniform(0.75, 1))])  # fmt: skip


def _muted_colours(rng: np.random.Generator) -> NDArray[np.float64]:
    hue = rng.random()
    return _rgb([(hue + rng.uniform(-0.2, 0.2), rng.uniform(0, 0.4), rng.uniform(0.2, 0.9))
                 for _ in range(2)])  # fmt: skip


def _rgb(hsv: Sequence[tuple[float, float, float]]) -> NDArray[np.float64]:
    return 255 * np.array([colorsys.hsv_to_rgb(hue % 1, s, v) for hue, s, v in hsv])
