"""Augmentation of training images, composed of Detectron2's transforms."""

from typing import Any

from detectron2.data import transforms as T

from balms_det.runtime.errors import InputError


def train_augmentations(cfg: Any, default: list[Any]) -> list[Any]:
    """Return the transforms of a training image, in their order.

    Args:
        cfg: with INPUT.LARGE_SCALE_JITTER and INPUT.COLOR_JITTER.
        default: Detectron2's transforms for `cfg`.

    Returns:
        `default`, with large-scale jitter in place of resizing where LARGE_SCALE_JITTER.SIZE asks
        for it, and with changes of color at the end.

    Raises:
        InputError: large-scale jitter would crop masks that stay polygons.
    """
    transforms = list(default)
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    if jitter.SIZE:
        if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
            raise InputError(
                f"INPUT.LARGE_SCALE_JITTER.SIZE is {jitter.SIZE}, whose crops need bit masks, but "
                f"INPUT.MASK_FORMAT is {cfg.INPUT.MASK_FORMAT!r}; set it to 'bitmask'"
            )
        square = (jitter.SIZE, jitter.SIZE)
        resize = [isinstance(each, T.ResizeShortestEdge) for each in transforms].index(True)
        transforms[resize : resize + 1] = [
            T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, *square),
            # The padding belongs to no object.
            T.FixedSizeCrop(square, pad=jitter.PAD, seg_pad_value=0),
        ]
    strength = cfg.INPUT.COLOR_JITTER
    if strength:
        factors = (1 - strength, 1 + strength)
        transforms += [
            T.RandomBrightness(*factors),
            T.RandomContrast(*factors),
            T.RandomSaturation(*factors),
        ]
    return transforms
