"""Drawings of predictions, in which rare, common and frequent classes are told apart by color."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer

from balms_det.annotations.frequency_groups import GROUP_NAMES

# Colors that the three common kinds of color blindness leave distinct (Okabe and Ito), RGB.
GROUP_COLORS = {"r": (213, 94, 0), "c": (240, 190, 0), "f": (0, 114, 178)}
UNKNOWN_COLOR = (120, 120, 120)

# Labels are unreadable on smaller images.
_SHORTEST_SIDE = 480
_FONT, _FONT_SCALE, _PADDING = cv2.FONT_HERSHEY_SIMPLEX, 0.42, 2


class Label(NamedTuple):
    """A text in a filled rectangle; positions in pixels."""

    left: int
    top: int
    width: int
    height: int

    def overlaps(self, other: "Label") -> bool:
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


def draw_predictions(
    image: np.ndarray,
    instances: Instances,
    names: Sequence[str],
    groups: Sequence[str] | None,
    *,
    enlarge: bool = False,
) -> np.ndarray:
    """Draw boxes, masks, class names and scores, the least certain first, with a legend below.

    Labels do not cover one another; one that finds no place is left out.

    Args:
        image: (H, W, 3) uint8, RGB.
        instances: with ``pred_boxes``, ``scores``, ``pred_classes`` and optionally ``pred_masks``
            (N, H, W), on the CPU.
        names: (K,) class names.
        groups: (K,) of "r", "c", "f"; None draws every class in one color.
        enlarge: draw small images larger, so that labels can be read. Otherwise a pixel of the
            drawing is a pixel of the image.

    Returns:
        (H', W', 3) uint8, RGB; H' = H and W' = W, but for the legend, unless enlarged.
    """
    scale = max(1.0, _SHORTEST_SIDE / min(image.shape[:2])) if enlarge else 1.0
    canvas = Visualizer(image, scale=scale, instance_mode=ColorMode.SEGMENTATION)
    instances = instances[instances.scores.argsort()]
    classes = instances.pred_classes.tolist()
    colors = [GROUP_COLORS[groups[c]] if groups else UNKNOWN_COLOR for c in classes]
    shares = [tuple(channel / 255 for channel in color) for color in colors]
    if instances.has("pred_masks"):
        # Not through overlay_instances, which fills the holes of a mask.
        for mask, color in zip(instances.pred_masks.numpy(), shares, strict=True):
            canvas.draw_binary_mask(mask.astype(np.uint8), color, alpha=0.4)
    overlaid = canvas.overlay_instances(boxes=instances.pred_boxes, assigned_colors=shares)
    drawn = np.ascontiguousarray(overlaid.get_image())
    texts = [
        f"{names[c]} {score:.0%}"
        for c, score in zip(classes, instances.scores.tolist(), strict=True)
    ]
    # The most certain first, which then has the best place.
    boxes = (instances.pred_boxes.tensor * scale).round().int().tolist()[::-1]
    labels = place_labels(boxes, texts[::-1], drawn.shape[:2])
    for label, text, color in zip(labels, texts[::-1], colors[::-1], strict=True):
        if label is not None:
            _draw_label(drawn, label, text, color)
    return np.vstack([drawn, _legend(drawn.shape[1])]) if groups else drawn


def place_labels(
    boxes: Sequence[Sequence[int]], texts: Sequence[str], size: tuple[int, int]
) -> list[Label | None]:
    """Return where the label of each box goes: at the box, off the labels before it.

    Args:
        boxes: N of x1, y1, x2, y2 in pixels.
        texts: N.
        size: height and width of the image.

    Returns:
        N labels within the image; None for one that finds no place.
    """
    placed: list[Label | None] = []
    for (x1, y1, _, y2), text in zip(boxes, texts, strict=True):
        (width, height), baseline = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
        width, height = width + 2 * _PADDING, height + baseline + 2 * _PADDING
        left = max(0, min(x1, size[1] - width))
        # Above the box, then inside of it from its top down, then below.
        tops = [y1 - height, *range(y1, y2 + 1, height), y2]
        candidates = [Label(left, top, width, height) for top in tops]
        placed.append(
            next(
                (
                    label
                    for label in candidates
                    if 0 <= label.top <= size[0] - height
                    and not any(other is not None and label.overlaps(other) for other in placed)
                ),
                None,
            )
        )
    return placed


def _draw_label(image: np.ndarray, label: Label, text: str, color: tuple[int, int, int]) -> None:
    corner = (label.left + label.width - 1, label.top + label.height - 1)
    cv2.rectangle(image, (label.left, label.top), corner, color, thickness=-1)
    luminance = np.dot(color, (0.299, 0.587, 0.114))
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    _, baseline = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    origin = (label.left + _PADDING, label.top + label.height - _PADDING - baseline)
    cv2.putText(image, text, origin, _FONT, _FONT_SCALE, ink, 1, cv2.LINE_AA)


def _legend(width: int) -> np.ndarray:
    """Return a strip of `width` pixels that says which color is which group."""
    strip = np.full((28, width, 3), 255, dtype=np.uint8)
    left = 8
    for group, color in GROUP_COLORS.items():
        cv2.rectangle(strip, (left, 7), (left + 14, 21), color, thickness=-1)
        label = GROUP_NAMES[group]
        cv2.putText(strip, label, (left + 20, 19), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        left += 40 + 9 * len(label)
    return strip
