"""The fields of LVIS and COCO annotation files: one schema for everyone who reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# No image format that is trained on holds a longer side.
MAX_SIDE = 100_000


@dataclass(frozen=True)
class Field:
    """A field of a record.

    Attributes:
        kinds: the types that its value may have; True and False are no integers.
        expected: the allowed values in words, to end "expected ...".
        holds: whether a value of such a type is allowed; None where every one is.
        required: whether each record must have it.
    """

    kinds: frozenset[type]
    expected: str
    holds: Callable[[Any], bool] | None = None
    required: bool = True


def _is_box(value: list[Any]) -> bool:
    return len(value) == 4 and {type(number) for number in value} <= {int, float}


def _are_ids(value: list[Any]) -> bool:
    return {type(item) for item in value} <= {int} and min(value, default=0) >= 0


_INTEGER, _NUMBER = frozenset({int}), frozenset({int, float})
_LIST, _TEXT = frozenset({list}), frozenset({str})
_ID = Field(_INTEGER, "a non-negative integer", lambda value: value >= 0)
_SIDE = Field(_INTEGER, f"an integer from 0 to {MAX_SIDE}", lambda value: 0 <= value <= MAX_SIDE)
_IDS = Field(_LIST, "a list of category ids", _are_ids, required=False)

SCHEMA: dict[str, dict[str, Field]] = {
    "images": {
        "id": _ID,
        "height": _SIDE,
        "width": _SIDE,
        "neg_category_ids": _IDS,
        "not_exhaustive_category_ids": _IDS,
    },
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _ID,
        "bbox": Field(_LIST, "[x, y, width, height]", _is_box),
        "area": Field(_NUMBER, "a number of 0 or more", lambda value: value >= 0, required=False),
        "iscrowd": Field(frozenset({int, bool}), "0 or 1", lambda v: v in (0, 1), required=False),
    },
    "categories": {
        "id": _ID,
        "name": Field(_TEXT, "a string"),
        "frequency": Field(
            _TEXT, "'r', 'c' or 'f'", lambda v: v in ("r", "c", "f"), required=False
        ),
    },
}


def record_fault(section: str, record: Any) -> str | None:
    """Return what is wrong with a record of `section`, as the end of a sentence, or None.

    Returns:
        None when every required field is there, and every known field has an allowed value.
    """
    if type(record) is not dict:
        return f"is {record!r:.40}, expected an object"
    for name, field in SCHEMA[section].items():
        if name not in record:
            if field.required:
                return f"has no {name!r}"
            continue
        value = record[name]
        if type(value) not in field.kinds or (field.holds and not field.holds(value)):
            return f"has {name!r} {value!r:.60}, expected {field.expected}"
    return None
