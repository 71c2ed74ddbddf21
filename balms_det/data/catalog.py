"""Registering any LVIS- or COCO-format JSON with Detectron2, and counting its classes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_lvis_instances
from detectron2.utils.file_io import PathManager

from balms_det.annotations.class_stats import ClassStats
from balms_det.data.cache import CachedDataset, open_annotations
from balms_det.runtime.errors import InputError


@dataclass(frozen=True)
class AnnotatedImages:
    """The loader of a registered data set, which DatasetCatalog calls.

    Attributes:
        json_file: the annotation file.
        image_root: folder of the images.
    """

    json_file: str
    image_root: str

    def __call__(self) -> CachedDataset:
        return CachedDataset(open_annotations(self.json_file), self.image_root)


def register_dataset(name: str, json_file: str, image_root: str) -> None:
    """Register an annotation file under `name`, so that DATASETS.TRAIN and TEST can name it.

    Category ids are mapped to a contiguous range in the order of their ids. The metadata gets
    ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``class_groups`` ("r", "c", "f"),
    ``has_masks``, ``json_file``, ``image_root`` and ``evaluator_type`` ("lvis" or "coco", after the
    format).

    Registering the same files under the same name again does nothing.

    Raises:
        InputError: the name is taken by other files, or the files cannot be used.
    """
    if name in DatasetCatalog.list():
        metadata = MetadataCatalog.get(name)
        if (metadata.get("json_file"), metadata.get("image_root")) == (json_file, image_root):
            return
        raise InputError(
            f"a data set named {name!r} is registered already, for "
            f"{metadata.get('json_file', 'other files')}; choose another name for {json_file}"
        )
    if not Path(image_root).is_dir():
        raise InputError(
            f"{image_root}: this image root of {name!r} is not a directory; check the path"
        )
    cache = open_annotations(json_file)
    stats = cache.class_stats
    DatasetCatalog.register(name, AnnotatedImages(json_file, image_root))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type=cache.format,
        thing_classes=list(stats.names),
        thing_dataset_id_to_contiguous_id=_contiguous_ids(stats),
        class_groups=list(stats.groups),
        has_masks=cache.has_masks,
    )


def _contiguous_ids(stats: ClassStats) -> dict[int, int]:
    return {category_id: index for index, category_id in enumerate(stats.category_ids)}


def cached_dataset(name: str) -> CachedDataset | None:
    """Return the registered data set `name` from the cache of its annotations.

    Returns:
        None for data sets that neither :func:`register_dataset` registered nor Detectron2 as LVIS:
        only their own functions know what they load.
    """
    images = _annotated_images(name)
    return None if images is None else images()


def _annotated_images(name: str) -> AnnotatedImages | None:
    load = DatasetCatalog[name]
    if isinstance(load, AnnotatedImages):
        return load
    detectron2s = f"{register_lvis_instances.__qualname__}.<locals>.<lambda>"
    if getattr(load, "__qualname__", None) != detectron2s:
        return None
    metadata = MetadataCatalog.get(name)
    json_file = PathManager.get_local_path(metadata.json_file)
    if not Path(json_file).exists():
        return None  # Detectron2 says so, in its own way, once it is loaded.
    stats = open_annotations(json_file).class_stats
    # Without a map of ids, Detectron2's classes are one below their ids.
    below = {category_id: category_id - 1 for category_id in stats.category_ids}
    if metadata.get("thing_dataset_id_to_contiguous_id", below) != _contiguous_ids(stats):
        return None
    return AnnotatedImages(json_file, metadata.image_root)


def dataset_class_stats(names: Sequence[str]) -> ClassStats:
    """Return the class statistics of one or several registered data sets together.

    They come from the cache of the annotations where there is one. Otherwise the annotation file is
    counted where the metadata names one; other data sets are loaded through Detectron2.

    Raises:
        InputError: a name is not registered, or the sets have different classes.
    """
    if not names:
        raise InputError("DATASETS.TRAIN is empty; name the data set to train on")
    all_stats = [_class_stats_of(name) for name in names]
    first = all_stats[0]
    for name, stats in zip(names[1:], all_stats[1:], strict=True):
        if stats.names != first.names:
            raise InputError(
                f"the data sets {names[0]!r} and {name!r} of DATASETS.TRAIN have different "
                "classes; train on sets with the same classes in the same order"
            )
    return first if len(all_stats) == 1 else ClassStats.combine(all_stats)


def _class_stats_of(name: str) -> ClassStats:
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is not None:
        images = _annotated_images(name)
        if images is None:
            stats = ClassStats.from_json(json_file)
        else:
            stats = open_annotations(images.json_file).class_stats
        indices = _contiguous_ids(stats)
        names = tuple(metadata.get("thing_classes", stats.names))
        # A set may have been registered with classes of its own choice from a file. LVIS's sets
        # have no map of ids; theirs ascend from one.
        if (
            metadata.get("thing_dataset_id_to_contiguous_id", indices) == indices
            and len(names) == stats.num_classes
        ):
            return dataclasses.replace(stats, names=names)
    dataset_dicts = DatasetCatalog.get(name)
    return ClassStats.from_dataset_dicts(dataset_dicts, MetadataCatalog.get(name).thing_classes)


def check_registered(name: str) -> None:
    """Raise an InputError unless `name` is a registered data set."""
    if name not in DatasetCatalog.list():
        raise InputError(
            f"the data set {name!r} is not registered; register it on the command line with "
            f"`--dataset {name} JSON IMAGE_ROOT`, or use one of Detectron2's own names, "
            "e.g. 'lvis_v1_train'"
        )


def check_num_classes(name: str, num_classes: int) -> None:
    """Raise an InputError unless the data set has as many classes as the model.

    Detectron2's own data sets tell their classes once they are loaded; before that, nothing is
    checked.
    """
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is not None and len(classes) != num_classes:
        raise InputError(
            f"the data set {name!r} has {len(classes)} classes, but MODEL.ROI_HEADS.NUM_CLASSES "
            f"is {num_classes}; add `MODEL.ROI_HEADS.NUM_CLASSES {len(classes)}` to the command "
            "line, or name a data set with the classes of the model"
        )
