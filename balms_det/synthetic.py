"""A long-tailed instance segmentation data set in LVIS v1 format, drawn from glyphs.

Nothing is downloaded: the objects are characters of DejaVu Sans Bold, which Matplotlib ships,
textured, rotated, scaled and occluding one another on textured backgrounds. Each character is one
class. The same options give the same bytes, whatever the number of worker processes: every image
has a random generator of its own, seeded by (seed, split, image id).

Shapes and names used throughout:
    K: number of classes; classes have the indices 0..K-1 here and the ids 1..K in the files.
    rank: position of a class when sorted by falling training count, in [0, K).
    S: side of the square images in pixels.
"""

import colorsys
import itertools
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import cv2
import matplotlib
import numpy as np
import orjson
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask
from tqdm import tqdm

from balms_det.errors import InputError

MAX_CLASSES = 1203  # as many as LVIS v1 has

# Part of what decides whether a folder is up to date: raise it when the pictures change.
_GENERATOR_VERSION = "1.0"
_DATE = "2000-01-01 00:00:00"  # fixed, because the same options must give the same bytes

_SPLIT_SEEDS = {"train": 1, "val": 2}

_MAX_ROTATION = math.radians(20)  # more would turn one class into another: 6 and 9, two arrows
_MAX_STRETCH = 1.25  # of one axis against the other, either way
_MIN_LENGTH = 12  # pixels; below, most characters cannot be told apart
_MIN_VISIBLE_FRACTION = 0.4  # of an object's pixels, those outside the image included
_MIN_VISIBLE_PIXELS = 16
_PLACEMENT_ATTEMPTS = 20
_MAX_OBJECTS = 1000  # pixels know their object by a 16-bit number


@dataclass(frozen=True)
class GlyphOptions:
    """Everything that decides the content of a generated data set.

    Attributes:
        classes: number of classes, 1 to 1,203.
        first_class: characters of the generator's list that are passed over, so that two sets can
            be made that share no class.
        train_images: number of training images, at least 1.
        val_images: number of validation images, at least 1.
        size: side S of the square images in pixels, at least 32.
        seed: non-negative; other seeds give other pictures, and other classes the tail.
        tail: shape of the training counts: "exponential" (as in CIFAR-LT), "zipf", or "lvis_v1".
        imbalance: for "exponential", instances of the most frequent class per instance of the
            rarest, at least 1.
        zipf_exponent: for "zipf", s in count ~ 1 / (rank + 1)^s, not negative.
        val_tail: "balanced" gives every class as many validation instances, "long_tailed" the
            same shape as in training.
        min_objects: fewest annotated objects aimed at per image, at least 1.
        max_objects: most annotated objects per image.
        min_scale: shortest object, its longer side as a fraction of S.
        max_scale: longest object, at most 1.
        negatives: verified absent classes per image (``neg_category_ids``); fewer where fewer
            classes are absent.
        not_exhaustive: fraction of the images with one class of which one object more is to be
            seen than is annotated (``not_exhaustive_category_ids``).
        rare_at_most: a class in at most so many training images is in frequency group "r".
        common_at_most: a class in more, but at most so many, is in "c"; others in "f".

    Raises:
        InputError: a value is out of its range.
    """

    classes: int = 10
    first_class: int = 0
    train_images: int = 600
    val_images: int = 100
    size: int = 128
    seed: int = 0
    tail: Literal["exponential", "zipf", "lvis_v1"] = "exponential"
    imbalance: float = 20.0
    zipf_exponent: float = 1.0
    val_tail: Literal["balanced", "long_tailed"] = "balanced"
    min_objects: int = 3
    max_objects: int = 9
    min_scale: float = 0.18
    max_scale: float = 0.45
    negatives: int = 5
    not_exhaustive: float = 0.1
    rare_at_most: int = 10
    common_at_most: int = 100

    def __post_init__(self) -> None:
        self._require("classes", 1 <= self.classes <= MAX_CLASSES, f"1 to {MAX_CLASSES}")
        self._require(
            "first_class",
            0 <= self.first_class <= MAX_CLASSES - self.classes,
            f"0 to {MAX_CLASSES - self.classes}, for {self.classes} of {MAX_CLASSES} characters",
        )
        self._require("train_images", self.train_images >= 1, "1 or more")
        self._require("val_images", self.val_images >= 1, "1 or more")
        self._require("size", self.size >= 32, "32 pixels or more")
        self._require("seed", self.seed >= 0, "0 or more")
        self._require("tail", self.tail in _CURVES, f"one of {', '.join(_CURVES)}")
        self._require("imbalance", 1 <= self.imbalance < math.inf, "1 or more")
        self._require("zipf_exponent", 0 <= self.zipf_exponent < math.inf, "0 or more")
        val_tails = ("balanced", "long_tailed")
        self._require("val_tail", self.val_tail in val_tails, f"one of {', '.join(val_tails)}")
        self._require("min_objects", self.min_objects >= 1, "1 or more")
        self._require(
            "max_objects",
            self.min_objects <= self.max_objects <= _MAX_OBJECTS,
            f"min_objects to {_MAX_OBJECTS}",
        )
        self._require(
            "min_scale",
            self.min_scale * self.size >= _MIN_LENGTH,
            f"at least {_MIN_LENGTH / self.size:.3f}, for objects of {_MIN_LENGTH} pixels or more",
        )
        self._require("max_scale", self.min_scale <= self.max_scale <= 1, "min_scale to 1")
        self._require("negatives", self.negatives >= 0, "0 or more")
        self._require("not_exhaustive", 0 <= self.not_exhaustive <= 1, "a fraction from 0 to 1")
        self._require("rare_at_most", self.rare_at_most >= 0, "0 or more")
        self._require(
            "common_at_most", self.common_at_most >= self.rare_at_most, "rare_at_most or more"
        )

    def _require(self, name: str, satisfied: bool, choice: str) -> None:
        if not satisfied:
            raise InputError(
                f"the glyph data set's {name} is {getattr(self, name)}; choose {choice}"
            )


# Class counts


def exponential_curve(num_classes: int, imbalance: float) -> NDArray[np.float64]:
    """Relative class counts that fall exponentially, from `imbalance` to 1 (arXiv:1901.05555).

    Returns:
        (K,) by rank. A single class has the count `imbalance`.
    """
    return np.power(float(imbalance), np.linspace(1, 0, num_classes))


def zipf_curve(num_classes: int, exponent: float) -> NDArray[np.float64]:
    """Relative class counts 1 / (rank + 1)^`exponent`; shape (K,), from 1 downwards."""
    return np.arange(1, num_classes + 1, dtype=np.float64) ** -exponent


def lvis_v1_curve(num_classes: int) -> NDArray[np.float64]:
    """An approximation of how many training images of LVIS v1 contain each class.

    Log counts are interpolated between nine quantiles that were read off the annotations. At 1,203
    classes the group sizes are LVIS's own (405 frequent, 461 common, 337 rare), and the mean
    absolute error of the log counts is 0.06; other numbers of classes get the same shape.

    Returns:
        (K,) by rank, from 1,980 down to 1.
    """
    quantiles = (0, 0.05, 0.1, 0.2, 0.3365, 0.5, 0.72, 0.9, 1)
    image_counts = (1980, 1880, 1400, 360, 100.5, 37, 10.5, 2.6, 1)
    return np.exp(np.interp(np.linspace(0, 1, num_classes), quantiles, np.log(image_counts)))


_CURVES: dict[str, Callable[[GlyphOptions], NDArray[np.float64]]] = {
    "exponential": lambda options: exponential_curve(options.classes, options.imbalance),
    "zipf": lambda options: zipf_curve(options.classes, options.zipf_exponent),
    "lvis_v1": lambda options: lvis_v1_curve(options.classes),
}


def long_tail_counts(
    curve: NDArray[np.float64], total: int, *, at_least: int = 1
) -> NDArray[np.int64]:
    """Integer class counts that follow `curve` and add up to `total`.

    Classes that would fall below `at_least` are lifted to it at the others' expense. Rounding is by
    largest remainder, so every other count is within one of its share.

    Args:
        curve: (K,) relative counts, positive, not increasing.
        total: at least K * `at_least`.
        at_least: smallest count, 0 or more.

    Returns:
        (K,) not increasing.
    """
    num_classes = len(curve)
    assert total >= num_classes * at_least, (total, num_classes, at_least)
    # With only the first 1, 2, ..., K classes above the floor: the curve's scale, and whether the
    # last of them really is above.
    scales = (total - at_least * np.arange(num_classes - 1, -1, -1)) / np.cumsum(curve)
    above = np.flatnonzero(scales * curve >= at_least)
    # By arithmetic the first class always is; by floating point, not when all are at the floor.
    scale = scales[above[-1]] if len(above) else scales[0]
    shares = np.maximum(scale * curve, at_least)
    counts: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    largest_remainders = np.argsort(counts - shares, kind="stable")
    counts[largest_remainders[: total - counts.sum()]] += 1
    return counts


def balanced_counts(num_classes: int, total: int) -> NDArray[np.int64]:
    """Counts that add up to `total` and differ by at most one, the larger ones spread evenly."""
    class_of_object = np.arange(total) * num_classes // max(total, 1)
    return np.asarray(np.bincount(class_of_object, minlength=num_classes), dtype=np.int64)


# Glyphs

# The first classes: easily recognised, and told apart from afar.
_FIRST_CHARACTERS = "A8★R♫4♥SX&O?2☂MZ@7♣HKW♞"
# Arrangements of dots or strokes that only a second look tells apart.
_PATTERN_SCRIPTS = ("BRAILLE", "TETRAGRAM", "HEXAGRAM", "DIGRAM", "MONOGRAM")
_SIGNATURE_SIDE = 24
_MAX_SIGNATURE_IOU = 0.7
_MIN_INK = 0.15  # of the square on the longer side; thinner glyphs vanish at small scales
_BITMAP_LENGTH = 256
_POPULATION = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint16)


@lru_cache(maxsize=8)
def glyph_characters(num_classes: int) -> tuple[str, ...]:
    """The characters that stand for classes 0..K-1; fewer classes get the first of the same list.

    No two look alike: their outlines, brought to one size, have an intersection over union of at
    most 0.7 (so of "o", "O" and "0" one is left). European scripts come first, then symbols, then
    other scripts, and what is composed of these (accented letters) last.
    """
    return tuple(itertools.islice(_distinct_characters(), num_classes))


def class_name(character: str) -> str:
    """Unicode's name as an identifier, e.g. "latin_capital_letter_a"."""
    return unicodedata.name(character).lower().replace(" ", "_").replace("-", "_")


def _distinct_characters() -> Iterator[str]:
    signatures = np.zeros((MAX_CLASSES, _SIGNATURE_SIDE**2 // 8), dtype=np.uint8)
    areas = np.zeros(MAX_CLASSES, dtype=np.int64)
    found = 0
    for character in _candidate_characters():
        bitmap = _tight_bitmap(character, font_size=40)
        if bitmap is None:
            continue
        signature = _signature(bitmap)
        area = int(signature.sum())
        if area < _MIN_INK * _SIGNATURE_SIDE**2:
            continue
        bits = np.packbits(signature)
        intersections = _POPULATION[signatures[:found] & bits].sum(axis=1, dtype=np.int64)
        unions = areas[:found] + area - intersections
        if found and (intersections > _MAX_SIGNATURE_IOU * unions).any():
            continue
        signatures[found], areas[found] = bits, area
        found += 1
        yield character
        if found == MAX_CLASSES:
            return


def _candidate_characters() -> list[str]:
    first_other_script, first_symbol = 0x0500, 0x2000

    def order(character: str) -> tuple[bool, int, str]:
        if ord(character) < first_other_script:
            block = 0
        else:
            block = 1 if ord(character) >= first_symbol else 2
        return bool(unicodedata.decomposition(character)), block, character

    rest = []
    for code_point in FT2Font(_font_path()).get_charmap():
        character = chr(code_point)
        name = unicodedata.name(character, "")
        is_mark_space_or_control = unicodedata.category(character)[0] in "MZC"
        if name and not is_mark_space_or_control and not name.startswith(_PATTERN_SCRIPTS):
            rest.append(character)
    return list(dict.fromkeys([*_FIRST_CHARACTERS, *sorted(rest, key=order)]))


def _font_path() -> str:
    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine is in every Pillow; the other one depends on a system library.
    return ImageFont.truetype(_font_path(), size, layout_engine=ImageFont.Layout.BASIC)


def _tight_bitmap(character: str, font_size: int) -> NDArray[np.uint8] | None:
    """The character's grey levels, cropped to its ink; None when it has none."""
    font = _font(font_size)
    left, top, right, bottom = font.getbbox(character)
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), character, fill=255, font=font)
    grey = np.asarray(canvas)
    rows, columns = (np.flatnonzero((grey > 127).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _signature(bitmap: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The bitmap scaled to a square's side, centred in it: what "looks alike" is measured on."""
    scale = _SIGNATURE_SIDE / max(bitmap.shape)
    height, width = (max(1, round(side * scale)) for side in bitmap.shape)
    scaled = cv2.resize(bitmap, (width, height), interpolation=cv2.INTER_AREA) > 127
    signature = np.zeros((_SIGNATURE_SIDE, _SIGNATURE_SIDE), dtype=np.bool_)
    top, left = (_SIGNATURE_SIDE - height) // 2, (_SIGNATURE_SIDE - width) // 2
    signature[top : top + height, left : left + width] = scaled
    return signature


@lru_cache(maxsize=MAX_CLASSES)
def _glyph_bitmap(character: str) -> NDArray[np.uint8]:
    """The character with its longer side about 256 pixels, the source of all its objects."""
    probe_size = 64
    probe = _tight_bitmap(character, probe_size)
    assert probe is not None, character
    bitmap = _tight_bitmap(character, round(probe_size * _BITMAP_LENGTH / max(probe.shape)))
    assert bitmap is not None, character
    return bitmap


# Pictures


@dataclass(frozen=True)
class _ImageTask:
    split: str
    image_id: int
    classes: tuple[int, ...]  # one entry per object, in the order of placement


@dataclass(frozen=True)
class _ImageLabels:
    task: _ImageTask
    objects: list[dict[str, Any]]  # annotations without "id" and "image_id"
    not_exhaustive: list[int]  # category ids
    negatives: list[int]  # category ids


def _draw_image(
    task: _ImageTask, *, options: GlyphOptions, characters: Sequence[str], out_dir: Path
) -> _ImageLabels:
    """Draw and write one picture, and label it."""
    rng = np.random.default_rng([options.seed, _SPLIT_SEEDS[task.split], task.image_id])
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
    (out_dir / _relative_path(task)).write_bytes(jpeg.tobytes())
    return _ImageLabels(
        task=task,
        objects=scene.annotations(placed),
        not_exhaustive=not_exhaustive,
        negatives=sorted(int(class_index) + 1 for class_index in negatives),
    )


def _relative_path(task: _ImageTask) -> str:
    # JPEG, as LVIS has: a quarter of PNG's size and quick to read. Masks do not depend on pixels.
    return f"{task.split}/{task.image_id:012d}.jpg"


class _Scene:
    """A picture being composed, and to whom each of its pixels belongs.

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
        """Add an object on top of all others or beneath them, and return its mark.

        A place is accepted if enough of it, and of every object it covers, stays visible, so that
        nothing is in the picture that a label could not name. Objects get smaller as attempts
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
        """The (S, S, 3) picture; edges are softened a little, as a lens would."""
        return np.asarray(cv2.GaussianBlur(self._picture, (3, 3), 0.6), dtype=np.uint8)

    def annotations(self, placed: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Category, box, area and mask of the visible part of each (class, mark)."""
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
    """The character rotated and stretched at random, its longer side about `length` pixels."""
    bitmap = _glyph_bitmap(character)
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
    """Patches of two textures in muted colours."""
    picture, patches = (_texture(rng, (size, size), _muted_colours(rng)) for _ in range(2))
    np.copyto(picture, patches, where=(_noise(rng, (size, size)) < 0.5)[:, :, None])
    return picture


_RAMP = np.linspace(0, 1, 256)[:, None]


def _texture(
    rng: np.random.Generator, shape: tuple[int, int], colours: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """A mixture of two `colours` (2, 3), by waves (stripes to a gradient) or by cloudy noise."""
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
    """Smooth noise, mostly in [0, 1], with a few to a dozen blobs along a side."""
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


# The data set


def annotation_path(out_dir: str | os.PathLike[str], split: str) -> Path:
    """Where :func:`generate` writes the annotations of `split`, "train" or "val".

    The image root of both is `out_dir` itself.
    """
    return Path(out_dir) / f"glyphs_{split}.json"


def generate(
    out_dir: str | os.PathLike[str],
    options: GlyphOptions,
    *,
    workers: int = 1,
    progress: bool = False,
) -> bool:
    """Write ``glyphs_train.json``, ``glyphs_val.json``, ``train/*.jpg`` and ``val/*.jpg``.

    The annotation files come last and whole, so a folder that has both is finished. They hold the
    options; a folder finished with the same ones is left as it is, and one with others is replaced.

    Args:
        out_dir: made if need be.
        options: what to draw.
        workers: processes that draw; has no influence on the result. With more than one, the
            calling script needs Python's usual ``if __name__ == "__main__":`` guard.
        progress: show a progress bar on standard error.

    Returns:
        Whether anything was drawn; False when the data set was already there.

    Raises:
        InputError: there are too few images for the classes, or the folder cannot be written or
            holds pictures of another kind.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; choose 1 or more")
    out_dir = Path(out_dir)
    if _is_finished(out_dir, options):
        return False
    tasks = _plan(options, "train") + _plan(options, "val")
    characters = glyph_characters(options.first_class + options.classes)[options.first_class :]
    try:
        _clear(out_dir)
        draw = partial(_draw_image, options=options, characters=characters, out_dir=out_dir)
        with _parallel_map(workers) as parallel_map:
            drawn = list(
                tqdm(
                    parallel_map(draw, tasks),
                    total=len(tasks),
                    desc="Drawing glyphs",
                    unit="image",
                    disable=not progress,
                )
            )
        labels = {split: [each for each in drawn if each.task.split == split]
                  for split in _SPLIT_SEEDS}  # fmt: skip
        categories = _categories(options, characters, labels["train"])
        for split, labels_of_split in labels.items():
            content = _lvis_content(options, categories, labels_of_split)
            unfinished = _unfinished_path(out_dir, split)
            unfinished.write_bytes(orjson.dumps(content))
            os.replace(unfinished, annotation_path(out_dir, split))
    except OSError as error:
        raise InputError(
            f"{error.filename or out_dir}: the data set cannot be written there "
            f"({error.strerror}); choose another folder or make room"
        ) from error
    return True


def _plan(options: GlyphOptions, split: str) -> list[_ImageTask]:
    """Deal the objects of all classes out to the images of a split."""
    rng = np.random.default_rng([options.seed, _SPLIT_SEEDS[split], 0])  # image ids start at 1
    num_images = options.train_images if split == "train" else options.val_images
    num_objects = rng.integers(options.min_objects, options.max_objects + 1, num_images)
    total = int(num_objects.sum())
    curve = _CURVES[options.tail](options)
    if split == "train":
        if total < options.classes:
            raise InputError(
                f"{num_images} training images hold {total} objects, too few for one of each of "
                f"the {options.classes} classes; choose train_images of "
                f"{math.ceil(options.classes / options.min_objects)} or more"
            )
        counts = long_tail_counts(curve, total)
    elif options.val_tail == "long_tailed":
        counts = long_tail_counts(curve, total, at_least=0)
    else:
        counts = balanced_counts(options.classes, total)

    # Any class may be rare: the rare ones should not all be the exotic characters. The same
    # shuffle for both splits.
    class_of_rank = np.random.default_rng([options.seed, 0]).permutation(options.classes)
    ranks = rng.permutation(np.repeat(np.arange(options.classes), counts))
    tasks = []
    for position, ranks_of_image in enumerate(np.split(ranks, np.cumsum(num_objects)[:-1])):
        # The rarest first, while there is most room, so that no class loses its only object.
        classes = class_of_rank[np.sort(ranks_of_image)[::-1]]
        tasks.append(_ImageTask(split, position + 1, tuple(classes.tolist())))
    return tasks


def _categories(
    options: GlyphOptions, characters: Sequence[str], train: Sequence[_ImageLabels]
) -> list[dict[str, Any]]:
    """LVIS's categories with the counts of the training split, which LVIS has in both files."""
    category_ids_by_image = [[o["category_id"] for o in labels.objects] for labels in train]
    num_ids = options.classes + 1
    instance_counts = np.bincount(np.concatenate(category_ids_by_image), minlength=num_ids)
    image_counts = np.bincount(
        np.concatenate([np.unique(ids) for ids in category_ids_by_image]), minlength=num_ids
    )
    without_instance = int((instance_counts[1:] == 0).sum())
    if without_instance:
        raise InputError(
            f"{without_instance} of {options.classes} classes found no place in images of up to "
            f"{options.max_objects} objects; choose a smaller max_objects or min_scale, or more "
            "train_images"
        )
    categories = []
    for category_id, character in enumerate(characters, start=1):
        name = class_name(character)
        image_count = int(image_counts[category_id])
        if image_count <= options.rare_at_most:
            frequency = "r"
        else:
            frequency = "c" if image_count <= options.common_at_most else "f"
        categories.append(
            {
                "id": category_id,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": f"the character {character} (U+{ord(character):04X})",
                "image_count": image_count,
                "instance_count": int(instance_counts[category_id]),
                "frequency": frequency,
            }
        )
    return categories


def _lvis_content(
    options: GlyphOptions, categories: list[dict[str, Any]], labels: Iterable[_ImageLabels]
) -> dict[str, Any]:
    images = []
    annotations: list[dict[str, Any]] = []
    for each in labels:
        image_id = each.task.image_id
        images.append(
            {
                "id": image_id,
                "width": options.size,
                "height": options.size,
                "license": 1,
                # LVIS v1 has no file_name; readers take the last two parts of this address.
                "coco_url": f"http://glyphs.invalid/{_relative_path(each.task)}",
                "flickr_url": "",
                "date_captured": _DATE,
                "neg_category_ids": each.negatives,
                "not_exhaustive_category_ids": each.not_exhaustive,
            }
        )
        for annotation in each.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    return {
        "info": _info(options),
        "licenses": [
            {
                "id": 1,
                "name": "Bitstream Vera and DejaVu fonts",
                "url": "https://dejavu-fonts.github.io/License.html",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _info(options: GlyphOptions) -> dict[str, Any]:
    return {
        "description": "Long-tailed instance segmentation of glyphs, generated by balms_det",
        "url": "",
        "version": _GENERATOR_VERSION,
        "year": int(_DATE[:4]),
        "contributor": "",
        "date_created": _DATE,
        "options": asdict(options),
    }


def _is_finished(out_dir: Path, options: GlyphOptions) -> bool:
    for split, num_images in (("train", options.train_images), ("val", options.val_images)):
        try:
            content = orjson.loads(annotation_path(out_dir, split).read_bytes())
            names = set(os.listdir(out_dir / split))
        except (OSError, orjson.JSONDecodeError):
            return False
        if not isinstance(content, dict) or content.get("info") != _info(options):
            return False
        expected = (_relative_path(_ImageTask(split, i, ())) for i in range(1, num_images + 1))
        if not names.issuperset(os.path.basename(path) for path in expected):
            return False
    return True


def _clear(out_dir: Path) -> None:
    """Make the folders, without annotation files and without pictures of an earlier run.

    Nothing is removed from a folder that has pictures but no trace of this generator.
    """
    ours = [path for split in _SPLIT_SEEDS for path in (
        annotation_path(out_dir, split), _unfinished_path(out_dir, split))]  # fmt: skip
    is_ours = any(path.exists() for path in ours)
    for split in _SPLIT_SEEDS:
        folder = out_dir / split
        folder.mkdir(parents=True, exist_ok=True)
        if not is_ours and any(folder.iterdir()):
            raise InputError(
                f"{folder}: there are files that are not of a glyph data set; choose another folder"
            )
    for split in _SPLIT_SEEDS:
        _unfinished_path(out_dir, split).touch()
        annotation_path(out_dir, split).unlink(missing_ok=True)
        for picture in (out_dir / split).glob("[0-9]" * 12 + ".jpg"):
            picture.unlink()


def _unfinished_path(out_dir: Path, split: str) -> Path:
    return annotation_path(out_dir, split).with_suffix(".json.part")


@contextmanager
def _parallel_map(workers: int) -> Iterator[Callable[..., Iterable[_ImageLabels]]]:
    if workers == 1:
        yield map
        return
    # A fork would copy the threads' locks of whatever library the caller has running.
    context = get_context("spawn")
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield partial(pool.map, chunksize=16)
