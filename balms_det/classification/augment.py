"""Random augmentation of whole batches, on the device that holds the images.

What differs from image to image is drawn for all of them at once, and images that get the same
operation are transformed together. So a batch costs some dozens of calls, not thousands, and needs
no worker processes.

Shapes and names used throughout:
    N: images of the batch. C, H, W: channels, height and width.
    images: (N, C, H, W) uint8, on any device.
    generator: of the CPU; on every device the same numbers are drawn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as F

# The colour that fills the place an image is moved away from, grey as in the release.
_FILL = 128.0
_MAGNITUDES = 10  # levels of an operation's strength


@dataclass(frozen=True)
class Augmentation:
    """The augmentations of a training set, in the order in which they apply.

    Attributes:
        crop_padding: black pixels put around an image before a window of its size is cut out.
        flip: mirror every second image.
        autoaugment: two operations of the AutoAugment policy for CIFAR-10 (arXiv:1805.09501).
        cutout: side in pixels of a square that is blacked out (arXiv:1708.04552); 0 for none.
    """

    crop_padding: int = 0
    flip: bool = False
    autoaugment: bool = False
    cutout: int = 0

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        if self.crop_padding:
            images = random_crop(images, self.crop_padding, generator)
        if self.flip:
            images = random_flip(images, generator)
        if self.autoaugment:
            images = autoaugment(images, generator)
        if self.cutout:
            images = cutout(images, self.cutout, generator)
        return images


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Cut a window of the images' own size out of each of them, padded with black."""
    n, channels, height, width = images.shape
    if n == 0:  # nothing to cut windows out of
        return images
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    offsets = torch.randint(2 * padding + 1, (2, n), generator=generator).to(images.device)
    top, left = offsets[:, :, None, None]
    # Images are moved row by row, because a row is one piece of memory: where each begins.
    row = torch.arange(height, device=images.device) + top
    plane = torch.arange(n * channels, device=images.device).view(n, channels, 1)
    start = (plane * padded.shape[2] + row) * padded.shape[3] + left
    rows = padded.flatten().unfold(0, width, 1)  # from every pixel on
    return rows.index_select(0, start.flatten()).view(images.shape)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image with a probability of one half."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, side: int, generator: Generator) -> Tensor:
    """Black out a square about a random pixel; near a border a part of it lies outside.

    Args:
        side: of the square, in pixels.
    """
    inside = []
    for length in images.shape[2:]:
        centre = torch.randint(length, (len(images), 1), generator=generator)
        offset = torch.arange(length) - centre + side // 2
        inside.append(((offset >= 0) & (offset < side)).to(images.device))
    rows, columns = inside
    return images * ~(rows[:, :, None] & columns[:, None, :])[:, None]


def autoaugment(images: Tensor, generator: Generator) -> Tensor:
    """Return apply one of the policy's 25 pairs of operations to each image, drawn with its
    chances.

    As torchvision's AutoAugment, whose table of pairs this is, but for whole batches, and grey
    where an image is moved away from, as in the authors' release.
    """
    operations, chances, choices = _policy()
    pair = torch.randint(len(choices), (len(images),), generator=generator)
    happens = torch.rand(len(images), 2, generator=generator) <= chances[pair]
    negative = torch.randint(2, (len(images), 2), generator=generator)
    # The operation of each image, as an index into `operations`, which end with none.
    chosen = torch.where(
        happens, choices[pair].gather(2, negative[:, :, None])[:, :, 0], len(operations) - 1
    )
    order = torch.arange(len(images))
    for step in chosen.unbind(1):
        # Images that get the same operation one after the other, so that they can be cut apart.
        by_operation = step[order].argsort()
        order = order[by_operation]
        sizes = step.bincount(minlength=len(operations)).tolist()
        parts = torch.split(images.index_select(0, by_operation.to(images.device)), sizes)
        transformed = zip(operations, parts, strict=True)
        images = torch.cat([operation(part) for operation, part in transformed if len(part)])
    return images.index_select(0, order.argsort().to(images.device))


Operation = Callable[[Tensor], Tensor]


@cache
def _policy() -> tuple[list[Operation], Tensor, Tensor]:
    """Return the operations, and none at the end; and for each pair the (25, 2) chances of its
    operations
    and their (25, 2, 2) positions, with a positive and with a negative magnitude."""
    pairs = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    positions: dict[tuple[str, float], int] = {}

    def position(name: str, level: int | None, sign: int) -> int:
        strength = (level or 0) / (_MAGNITUDES - 1)
        key = name, strength if name in _WITHOUT_SIGN else sign * strength
        return positions.setdefault(key, len(positions))

    choices = [[[position(n, level, sign) for sign in (1, -1)] for n, _, level in p] for p in pairs]
    operations: list[Operation] = [
        partial(_OPERATIONS[name], strength=strength) for name, strength in positions
    ]
    operations.append(lambda images: images)
    chances = torch.tensor([[chance for _, chance, _ in pair] for pair in pairs])
    return operations, chances, torch.tensor(choices)


def _shear_y(images: Tensor, strength: float) -> Tensor:
    degrees = math.degrees(math.atan(0.3 * strength))
    moved: Tensor = F.affine(images, 0, [0, 0], 1, [0, degrees], fill=[_FILL], center=[0, 0])
    return moved


def _translate(images: Tensor, strength: float, dim: int) -> Tensor:
    """Move images along `dim` (2 down, 3 right), by up to 150 of 331 parts of their size."""
    size = images.shape[dim]
    shift = int(150 / 331 * size * strength)
    moved = torch.full_like(images, int(_FILL))
    length = size - abs(shift)
    kept = images.narrow(dim, max(-shift, 0), length)
    moved.narrow(dim, max(shift, 0), length).copy_(kept)
    return moved


# By name, what an operation does to the (N, C, H, W) images that get it. `strength` is in [-1, 1],
# or in [0, 1] for those without a sign.
_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "ShearY": _shear_y,
    "TranslateX": partial(_translate, dim=3),
    "TranslateY": partial(_translate, dim=2),
    "Rotate": lambda images, strength: F.rotate(images, 30 * strength, fill=[_FILL]),
    "Brightness": lambda images, strength: F.adjust_brightness(images, 1 + 0.9 * strength),
    "Color": lambda images, strength: F.adjust_saturation(images, 1 + 0.9 * strength),
    "Contrast": lambda images, strength: F.adjust_contrast(images, 1 + 0.9 * strength),
    "Sharpness": lambda images, strength: F.adjust_sharpness(images, 1 + 0.9 * strength),
    "Posterize": lambda images, strength: F.posterize(images, 8 - round(4 * strength)),
    "Solarize": lambda images, strength: F.solarize(images, 255 * (1 - strength)),
    "AutoContrast": lambda images, strength: F.autocontrast(images),
    "Equalize": lambda images, strength: F.equalize(images),
    "Invert": lambda images, strength: F.invert(images),
}
_WITHOUT_SIGN = {"Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"}
