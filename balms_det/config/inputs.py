"""Options of the images that training sees, under INPUT."""

from dataclasses import dataclass

from balms_det.options import ABOVE_0, AT_LEAST_0, FRACTION, Options, option


@dataclass(frozen=True)
class CopyPasteOptions(Options):
    """Copy-Paste (arXiv:2012.07177), under INPUT: objects of a second image on top of an image.

    INPUT.MASK_FORMAT must be "bitmask".
    """

    prob: float = option(
        "COPY_PASTE.PROB",
        0.0,
        "Probability that a training image has objects pasted onto it; 0 is off. The paper pastes "
        "onto every image.",
        allowed=FRACTION,
    )
    rare_prob: float = option(
        "COPY_PASTE.RARE_PROB",
        0.0,
        "Probability that the second image is one of a rare class, up to ten images, all of which "
        "are equally probable, and that the objects of this class are pasted.",
        allowed=FRACTION,
    )


@dataclass(frozen=True)
class LargeScaleJitterOptions(Options):
    """Large-scale jitter (arXiv:2012.07177), under INPUT, in place of MIN_SIZE_TRAIN.

    An image is resized by a random factor, cropped to a square, and padded to it if PAD says so.
    """

    size: int = option(
        "LARGE_SCALE_JITTER.SIZE",
        0,
        "Side of the square in pixels; the paper takes 1024. 0 is off.",
        allowed=AT_LEAST_0,
    )
    min_scale: float = option(
        "LARGE_SCALE_JITTER.MIN_SCALE",
        0.1,
        "Least size of the image, as a fraction of the square.",
        allowed=ABOVE_0,
        source="arXiv:2012.07177",
    )
    max_scale: float = option(
        "LARGE_SCALE_JITTER.MAX_SCALE",
        2.0,
        "Largest size of the image, as a fraction of the square.",
        allowed=ABOVE_0,
        source="arXiv:2012.07177",
    )
    pad: bool = option(
        "LARGE_SCALE_JITTER.PAD",
        True,
        "Whether smaller images are padded to the square. Without padding an image that is not "
        "square takes less time.",
        source="arXiv:2012.07177",
    )


@dataclass(frozen=True)
class ColorJitterOptions(Options):
    """Changes of color in training, under INPUT."""

    color_jitter: float = option(
        "COLOR_JITTER",
        0.0,
        "Brightness, contrast and saturation of a training image are each multiplied by a random "
        "factor from 1 - COLOR_JITTER to 1 + COLOR_JITTER.",
        allowed=FRACTION,
    )
