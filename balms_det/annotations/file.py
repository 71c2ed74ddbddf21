"""Reading annotation files in LVIS or COCO format: the structure is checked here, and only here."""

import codecs
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import orjson

from balms_det.annotations.schema import SCHEMA, record_fault
from balms_det.runtime.errors import InputError
from balms_det.runtime.garbage_collection import gc_disabled

_REMEDY = "give an instance annotation file in LVIS or COCO format"


@dataclass(frozen=True)
class AnnotationFile:
    """The content of an LVIS or COCO instance annotation file, as parsed.

    Attributes:
        path: where it was read from.
        format: "lvis" when it carries LVIS's federated fields, "coco" otherwise.
        images: in the file's order.
        annotations: in the file's order.
        categories: sorted by id; position i is the contiguous class index i.
    """

    path: str
    format: Literal["lvis", "coco"]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    @classmethod
    def from_content(cls, content: Any, path: str | os.PathLike[str]) -> "AnnotationFile":
        """Check that `content`, parsed from `path`, has LVIS's or COCO's structure, and wrap it.

        Raises:
            InputError: at the first record that has not; `balms-det check` lists them all.
        """
        sections = sections_of(content, path)
        for section, records in sections.items():
            for position, record in enumerate(records):
                fault = record_fault(section, record)
                if fault is not None:
                    raise InputError(f"{path}: {section}[{position}] {fault}; {_REMEDY}")
        file = cls.from_sections(sections, path)
        if not file.categories:
            raise InputError(f"{path}: the list 'categories' is empty; {_REMEDY}")
        for previous, category in zip(file.categories, file.categories[1:], strict=False):
            if previous["id"] == category["id"]:
                raise InputError(
                    f"{path}: two categories have the id {category['id']} ({previous['name']!r} "
                    f"and {category['name']!r}); give each its own"
                )
        return file

    @classmethod
    def from_sections(
        cls, sections: dict[str, list[dict[str, Any]]], path: str | os.PathLike[str]
    ) -> "AnnotationFile":
        """Wrap `sections` whose records have no :func:`record_fault`, without further checks."""
        images, categories = sections["images"], sections["categories"]
        federated = any("frequency" in category for category in categories) or any(
            "neg_category_ids" in image for image in images
        )
        return cls(
            path=os.fspath(path),
            format="lvis" if federated else "coco",
            images=images,
            annotations=sections["annotations"],
            categories=sorted(categories, key=lambda category: category["id"]),
        )

    @property
    def has_masks(self) -> bool:
        """Whether some annotation has a segmentation."""
        return any(annotation.get("segmentation") for annotation in self.annotations)

    def image_name(self, image: dict[str, Any]) -> str:
        """Return the path of an image (one of :attr:`images`) below the image root.

        LVIS v1 names its files by ``coco_url`` alone, whose last two parts are the split's folder
        and the file; COCO by ``file_name``.

        Raises:
            InputError: the image names no file.
        """
        url, name = image.get("coco_url"), image.get("file_name")
        if isinstance(url, str) and (self.format == "lvis" or not isinstance(name, str)):
            return "/".join(url.split("/")[-2:])
        if isinstance(name, str):
            return name
        raise InputError(
            f"{self.path}: image {image['id']} has neither 'file_name' nor 'coco_url'; "
            "add one of them, so that the image can be found"
        )

    def image_path(self, image: dict[str, Any], image_root: str | os.PathLike[str]) -> str:
        """Return the path of an image (one of :attr:`images`) under `image_root`.

        Raises:
            InputError: the image names no file.
        """
        return os.path.join(image_root, self.image_name(image))


def read_annotation_file(path: str | os.PathLike[str]) -> AnnotationFile:
    """Parse `path` and check that it has the structure of LVIS or COCO instance annotations.

    Only structure is checked, which takes little time beside parsing; `balms-det check` checks
    boxes, masks, ids and images.

    Raises:
        InputError: the file is missing, not JSON, or neither LVIS nor COCO.
    """
    return AnnotationFile.from_content(read_json(path), path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse the JSON file `path`.

    Raises:
        InputError: the file cannot be read or is not JSON; JSON has no NaN and no Infinity.
    """
    with gc_disabled():
        return parse_json(read_bytes(path), path)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of the file `path`.

    Raises:
        InputError: it cannot be read.
    """
    with opened(path) as file:
        return file.read()


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Return the file `path`, opened to read its bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise InputError(
            f"{path}: the file cannot be read ({error.strerror}); check the path"
        ) from error


def parse_json(data: bytes, path: str | os.PathLike[str]) -> Any:
    """Parse `data`, the content of `path`.

    Raises:
        InputError: it is not JSON; JSON has no NaN and no Infinity.
    """
    try:
        return orjson.loads(data.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError as error:
        # The error counts characters; the excerpt may be off by a few where there are non-ASCII.
        excerpt = data[max(error.pos - 30, 0) : error.pos + 10].decode(errors="replace")
        raise InputError(
            f"{path}: this is not valid JSON ({error}, at the end of {excerpt!r}); repair that "
            "place, or fetch the file again if it was cut off while being copied"
        ) from error


def sections_of(content: Any, path: str | os.PathLike[str]) -> dict[str, list[Any]]:
    """Return the lists "images", "annotations" and "categories" of `content`, parsed from `path`.

    Raises:
        InputError: one of them is not there.
    """
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: the top level is a {type(content).__name__}, expected an object with "
            f"{', '.join(SCHEMA)}; {_REMEDY}"
        )
    for section in SCHEMA:
        if not isinstance(content.get(section), list):
            raise InputError(f"{path}: there is no list {section!r}; {_REMEDY}")
    return {section: content[section] for section in SCHEMA}
