"""Drawings of predictions, in which rare, common and frequent classes are told apart by colour."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from balms_det.annotations.frequency_groups import GROUP_NAMES

# Colours that the three common kinds of colour blindness leave distinct (Okabe and Ito), RGB.
GROUP_COLORS = {"r": (213, 94, 0), "c": (240, 190, 0), "f": (0, 114, 178)}
UNKNOWN_COLOR = (120, 120, 120)

# Labels are unreadable on smaller images.
_SHORTEST_SIDE = 480


def draw_predictions(
    image: np.ndarray, instances: Instances, names: Sequence[str], groups: Sequence[str] | None
) -> np.ndarray:
    """Draw boxes, masks, class names and scores, the least certain first, with a legend.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and optionally ``pred_masks``
            (N, H, W), on the CPU.
        names: (K,) class names.
        groups: (K,) of "r", "c", "f"; None draws every class in one colour.

    Returns:
        (H', W', 3) uint8, RGB: small images are enlarged so that labels can be read.
    """
    scale = max(1.0, _SHORTEST_SIDE / min(image.shape[:2]))
    canvas = Visualizer(image, scale=scale, instance_mode=ColorMode.SEGMENTATION)
    order = instances.scores.argsort()
    instances = instances[order]
    classes = instances.pred_classes.tolist()
    colors = [
        tuple(channel / 255 for channel in (GROUP_COLORS[groups[c]] if groups else UNKNOWN_COLOR))
        for c in classes
    ]
    if instances.has("pred_masks"):
        # Not through overlay_instances, which fills the holes of a mask.
        for mask, color in zip(instances.pred_masks.numpy(), colors, strict=True):
            canvas.draw_binary_mask(mask.astype(np.uint8), color, alpha=0.4)
    drawn = canvas.overlay_instances(
        boxes=instances.pred_boxes,
        labels=[
            f"{names[c]} {score:.0%}"
            for c, score in zip(classes, instances.scores.tolist(), strict=True)
        ],
        assigned_colors=colors,
    ).get_image()
    return np.vstack([drawn, _legend(drawn.shape[1])]) if groups else drawn


def _legend(width: int) -> np.ndarray:
    """Return a strip of `width` pixels that says which colour is which group."""
    strip = np.full((28, width, 3), 255, dtype=np.uint8)
    left = 8
    for group, color in GROUP_COLORS.items():
        cv2.rectangle(strip, (left, 7), (left + 14, 21), color, thickness=-1)
        label = GROUP_NAMES[group]
        cv2.putText(
            strip, label, (left + 20, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA
        )
        left += 40 + 9 * len(label)
    return strip
