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

    An image is resized by a random factor and cropped or padded to a square.
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
