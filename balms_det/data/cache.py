"""Annotation files, parsed once per machine: a memory-mapped cache that all processes share.

Parsing an annotation file of LVIS's size takes long and gigabytes, and Detectron2 has every process
do it. Here the first process to need a file writes down what its dictionaries hold, in a form that
is mapped instead of loaded: the operating system keeps one copy of it, whoever uses it. An image's
dictionary is made whenever it is asked for.

A cache is known by a hash of the whole annotation file, so that it can be stale under no
circumstances; it ends in a checksum, so that one that is cut off or damaged is built again.
"""

import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import orjson
from detectron2.structures import BoxMode
from filelock import FileLock
from torch.utils.data import ConcatDataset

from balms_det.annotations.check import refuse_unusable
from balms_det.annotations.class_stats import ClassStats, IntArray
from balms_det.annotations.file import AnnotationFile, opened, parse_json, read_bytes
from balms_det.data.dataset_dicts import load_dataset_dicts
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError
from balms_det.runtime.garbage_collection import gc_disabled

CACHE_VARIABLE = "BALMS_DET_CACHE"

# Raise it when what is stored changes: :func:`load_dataset_dicts`, ClassStats, or the layout.
_VERSION = 3
_MAGIC = b"balms_ac"
_FOOTER = struct.Struct("<QQ8s")  # start of the header, checksum of all before the footer, magic
_CHUNK = 1 << 20


class AnnotationCache:
    """The content of an annotation file, mapped into memory.

    N images in the order of their ids, A annotations in the order of the images. Arrays are
    read-only.

    Attributes:
        path: of the cache.
        format: "lvis" or "coco", as :class:`AnnotationFile` has it.
        class_stats: counted from all annotations of the file.
        num_images: N.
        has_masks: whether some annotation has a segmentation.
        remarks: a sentence on each kind of fault that spoils single objects.
        file_names: N paths of the images below the image root.
        image_index: (A,) int32 in [0, N).
        class_index: (A,) int32 in [0, K).
        is_crowd: (A,) bool.
    """

    def __init__(self, path: Path) -> None:
        """Map the cache at `path`.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not whole.
        """
        self.path = path
        with path.open("rb") as file:
            footer = _checked_footer(file)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._mapped = memoryview(mapped)
        header = orjson.loads(self._mapped[footer : -_FOOTER.size])
        self.format: str = header["format"]
        self.has_masks: bool = header["has_masks"]
        self.remarks: list[str] = header["remarks"]
        self.file_names: list[str] = header["file_names"]
        self.class_stats = ClassStats.from_dict(header["class_stats"])
        arrays = {
            name: np.frombuffer(self._mapped, dtype, length, offset)
            for name, (dtype, length, offset) in header["arrays"].items()
        }
        self.image_index = arrays["image_index"]
        self.class_index = arrays["class_index"]
        self.is_crowd = arrays["is_crowd"]
        self._offsets = arrays["offsets"]
        self.num_images = len(self._offsets) - 1

    def __reduce__(self) -> tuple[Any, ...]:
        return AnnotationCache, (self.path,)  # a process that is handed it maps the file as well

    def dataset_dict(self, index: int, image_root: str) -> dict[str, Any]:
        """Return the dictionary of an image, a new one each time, as :func:`load_dataset_dicts`
        has it."""
        start, stop = self._offsets[index : index + 2].tolist()
        record: dict[str, Any] = orjson.loads(self._mapped[start:stop])
        record["file_name"] = os.path.join(image_root, record["file_name"])
        for annotation in record["annotations"]:
            annotation["bbox_mode"] = BoxMode.XYWH_ABS
        return record


class CachedDataset(Sequence[dict[str, Any]]):
    """Detectron2's standard dictionaries of some images of a cache, made when they are asked for.

    In the place of a list of dictionaries it gives the same ones, but changes to a dictionary are
    not kept. Given to a data loader it is not pickled, and needs no memory in its workers.

    Attributes:
        cache: of the annotation file.
    """

    def __init__(
        self, cache: AnnotationCache, image_root: str, images: IntArray | None = None
    ) -> None:
        """
        Args:
            cache: of the annotation file.
            image_root: folder of the images.
            images: (N',) positions in the cache, ascending; by default all.
        """
        self.cache = cache
        self._image_root = image_root
        self._images = np.arange(cache.num_images) if images is None else images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        images = self._images[index]
        if isinstance(index, slice):
            return [self.cache.dataset_dict(image, self._image_root) for image in images]
        return self.cache.dataset_dict(images, self._image_root)

    @property
    def file_names(self) -> list[str]:
        """The paths of the images."""
        names = self.cache.file_names
        return [os.path.join(self._image_root, names[image]) for image in self._images.tolist()]

    def class_pairs(self, *, crowds: bool = False) -> tuple[IntArray, IntArray]:
        """Return (A',) image and (A',) class indices of the annotations, without or with crowds."""
        cache = self.cache
        position = np.full(cache.num_images, -1)
        position[self._images] = np.arange(len(self))
        image_index = position[cache.image_index]
        kept = image_index >= 0
        if not crowds:
            kept &= ~cache.is_crowd
        return image_index[kept], cache.class_index[kept].astype(np.int64)

    def without_empty_images(self) -> "CachedDataset":
        """Return the data set without images that have no annotation, or only crowds."""
        annotated = np.unique(self.class_pairs()[0])
        return CachedDataset(self.cache, self._image_root, self._images[annotated])


class CachedDatasets(ConcatDataset[dict[str, Any]]):
    """Several cached data sets, one after the other."""

    datasets: list[CachedDataset]  # type: ignore[assignment]

    def class_pairs(self, *, crowds: bool = False) -> tuple[IntArray, IntArray]:
        """Return as :meth:`CachedDataset.class_pairs`."""
        pairs = [dataset.class_pairs(crowds=crowds) for dataset in self.datasets]
        first = [0, *self.cumulative_sizes]
        image_index = [image + start for (image, _), start in zip(pairs, first, strict=False)]
        return np.concatenate(image_index), np.concatenate([classes for _, classes in pairs])


def open_annotations(json_file: str | os.PathLike[str]) -> AnnotationCache:
    """Map the cache of an annotation file; the first process to ask for it builds it.

    The folder of the caches is what the environment variable BALMS_DET_CACHE names, by default
    ``balms_det`` in XDG_CACHE_HOME or ``~/.cache``. Caches can be deleted at any time.

    Raises:
        InputError: the annotation file cannot be used, or the cache not be written.
    """
    path = _cache_path(_digest(json_file))
    cache = _open(path)
    if cache is not None:
        return cache
    with _building(path.parent):
        cache = _open(path)  # another process may have built it while this one waited
        if cache is not None:
            return cache
        # Read once, so that what is parsed is what the name stands for, whoever writes meanwhile.
        data = read_bytes(json_file)
        path = _cache_path(hashlib.sha256(data))
        with gc_disabled():
            file = AnnotationFile.from_content(parse_json(data, json_file), json_file)
            del data
            _write(path, file)
        return AnnotationCache(path)


def _cache_path(digest: "hashlib._Hash") -> Path:
    folder = os.environ.get(CACHE_VARIABLE)
    if not folder:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(caches, "balms_det")
    return Path(folder, f"annotations-v{_VERSION}-{digest.hexdigest()[:32]}.cache").absolute()


def _digest(path: str | os.PathLike[str]) -> "hashlib._Hash":
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256")


def _open(path: Path) -> AnnotationCache | None:
    """Return the cache at `path`, None where there is none that can be read and is whole."""
    try:
        return AnnotationCache(path)
    except (OSError, ValueError):
        return None


def _checked_footer(file: BinaryIO) -> int:
    """Return the position of the header.

    The file is read, not mapped, so that this does not count as the process's memory.

    Raises:
        ValueError: the file is not whole.
    """
    length = os.fstat(file.fileno()).st_size - _FOOTER.size
    checksum, chunk = 0, memoryview(bytearray(_CHUNK))
    for start in range(0, length, _CHUNK):
        part = chunk[: min(_CHUNK, length - start)]
        file.readinto(part)  # type: ignore[attr-defined]
        checksum = zlib.crc32(part, checksum)
    footer = file.read()
    if len(footer) != _FOOTER.size:
        raise ValueError("the file is shorter than its footer")
    header_start, expected, magic = _FOOTER.unpack(footer)
    if magic != _MAGIC or checksum != expected:
        raise ValueError("the checksum is not that of the content")
    return int(header_start)


@contextmanager
def _building(folder: Path) -> Iterator[None]:
    """Hold a lock that one process at a time can have, so that only one of them builds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "build.lock"):
            for leftover in folder.glob(".*.partial"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            yield
    except OSError as error:
        raise InputError(
            f"{folder}: the cache of the annotations cannot be written ({error.strerror}); set the "
            f"environment variable {CACHE_VARIABLE} to a folder that can be, and has room"
        ) from error


def _write(path: Path, file: AnnotationFile) -> None:
    """Build the cache of `file`.

    Layout: the images' dictionaries as JSON, which keeps every value as it is in the annotation
    file and is parsed in microseconds; the arrays; the header, JSON; the footer.
    """
    remarks = refuse_unusable(file)
    class_stats = ClassStats.from_annotation_file(file)
    dataset_dicts = load_dataset_dicts(file, "")
    annotations = [record["annotations"] for record in dataset_dicts]
    counts = [len(records) for records in annotations]
    flat = [annotation for records in annotations for annotation in records]
    with atomic_file(path) as output:
        checksum, position = 0, 0

        def write(data: bytes) -> None:
            nonlocal checksum, position
            output.write(data)
            checksum = zlib.crc32(data, checksum)
            position += len(data)

        offsets = np.zeros(len(dataset_dicts) + 1, np.int64)
        for index, record in enumerate(dataset_dicts):
            write(orjson.dumps(record))
            offsets[index + 1] = position
        arrays = {}
        for name, array in {
            "offsets": offsets,
            "image_index": np.repeat(np.arange(len(counts), dtype=np.int32), counts),
            "class_index": np.array([a["category_id"] for a in flat], np.int32),
            "is_crowd": np.array([a["iscrowd"] != 0 for a in flat], bool),
        }.items():
            write(b"\0" * (-position % array.itemsize))
            arrays[name] = (array.dtype.str, len(array), position)
            write(array.tobytes())
        header_start = position
        header = {
            "format": file.format,
            "has_masks": file.has_masks,
            "remarks": remarks,
            "file_names": [record["file_name"] for record in dataset_dicts],
            "class_stats": class_stats.to_dict(),
            "arrays": arrays,
        }
        write(orjson.dumps(header))
        output.write(_FOOTER.pack(header_start, checksum, _MAGIC))
