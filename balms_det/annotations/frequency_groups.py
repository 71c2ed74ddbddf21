"""The groups rare, common and frequent: which class belongs to which."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
# The most images of a rare and of a common class (arXiv:1908.03195).
LVIS_LIMITS = (10, 100)


def frequency_group(image_count: int, limits: tuple[int, int] = LVIS_LIMITS) -> str:
    """Return the group of a class that occurs in `image_count` training images.

    Args:
        image_count: number of training images with the class.
        limits: the most images of a rare and of a common class; default LVIS's.

    Returns:
        "r" (rare), "c" (common) or "f" (frequent).
    """
    rare, common = limits
    return "r" if image_count <= rare else "c" if image_count <= common else "f"


def thirds(image_counts: npt.NDArray[np.int64]) -> list[str]:
    """Return groups of equal size, by the order of the counts; of equal counts, the first is
    rarer.

    Args:
        image_counts: (K,) training images of each class.

    Returns:
        (K,) of "r", "c", "f".
    """
    rank = np.empty(len(image_counts), np.int64)
    rank[np.argsort(image_counts, kind="stable")] = np.arange(len(image_counts))
    return ["rcf"[3 * int(position) // len(image_counts)] for position in rank]


def limits_in(groups: str) -> tuple[int, int] | None:
    """Return the limits that a value such as "20,200" of MODEL.LONG_TAIL.GROUPS states, or None."""
    parts = groups.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        return None
    rare, common = map(int, parts)
    return (rare, common) if rare <= common else None


def are_groups(groups: object) -> bool:
    """Return whether `groups` is a value of MODEL.LONG_TAIL.GROUPS."""
    return groups in ("lvis", "thirds") or (
        isinstance(groups, str) and limits_in(groups) is not None
    )


def grouped(image_counts: npt.NDArray[np.int64], groups: str, own: Sequence[str]) -> Sequence[str]:
    """Return the group of each class.

    Args:
        image_counts: (K,) training images of each class.
        groups: "lvis", "thirds", or the two limits with a comma between them.
        own: (K,) groups that the annotation file states, or follow by LVIS's limits.

    Returns:
        (K,) of "r", "c", "f".
    """
    if groups == "lvis":
        return own
    if groups == "thirds":
        return thirds(image_counts)
    limits = limits_in(groups)
    assert limits is not None, groups
    return [frequency_group(count, limits) for count in image_counts.tolist()]
