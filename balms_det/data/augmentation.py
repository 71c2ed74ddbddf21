"""Augmentation of training images, composed of Detectron2's transforms."""

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform

from balms_det.runtime.errors import InputError


def train_augmentations(cfg: Any, default: list[Any]) -> list[Any]:
    """Return the transforms of a training image, in their order.

    Args:
        cfg: with INPUT.SCALE_JITTER and INPUT.COLOR_JITTER.
        default: Detectron2's transforms for `cfg`.

    Returns:
        `default`, with large-scale jitter in place of resizing where INPUT.SCALE_JITTER.RANGE asks
        for it, and with changes of colour at the end.

    Raises:
        InputError: large-scale jitter would crop masks that stay polygons.
    """
    transforms = list(default)
    jitter = cfg.INPUT.SCALE_JITTER
    if len(jitter.RANGE):
        _check_masks(cfg)
        size = jitter.SIZE
        transforms = [t for t in transforms if not isinstance(t, T.ResizeShortestEdge)]
        # A smaller image is not padded here: Detectron2 pads a batch to its largest image.
        transforms[:0] = [
            T.ResizeScale(*jitter.RANGE, size, size),
            UnclippedCrop((size, size), pad=False),
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


class UnclippedCrop(T.FixedSizeCrop):
    """A random crop that moves polygons and leaves them unclipped: drawing the mask clips them.

    Detectron2's own crop intersects polygons, which is slower and needs the package shapely.
    """

    def _get_crop(self, image: np.ndarray) -> CropTransform:
        crop = super()._get_crop(image)
        return _Crop(crop.x0, crop.y0, crop.w, crop.h, crop.orig_w, crop.orig_h)


class _Crop(CropTransform):
    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        return [self.apply_coords(polygon) for polygon in polygons]


def _check_masks(cfg: Any) -> None:
    if cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask":
        raise InputError(
            f"INPUT.MASK_FORMAT is {cfg.INPUT.MASK_FORMAT!r}, but INPUT.SCALE_JITTER.RANGE crops "
            "images, which needs masks of pixels; set it to 'bitmask'"
        )
