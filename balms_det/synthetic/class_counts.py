"""How many objects of each class: the shapes of a long tail, in whole numbers.

Shapes: K classes; rank is the position of a class when sorted by falling count, in [0, K).
"""

import numpy as np
from numpy.typing import NDArray


def exponential_curve(num_classes: int, imbalance: float) -> NDArray[np.float64]:
    """Return relative class counts that fall exponentially, from `imbalance` to 1
    (arXiv:1901.05555).

    Returns:
        (K,) by rank. A single class has the count `imbalance`.
    """
    return np.power(float(imbalance), np.linspace(1, 0, num_classes))


def zipf_curve(num_classes: int, exponent: float) -> NDArray[np.float64]:
    """Return relative class counts 1 / (rank + 1)^`exponent`; shape (K,), from 1 downwards."""
    return np.arange(1, num_classes + 1, dtype=np.float64) ** -exponent


def lvis_v1_curve(num_classes: int) -> NDArray[np.float64]:
    """Return an approximation of how many training images of LVIS v1 contain each class.

    Log counts are interpolated between nine quantiles that were read off the annotations. At 1,203
    classes the group sizes are LVIS's own (405 frequent, 461 common, 337 rare), and the mean
    absolute error of the log counts is 0.06; other numbers of classes get the same shape.

    Returns:
        (K,) by rank, from 1,980 down to 1.
    """
    quantiles = (0, 0.05, 0.1, 0.2, 0.3365, 0.5, 0.72, 0.9, 1)
    image_counts = (1980, 1880, 1400, 360, 100.5, 37, 10.5, 2.6, 1)
    return np.exp(np.interp(np.linspace(0, 1, num_classes), quantiles, np.log(image_counts)))


def long_tail_counts(
    curve: NDArray[np.float64], total: int, *, at_least: int = 1
) -> NDArray[np.int64]:
    """Return integer class counts that follow `curve` and add up to `total`.

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
    """Return counts that add up to `total` and differ by at most one, the larger ones spread
    evenly."""
    class_of_object = np.arange(total) * num_classes // max(total, 1)
    return np.asarray(np.bincount(class_of_object, minlength=num_classes), dtype=np.int64)
