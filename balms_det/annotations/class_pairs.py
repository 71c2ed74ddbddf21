"""Which classes are annotated in which images, from any kind of data set."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@runtime_checkable
class HasClassPairs(Protocol):
    """A data set that knows its annotations' classes without making its dictionaries."""

    def class_pairs(self) -> tuple[IntArray, IntArray]: ...


def class_pairs(dataset_dicts: Sequence[Mapping[str, Any]]) -> tuple[IntArray, IntArray]:
    """Return which classes are annotated in which images, without crowds.

    Args:
        dataset_dicts: one of Detectron2's standard dicts per image, or a :class:`HasClassPairs`.

    Returns:
        (A,) positions of the images in `dataset_dicts`, ascending; and (A,) ``category_id``, as the
        annotations have it.
    """
    if isinstance(dataset_dicts, HasClassPairs):
        return dataset_dicts.class_pairs()
    image_index: list[int] = []
    class_index: list[int] = []
    for position, record in enumerate(dataset_dicts):
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0) == 0:
                image_index.append(position)
                class_index.append(annotation["category_id"])
    return np.array(image_index, np.int64), np.array(class_index, np.int64)
