"""The characters that are the classes, and their bitmaps."""

import itertools
import math
import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import cv2
import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_CLASSES = 1203  # as many as LVIS v1 has

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
    """Return the characters that stand for classes 0..K-1; fewer classes get the first of the same
    list.

    No two look alike: their outlines, brought to one size, have an intersection over union of at
    most 0.7 (so of "o", "O" and "0" one is left). European scripts come first, then symbols, then
    other scripts, and what is composed of these (accented letters) last.
    """
    return tuple(itertools.islice(_distinct_characters(), num_classes))


def class_name(character: str) -> str:
    """Return Unicode's name as an identifier, e.g. "latin_capital_letter_a"."""
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
    """Return the character's grey levels, cropped to its ink; None when it has none."""
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
    """Return the bitmap scaled to a square's side, centred in it: what "looks alike" is measured
    on."""
    scale = _SIGNATURE_SIDE / max(bitmap.shape)
    height, width = (max(1, round(side * scale)) for side in bitmap.shape)
    scaled = cv2.resize(bitmap, (width, height), interpolation=cv2.INTER_AREA) > 127
    signature = np.zeros((_SIGNATURE_SIDE, _SIGNATURE_SIDE), dtype=np.bool_)
    top, left = (_SIGNATURE_SIDE - height) // 2, (_SIGNATURE_SIDE - width) // 2
    signature[top : top + height, left : left + width] = scaled
    return signature


@lru_cache(maxsize=MAX_CLASSES)
def glyph_bitmap(character: str) -> NDArray[np.uint8]:
    """Return the character with its longer side about 256 pixels, the source of all its objects."""
    probe_size = 64
    probe = _tight_bitmap(character, probe_size)
    assert probe is not None, character
    bitmap = _tight_bitmap(character, round(probe_size * _BITMAP_LENGTH / max(probe.shape)))
    assert bitmap is not None, character
    return bitmap
