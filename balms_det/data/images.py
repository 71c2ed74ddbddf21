"""Reading image files: every pixel format that Pillow knows, and errors that name the file."""

import os
from collections.abc import Sequence

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps

from balms_det.runtime.errors import InputError

# Pillow's modes of 16 bits a pixel, and of 32, as which some versions read 16. Converted to RGB by
# Pillow, every value above 255 would be white.
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: str, format: str) -> np.ndarray:
    """Read an image as Detectron2's function of this name does, turned as its EXIF data says.

    Of 16 bits a pixel, the upper eight are kept; of transparency, nothing.

    Args:
        path: of the file.
        format: "RGB" or "BGR" for color channels in this order, or another format of Detectron2's.

    Returns:
        (H, W, 3) uint8.

    Raises:
        InputError: there is no such file, or it cannot be decoded or is too large.
    """
    remedy = "repair or remove it; `balms-det check` lists every such file of a data set"
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, expected 8 or 16 bits")
            if image.mode in _DEEP_MODES:
                upper = np.asarray(image).astype(np.int64) >> 8
                eight_bits = Image.fromarray(upper.clip(0, 255).astype(np.uint8))
                eight_bits.info["exif"] = image.getexif().tobytes()
                turned = ImageOps.exif_transpose(eight_bits)
                pixels: np.ndarray = detection_utils.convert_PIL_to_numpy(turned, format)
                return pixels
        pixels = detection_utils.read_image(path, format=format)
        return pixels
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such image; check the image root; {remedy}"
        ) from error
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to.
        raise InputError(f"{path}: the image cannot be read ({error}); {remedy}") from error


def missing_files(paths: Sequence[str]) -> list[str]:
    """Return which of some local files do not exist.

    Each directory is listed once, which takes less time than a question for each file. Addresses
    with a scheme, such as s3://, are not looked up.
    """
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        if "://" in path:
            continue
        directory, name = os.path.split(path)
        if directory not in listed:
            listed[directory] = set(os.listdir(directory)) if os.path.isdir(directory) else set()
        if name not in listed[directory]:
            missing.append(path)
    return missing
