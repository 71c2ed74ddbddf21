"""Long-tailed subsets of balanced data sets, as in the experiments of arXiv:2007.10740.

Shapes and names used throughout:
    N: examples. K: classes; class 0 is the most frequent of a long-tailed subset, class K - 1 the
        rarest.
    imbalance: the imbalance factor, the count of class 0 over that of class K - 1.
"""

import numpy as np
import numpy.typing as npt

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.frequency_groups import frequency_group
from balms_det.annotations.repeat_factors import ClassImages
from balms_det.runtime.errors import InputError

IntArray = npt.NDArray[np.int64]


def long_tailed_counts(largest: int, num_classes: int, imbalance: float) -> IntArray:
    """Return the class counts that fall exponentially: n_i = largest * (1 / imbalance)^(i / (K -
    1)).

    They are truncated, as in the authors' release, and no class falls below one example.

    Args:
        largest: the count of class 0, 1 or more.
        num_classes: K.
        imbalance: 1 or more; 1 gives equal counts.

    Returns:
        (K,), not ascending.

    Raises:
        InputError: `imbalance` is less than one.
    """
    if not imbalance >= 1:
        raise InputError(f"IMBALANCE is {imbalance}; set it to 1 (balanced) or more")
    position = np.arange(num_classes) / max(num_classes - 1, 1)
    # A count that is whole but for the rounding of the power must not lose one to truncation.
    counts = np.floor(largest * (1 / imbalance) ** position + 1e-9).astype(np.int64)
    return np.maximum(counts, 1)


def draw_subset(labels: IntArray, counts: IntArray, seed: int) -> IntArray:
    """Draw `counts[j]` examples of every class j.

    The same seed always draws the same examples, and of a smaller count a part of those of a
    larger one, so that subsets of different imbalance are nested.

    Args:
        labels: (N,) in [0, K).
        counts: (K,).
        seed: of the draw.

    Returns:
        Ascending indices into `labels`.

    Raises:
        InputError: a class has fewer examples than asked for.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for index, count in enumerate(counts):
        members = order[labels[order] == index]
        if len(members) < count:
            raise InputError(
                f"class {index} has {len(members)} training examples, {count} are needed; check "
                "that the data set is complete"
            )
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen))


def class_stats(labels: IntArray, names: list[str]) -> ClassStats:
    """Return the statistics from which losses are built: an image has one label, its one instance.

    Args:
        labels: (N,) in [0, K).
        names: (K,).
    """
    counts = np.bincount(labels, minlength=len(names))
    return ClassStats(
        image_counts=counts,
        instance_counts=counts,
        num_images=len(labels),
        num_annotated_images=len(labels),
        category_ids=tuple(range(len(names))),
        names=tuple(names),
        groups=tuple(frequency_group(int(count)) for count in counts),
    )


def class_images(labels: IntArray, num_classes: int) -> ClassImages:
    """Return the images of each class, from which sampling probabilities are computed."""
    counts = np.bincount(labels, minlength=num_classes)
    return ClassImages(
        image_index=np.argsort(labels, kind="stable"),
        instances=np.ones(len(labels), np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        num_images=len(labels),
    )
