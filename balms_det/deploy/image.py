"""From an image to the first graph's input."""

import numpy as np

from balms_det.deploy.description import ImageInput
from balms_det.runtime.errors import InputError


def resized(image: np.ndarray, options: ImageInput) -> np.ndarray:
    """Return an (H, W, 3) uint8 RGB image at the size and with the channels that the model takes.

    Pillow resizes it, as it does for Detectron2 in training.

    Raises:
        InputError: it is not such an image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise InputError(
            f"the image is an array {image.dtype} of shape {image.shape}; give uint8 of shape "
            "(height, width, 3), in RGB"
        )
    if options.channels == "BGR":
        image = image[:, :, ::-1]
    height, width = input_size(image.shape[:2], options)
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    pillow = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR))


def input_size(image_size: tuple[int, ...], options: ImageInput) -> tuple[int, int]:
    """Return the (height, width) to which an image of (height, width) is resized."""
    height, width = image_size
    if options.shortest_edge == 0:
        return height, width
    scale = options.shortest_edge / min(height, width)
    # In the order of Detectron2's ResizeShortestEdge, which decides how it is rounded.
    new = [float(options.shortest_edge)] * 2
    if height < width:
        new[1] = scale * width
    else:
        new[0] = scale * height
    if max(new) > options.longest_edge:
        scale = options.longest_edge / max(new)
        new = [edge * scale for edge in new]
    return int(new[0] + 0.5), int(new[1] + 0.5)


def padded(image: np.ndarray, options: ImageInput) -> np.ndarray:
    """Return an (H, W, 3) image as (1, 3, H', W') float32, padded to a multiple of the divisor.

    Padding has the mean of its channel, which the graph subtracts.
    """
    height, width = (-(-edge // options.divisor) * options.divisor for edge in image.shape[:2])
    mean = np.array(options.pixel_mean, np.float32)[:, None, None]
    result = np.empty((1, 3, height, width), np.float32)
    result[0] = mean
    result[0, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return result
