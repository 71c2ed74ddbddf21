"""Everything that decides the content of a generated data set."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from balms_det.runtime.errors import InputError
from balms_det.synthetic.class_counts import exponential_curve, lvis_v1_curve, zipf_curve
from balms_det.synthetic.glyphs import MAX_CLASSES

_MIN_LENGTH = 12  # pixels; below, most characters cannot be told apart
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
        seed: non-negative; other seeds give other images, and other classes the tail.
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

    def curve(self) -> NDArray[np.float64]:
        """Return (K,) relative class counts of the training set, by rank."""
        return _CURVES[self.tail](self)

    def _require(self, name: str, satisfied: bool, choice: str) -> None:
        if not satisfied:
            raise InputError(
                f"the glyph data set's {name} is {getattr(self, name)}; choose {choice}"
            )


_CURVES: dict[str, Callable[[GlyphOptions], NDArray[np.float64]]] = {
    "exponential": lambda options: exponential_curve(options.classes, options.imbalance),
    "zipf": lambda options: zipf_curve(options.classes, options.zipf_exponent),
    "lvis_v1": lambda options: lvis_v1_curve(options.classes),
}
