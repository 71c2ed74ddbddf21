"""Which class statistics cannot be: lengths and values that contradict one another."""

from typing import Any

import numpy as np


def class_stats_fault(stats: Any) -> str | None:
    """Return what is wrong with class statistics, as a sentence without an end; None if nothing.

    Args:
        stats: a :class:`~balms_det.annotations.class_stats.ClassStats`.
    """
    num_classes = len(stats.category_ids)
    fields = ["image_counts", "instance_counts", "names", "groups"]
    if stats.box_dimensions is not None:
        fields.append("box_dimensions")
    for field in fields:
        shape = np.shape(getattr(stats, field))
        if shape != (num_classes,):
            return f"{field!r} has shape {shape}, but there are {num_classes} category ids"
    if any(a >= b for a, b in zip(stats.category_ids, stats.category_ids[1:], strict=False)):
        return "the category ids do not ascend"
    for group in set(stats.groups) - {"r", "c", "f"}:
        return f"{group!r} is not a frequency group, expected 'r', 'c' or 'f'"
    if stats.num_annotated_images > stats.num_images:
        return (
            f"{stats.num_annotated_images} of {stats.num_images} images are annotated, which "
            "cannot be"
        )
    return _impossible_class(stats)


def _impossible_class(stats: Any) -> str | None:
    possible = (
        (stats.image_counts >= 0)
        & (stats.image_counts <= stats.instance_counts)
        & (stats.image_counts <= stats.num_annotated_images)
        & ((stats.image_counts > 0) == (stats.instance_counts > 0))
    )
    for index in np.flatnonzero(~possible):
        return (
            f"class {stats.names[index]!r} has {stats.instance_counts[index]} instances in "
            f"{stats.image_counts[index]} of {stats.num_annotated_images} annotated images, which "
            "cannot be"
        )
    if stats.box_dimensions is not None:
        for index in np.flatnonzero(~(stats.box_dimensions >= 1)):  # NaN is not
            return (
                f"class {stats.names[index]!r} has the box dimension "
                f"{stats.box_dimensions[index]}, expected 1 or more"
            )
    return None
