"""Copy-Paste (arXiv:2012.07177): objects of another training image are pasted onto an image.

Shapes: N objects of an image of H x W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from balms_det.annotations.class_pairs import IntArray, class_pairs
from balms_det.annotations.frequency_groups import frequency_group

Record = dict[str, Any]


class CopyPaste:
    """A mapper that pastes objects of a second image, which it maps like the first.

    A random half of the second image's objects is pasted (paper: a random subset). Pasted pixels
    hide what is below them: the masks of hidden objects lose these pixels, their boxes shrink to
    what is left, and objects of which nothing is left are dropped.
    """

    def __init__(
        self,
        mapper: Callable[[Record], Record],
        dataset: Sequence[Record],
        *,
        prob: float,
        rare_prob: float,
    ) -> None:
        """
        Args:
            mapper: from one of Detectron2's dictionaries to an image with bit masks.
            dataset: of the training images, to draw second images from.
            prob: probability that an image has objects pasted onto it, in [0, 1].
            rare_prob: probability that the second image is drawn for a rare class (of up to ten
                images), all of which are equally probable, and whose objects are then pasted; the
                others are drawn from all images.
        """
        self._mapper, self._dataset = mapper, dataset
        self._prob, self._rare_prob = prob, rare_prob
        self._images_of_rare = images_of_rare_classes(dataset)

    def __call__(self, record: Record) -> Record:
        """Return the mapped image, with objects pasted onto it or not.

        Draws with NumPy's generator, as Detectron2's augmentations do.
        """
        target = self._mapper(record)
        if np.random.random() >= self._prob:
            return target
        index, rare_class = self._draw()
        source = self._mapper(self._dataset[index])
        classes = source["instances"].gt_classes.numpy()
        chosen = np.random.random(len(classes)) < 0.5
        if rare_class is not None:
            chosen |= classes == rare_class
        return paste(target, source, torch.from_numpy(np.flatnonzero(chosen)))

    def _draw(self) -> tuple[int, int | None]:
        """Return the second image, and the rare class that it was drawn for."""
        if self._images_of_rare and np.random.random() < self._rare_prob:
            rare = list(self._images_of_rare)
            drawn = rare[np.random.randint(len(rare))]
            images = self._images_of_rare[drawn]
            return int(images[np.random.randint(len(images))]), drawn
        return int(np.random.randint(len(self._dataset))), None


def images_of_rare_classes(dataset: Sequence[Record]) -> dict[int, IntArray]:
    """Return the images of each class that LVIS calls rare, of those that occur.

    Args:
        dataset: Detectron2's dictionaries, or what knows its class pairs.

    Returns:
        From a class to the ascending positions of its images in `dataset`.
    """
    image_index, class_index = class_pairs(dataset)
    found = {}
    for number in np.unique(class_index).tolist():
        images = np.unique(image_index[class_index == number])
        if frequency_group(len(images)) == "r":
            found[number] = images
    return found


def paste(target: Record, source: Record, chosen: Tensor) -> Record:
    """Return an image with some objects of another one on top, at the same place.

    What lies outside of the target is cut off.

    Args:
        target, source: mapped images: "image" (3, H, W), and "instances" with ``gt_boxes``,
            ``gt_classes`` and, where there are objects, bit masks ``gt_masks``.
        chosen: (M,) int64, the objects of `source` to paste.

    Returns:
        A dictionary like `target`, with a new "image" and new "instances".
    """
    height, width = target["image"].shape[1:]
    masks = _masks(source)
    rows, columns = (min(a, b) for a, b in zip((height, width), masks.shape[1:], strict=True))
    pasted = masks.new_zeros(len(chosen), height, width)
    for over, index in zip(pasted, chosen.tolist(), strict=True):
        over[:rows, :columns] = masks[index, :rows, :columns]
    boxes, visible = _extents(pasted)
    pasted, boxes, chosen = pasted[visible], boxes[visible], chosen[visible]
    if not len(pasted):
        return target
    x1, y1 = boxes[:, :2].amin(dim=0).int().tolist()
    x2, y2 = boxes[:, 2:].amax(dim=0).int().tolist()
    # Nothing outside of this window changes.
    window = (slice(y1, y2), slice(x1, x2))
    on_top = pasted[:, *window].any(dim=0)
    image = target["image"].clone()
    image[:, *window] = torch.where(on_top, source["image"][:, *window], image[:, *window])
    below = target["instances"]
    left, left_boxes, kept = _hidden_by(target, on_top, window)
    instances = Instances(
        (height, width),
        gt_boxes=Boxes(torch.cat([left_boxes[kept], boxes.to(left_boxes)])),
        gt_classes=torch.cat([below.gt_classes[kept], source["instances"].gt_classes[chosen]]),
        gt_masks=BitMasks(torch.stack([*(left[i] for i in kept.tolist()), *pasted])),
    )
    return {**target, "image": image, "instances": instances}


def _hidden_by(
    target: Record, on_top: Tensor, window: tuple[slice, slice]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what is left of an image's objects below `on_top` in a window.

    Returns:
        The N masks, their (N, 4) boxes, and the indices of those that are not empty.
    """
    left = list(_masks(target))
    boxes = target["instances"].gt_boxes.tensor.clone()
    kept = torch.ones(len(left), dtype=torch.bool)
    for index, mask in enumerate(left):
        if (mask[window] & on_top).any():
            left[index] = mask.clone()
            left[index][window] &= ~on_top
            tight, visible = _extents(left[index][None])
            boxes[index], kept[index] = tight[0].to(boxes), visible[0]
    return left, boxes, kept.nonzero()[:, 0]


def _extents(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (N, 4) tight boxes of (N, H, W) masks, zeros for empty ones, and which have any.

    As Detectron2's ``BitMasks.get_bounding_boxes``, with NumPy, which is several times faster here.
    """
    boxes = torch.zeros(len(masks), 4)
    visible = torch.zeros(len(masks), dtype=torch.bool)
    for index, mask in enumerate(masks.numpy()):
        rows = np.flatnonzero(mask.any(axis=1))
        if len(rows):
            columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            boxes[index] = torch.tensor(edges, dtype=torch.float32)
            visible[index] = True
    return boxes, visible


def _masks(mapped: Record) -> Tensor:
    """Return the (N, H, W) masks of an image; Detectron2 gives one without objects none."""
    instances = mapped["instances"]
    if instances.has("gt_masks"):
        masks: Tensor = instances.gt_masks.tensor
        return masks
    return torch.zeros(0, *mapped["image"].shape[1:], dtype=torch.bool)
