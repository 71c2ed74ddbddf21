"""Faults of image files: names, decoding and size."""

import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import ExifTags, Image

from balms_det.annotations.faults import Fault
from balms_det.annotations.file import AnnotationFile
from balms_det.runtime.errors import InputError
from balms_det.runtime.progress import progress_bar

# EXIF orientations that turn the image by a quarter, and so swap its width and height.
_QUARTER_TURNS = (5, 6, 7, 8)


def check_image_names(file: AnnotationFile) -> Iterator[Fault]:
    """Yield images that name no file, and files that several images name."""
    images_of: defaultdict[str, list[int]] = defaultdict(list)
    for image in file.images:
        name = _name_of(file, image)
        if name is None:
            message = "has neither 'file_name' nor 'coco_url'"
            yield Fault("malformed_record", f"image {image['id']}", message)
        else:
            images_of[os.path.normpath(name)].append(image["id"])
    for name, ids in images_of.items():
        if len(ids) > 1:
            message = "is the file of the images " + ", ".join(map(str, ids))
            yield Fault("shared_image_file", name, message)


def check_images(
    file: AnnotationFile, image_root: str | os.PathLike[str], progress: bool
) -> list[Fault]:
    """Return the images that cannot be decoded or have another size than the file says.

    Images are decoded in threads: Pillow releases the interpreter lock while it decodes.
    """

    def check(image: dict[str, Any]) -> Fault | None:
        name = _name_of(file, image)
        if name is None:
            return None
        found = _image_fault(os.path.join(image_root, name), image["width"], image["height"])
        return found and Fault(found[0], f"image {image['id']} ({name})", found[1])

    with ThreadPoolExecutor() as pool:
        checked = pool.map(check, file.images)
        bar = progress_bar(checked, "Decoding", total=len(file.images), show=progress)
        return [fault for fault in bar if fault is not None]


def _name_of(file: AnnotationFile, image: dict[str, Any]) -> str | None:
    try:
        return file.image_name(image)
    except InputError:
        return None


def _image_fault(path: str, width: int, height: int) -> tuple[str, str] | None:
    """Return kind and message of the fault of an image that should have the given size, or None."""
    try:
        with Image.open(path) as image:
            image.load()
            size, mode = image.size, image.mode
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    except FileNotFoundError:
        return "missing_image", f"there is no file {path}"
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to.
        return "corrupt_image", f"it cannot be decoded ({error})"
    if mode == "F":
        return "corrupt_image", "its pixels are floating-point numbers, expected 8 or 16 bits"
    turned = orientation in _QUARTER_TURNS
    if turned:
        size = size[::-1]
    if size == (width, height):
        return None
    hint = ", once its EXIF orientation is applied" if turned else ""
    return (
        "image_size",
        f"it is {size[0]} x {size[1]}{hint}, the annotation file says {width} x {height}",
    )
