"""How often a sampler draws each image, computed from which classes the images contain.

Shapes and names used throughout:
    N: images of the data set. K: classes. P: distinct (class, image) pairs, at most as many as
        there are annotations.
    threshold: t, the image frequency below which a class is repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from balms_det.annotations.class_pairs import class_pairs
from balms_det.annotations.class_stats import CountBy
from balms_det.runtime.errors import InputError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassImages:
    """The images that contain each class, one class after the other (compressed sparse rows).

    The images of class j are ``image_index[offsets[j]:offsets[j + 1]]``, ascending; nothing is of
    size K * N. Images without annotations are counted by `num_images` and occur nowhere else.

    Attributes:
        image_index: (P,) int64 in [0, N).
        instances: (P,) int64; how many annotations of the class the image has.
        offsets: (K + 1,) int64, from 0 to P.
        num_images: N.
    """

    image_index: IntArray
    instances: IntArray
    offsets: IntArray
    num_images: int

    @classmethod
    def from_dataset_dicts(
        cls, dataset_dicts: Sequence[Mapping[str, Any]], num_classes: int
    ) -> "ClassImages":
        """Build from Detectron2's standard data set dicts, without crowds, which it never trains
        on.

        Raises:
            InputError: a category id is not in [0, K).
        """
        return cls.from_pairs(*class_pairs(dataset_dicts), len(dataset_dicts), num_classes)

    @classmethod
    def from_pairs(
        cls, images: IntArray, classes: IntArray, num_images: int, num_classes: int
    ) -> "ClassImages":
        """Build from the (A,) image and the (A,) class of every annotation.

        Raises:
            InputError: a class is not in [0, K).
        """
        unknown = (classes < 0) | (classes >= num_classes)
        if unknown.any():
            raise InputError(
                f"an annotation of image {images[unknown][0]} of the data set (counted from 0) has "
                f"the category_id {classes[unknown][0]}, expected 0 to {num_classes - 1}; map the "
                "data set's ids to contiguous ones"
            )
        pairs, instances = np.unique(classes * max(num_images, 1) + images, return_counts=True)
        boundaries = np.arange(num_classes + 1) * max(num_images, 1)
        return cls(
            image_index=pairs % max(num_images, 1),
            instances=instances.astype(np.int64),
            offsets=np.searchsorted(pairs, boundaries).astype(np.int64),
            num_images=num_images,
        )

    @property
    def num_classes(self) -> int:
        return len(self.offsets) - 1

    @property
    def image_counts(self) -> IntArray:
        """(K,) images that contain each class."""
        return np.diff(self.offsets)

    @property
    def instance_counts(self) -> IntArray:
        """(K,) annotations of each class."""
        return np.diff(np.concatenate([[0], np.cumsum(self.instances)])[self.offsets])

    def per_pair(self, class_values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Spread (K,) values of the classes over the (P,) pairs."""
        return np.repeat(class_values, self.image_counts)


def image_frequency(images: ClassImages) -> FloatArray:
    """Return (K,) f_j: the fraction of all images that contain class j."""
    return images.image_counts / max(images.num_images, 1)


def instance_aware_frequency(images: ClassImages) -> FloatArray:
    """Return the geometric mean of a class's shares of the images and of the annotations.

        f_j = sqrt( (images with j / N) * (annotations of j / all annotations) )

    Instance-aware repeat factor sampling (arXiv:2305.08069) puts it where repeat factor sampling
    has the image frequency.

    Returns:
        (K,) in [0, 1], zero for a class that does not occur.
    """
    total = max(int(images.instances.sum()), 1)
    return np.sqrt(image_frequency(images) * (images.instance_counts / total))


def class_repeat_factors(
    frequency: FloatArray, threshold: float, *, sqrt: bool = True
) -> FloatArray:
    """Return the repeat factor of each class: r_j = max(1, sqrt(t / f_j)) (arXiv:1908.03195,
    appendix B.2).

    Args:
        frequency: (K,) f_j, from :func:`image_frequency` or :func:`instance_aware_frequency`.
        threshold: t >= 0; classes more frequent than this are not repeated. Zero repeats nothing.
        sqrt: as in the paper; False takes t / f_j itself, as Detectron2 offers.

    Returns:
        (K,), at least 1; 1 for a class that does not occur.
    """
    ratio = np.divide(threshold, frequency, out=np.ones_like(frequency), where=frequency > 0)
    return np.maximum(1.0, np.sqrt(ratio) if sqrt else ratio)


def advised_threshold(image_counts: IntArray, num_images: int) -> float:
    """Return the threshold that repeats all but the most frequent third of the classes.

    On LVIS v1, whose frequent classes are a third of all, that is near the paper's 0.001.

    Args:
        image_counts: (K,) images that contain each class; those without any do not count.
        num_images: N.

    Returns:
        t in [0, 1]; 0 where no class occurs.
    """
    counts = np.sort(image_counts[image_counts > 0])
    if not len(counts):
        return 0.0
    return float(counts[len(counts) * 2 // 3] / num_images)


def image_repeat_factors(images: ClassImages, class_factors: FloatArray) -> FloatArray:
    """Return the repeat factor of each image: the largest among its classes (arXiv:1908.03195,
    B.2).

    Returns:
        (N,); 1 for an image without annotations.
    """
    factors = np.ones(images.num_images)
    np.maximum.at(factors, images.image_index, images.per_pair(class_factors))
    return factors


def class_probabilities(images: ClassImages, power: float) -> FloatArray:
    """Return the probability of drawing each class: p_j = n_j^q / sum_i n_i^q (arXiv:1910.09217,
    eq. 1).

    n_j counts images, because an image is what is drawn.

    Args:
        images: of the data set.
        power: q >= 0. Zero is class-balanced sampling, a half is square-root sampling, and one
            draws a (class, image) pair uniformly.

    Returns:
        (K,), zero for a class that does not occur.

    Raises:
        InputError: no class occurs at all.
    """
    counts = images.image_counts.astype(np.float64)
    weights: FloatArray = np.where(counts > 0, counts**power, 0.0)
    if not weights.any():
        raise no_class_to_draw()
    probs: FloatArray = weights / weights.sum()
    return probs


def no_class_to_draw() -> InputError:
    """Return the error of a sampler that draws classes from a data set without annotations."""
    return InputError(
        "the training set has no annotation, so that no class can be drawn; set "
        "DATALOADER.SAMPLER_TRAIN to 'TrainingSampler', or check the data set with "
        "`balms-det check`"
    )


def image_probabilities(images: ClassImages, class_probs: FloatArray) -> FloatArray:
    """Return the probability of drawing each image: a class by `class_probs`, then uniformly an
    image of it.

    Returns:
        (N,), summing to one; zero for an image without annotations.
    """
    shares = images.per_pair(class_probs / np.maximum(images.image_counts, 1))
    return _sum_by(images.image_index, shares, images.num_images)


def expected_counts(
    images: ClassImages, image_weights: FloatArray, by: CountBy = "instances"
) -> FloatArray:
    """Return the class counts as training sees them: expected, in as many draws as there are
    images.

    A prior shift derived from the data set's own counts is off under a sampler that changes how
    often classes are seen; these are the counts to derive it from.

    Args:
        images: of the data set.
        image_weights: (N,) how often the sampler draws each image, on any scale: repeat factors,
            or :func:`image_probabilities`. Equal weights give the data set's own counts.
        by: "instances" counts annotations, "images" counts images that contain the class.

    Returns:
        (K,), not rounded.
    """
    draws = image_weights * (images.num_images / image_weights.sum())
    pairs = draws[images.image_index]
    if by == "instances":
        pairs = pairs * images.instances
    class_index = images.per_pair(np.arange(images.num_classes))
    return _sum_by(class_index, pairs, images.num_classes)


def _sum_by(index: IntArray, values: FloatArray, length: int) -> FloatArray:
    """Return (length,) sums of the `values` with each index; zero for an index that does not
    occur."""
    return np.bincount(index, values, minlength=length).astype(np.float64, copy=False)
