"""How often each class occurs in a data set: counted from its annotations, never from a table.

Shapes: K foreground classes, in the order of their category ids; class index i is position i.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson

from balms_det.annotations.box_dimensions import (
    FloatArray,
    box_dimensions,
    centers_in_dicts,
    centers_in_file,
)
from balms_det.annotations.class_pairs import IntArray, class_pairs
from balms_det.annotations.class_stats_faults import class_stats_fault
from balms_det.annotations.file import AnnotationFile, read_annotation_file, read_json
from balms_det.annotations.frequency_groups import frequency_group, grouped
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

CountBy = Literal["instances", "images"]

_VERSION_KEY = "class_stats_version"
_VERSION = 1


def missing_class_stats(needed_by: str) -> InputError:
    """Return the error of whoever needs class statistics that nobody gave."""
    return InputError(
        f"{needed_by} needs class statistics: set MODEL.LONG_TAIL.STATS_FILE to the training "
        "annotations or to a file written by `balms-det stats`, or MODEL.WEIGHTS to a "
        "checkpoint that carries them"
    )


@dataclass(frozen=True, eq=False)
class ClassStats:
    """Image and instance counts of every class of a data set.

    Crowd annotations are not counted, because Detectron2 never trains on them.

    Attributes:
        image_counts: (K,) int64, read-only; the images that contain the class.
        instance_counts: (K,) int64, read-only; the annotations of the class.
        num_images: all images of the data set.
        num_annotated_images: those with at least one counted annotation.
        category_ids: (K,), ascending; the ids that the annotation file gives the classes.
        names: (K,).
        groups: (K,), each "r", "c" or "f": rare, common or frequent.
        box_dimensions: (K,) float64, read-only; the box-counting dimension of the class's boxes, of
            :func:`box_dimensions`. None where it is unknown, as in files of earlier versions.

    Raises:
        InputError: lengths or values contradict one another.
    """

    image_counts: IntArray
    instance_counts: IntArray
    num_images: int
    num_annotated_images: int
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    box_dimensions: FloatArray | None = None

    def __post_init__(self) -> None:
        for field in ("image_counts", "instance_counts"):
            counts = np.array(getattr(self, field), dtype=np.int64)
            counts.setflags(write=False)
            object.__setattr__(self, field, counts)
        # NumPy's integers would not go through JSON.
        object.__setattr__(self, "category_ids", tuple(int(i) for i in self.category_ids))
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "groups", tuple(self.groups))
        if self.box_dimensions is not None:
            dimensions = np.array(self.box_dimensions, dtype=np.float64)
            dimensions.setflags(write=False)
            object.__setattr__(self, "box_dimensions", dimensions)
        fault = class_stats_fault(self)
        if fault is not None:
            raise InputError(f"class statistics: {fault}; count them again with `balms-det stats`")

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def counts(self, by: CountBy) -> IntArray:
        """Return the counts that `by` names, "instances" or "images": (K,) int64, read-only."""
        if by not in ("instances", "images"):
            raise InputError(f"classes are counted by 'instances' or by 'images', not by {by!r}")
        return self.instance_counts if by == "instances" else self.image_counts

    def with_groups(self, groups: str) -> "ClassStats":
        """Return these statistics with other groups: "lvis" (no change), "thirds" or "A,B"."""
        chosen = grouped(self.image_counts, groups, self.groups)
        return dataclasses.replace(self, groups=tuple(chosen))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "ClassStats":
        """Count the annotations of an LVIS or COCO annotation file.

        A class's group is the category's own ``frequency`` where the file gives it, as LVIS does
        (for a validation file too it tells the training frequency), and otherwise follows from the
        counts by :func:`frequency_group`.

        Raises:
            InputError: the file cannot be used, or an annotation's category or image is not in it.
        """
        return cls.from_annotation_file(read_annotation_file(path))

    @classmethod
    def from_annotation_file(cls, file: AnnotationFile) -> "ClassStats":
        """Count the annotations of a file that has been read already; see :meth:`from_json`.

        Raises:
            InputError: an annotation's category or image is not in the file.
        """
        annotations = [a for a in file.annotations if a.get("iscrowd", 0) == 0]

        def index_of(field: str, ids: IntArray) -> IntArray:
            """Return (A,) positions in the sorted `ids` of what each annotation's `field` names."""
            named = np.fromiter((a[field] for a in annotations), np.int64, len(annotations))
            position = np.searchsorted(ids, named)
            known = np.isin(named, ids)
            if not known.all():
                annotation = annotations[int(np.argmin(known))]
                raise InputError(
                    f"{file.path}: annotation {annotation['id']} has the {field} "
                    f"{annotation[field]}, which the file does not list; run "
                    "`balms-det check` on it to see every such annotation"
                )
            return position

        category_ids = np.array([category["id"] for category in file.categories], np.int64)
        image_ids = np.unique(np.array([image["id"] for image in file.images], np.int64))
        return cls._from_pairs(
            image_index=index_of("image_id", image_ids),
            class_index=index_of("category_id", category_ids),
            centers=centers_in_file(file.images, annotations),
            num_images=len(file.images),
            category_ids=tuple(category_ids.tolist()),
            names=[category["name"] for category in file.categories],
            groups=[category.get("frequency") for category in file.categories],
        )

    @classmethod
    def from_dataset_dicts(
        cls,
        dataset_dicts: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        *,
        category_ids: Sequence[int] | None = None,
        groups: Sequence[str] | None = None,
    ) -> "ClassStats":
        """Count the annotations of Detectron2's standard data set dicts.

        Args:
            dataset_dicts: one dict per image, its ``annotations`` with contiguous ``category_id``.
            names: (K,), by contiguous index.
            category_ids: (K,), ascending; by default the contiguous indices themselves.
            groups: (K,) of "r", "c", "f"; by default from the counts, by :func:`frequency_group`.

        Raises:
            InputError: a category id is not in [0, K).
        """
        image_index, class_index = class_pairs(dataset_dicts)
        for position in np.flatnonzero((class_index < 0) | (class_index >= len(names))):
            image = int(image_index[position])
            raise InputError(
                f"{dataset_dicts[image].get('file_name', f'data set dict {image}')}: an annotation "
                f"has the category_id {class_index[position]}, expected 0 to {len(names) - 1}; map "
                "the data set's ids to contiguous ones"
            )
        return cls._from_pairs(
            image_index=image_index,
            class_index=class_index,
            centers=centers_in_dicts(dataset_dicts),
            num_images=len(dataset_dicts),
            category_ids=range(len(names)) if category_ids is None else category_ids,
            names=names,
            groups=[None] * len(names) if groups is None else groups,
        )

    @classmethod
    def combine(cls, parts: Sequence["ClassStats"]) -> "ClassStats":
        """Add up the statistics of data sets of the same classes that share no images.

        Several sets have no box dimensions together: they do not follow from those of the parts.
        A class keeps the group on which the parts agree; where they do not, it follows from the
        sum by :func:`frequency_group`.

        Raises:
            InputError: the parts have different classes.
        """
        first = parts[0]
        if len(parts) == 1:
            return first
        for part in parts[1:]:
            if (part.category_ids, part.names) != (first.category_ids, first.names):
                raise InputError(
                    "class statistics of data sets with different classes cannot be added up; "
                    "give the sets the same categories, with the same ids and names"
                )
        image_counts: IntArray = np.sum([part.image_counts for part in parts], axis=0)
        return cls(
            image_counts=image_counts,
            instance_counts=np.sum([part.instance_counts for part in parts], axis=0),
            num_images=sum(part.num_images for part in parts),
            num_annotated_images=sum(part.num_annotated_images for part in parts),
            category_ids=first.category_ids,
            names=first.names,
            groups=tuple(
                groups[0] if len(set(groups)) == 1 else frequency_group(count)
                for count, *groups in zip(
                    image_counts.tolist(), *(part.groups for part in parts), strict=True
                )
            ),
        )

    @classmethod
    def _from_pairs(
        cls,
        *,
        image_index: IntArray,
        class_index: IntArray,
        centers: FloatArray | None,
        num_images: int,
        category_ids: Sequence[int],
        names: Sequence[str],
        groups: Sequence[str | None],
    ) -> "ClassStats":
        """Count A annotations, given as (A,) image and (A,) class indices and (A, 2) centers."""
        num_classes = len(names)
        pairs = np.unique(image_index * num_classes + class_index)
        # With no classes there are no pairs, and nothing is divided by zero.
        image_counts = np.bincount(pairs % max(num_classes, 1), minlength=num_classes)
        return cls(
            image_counts=image_counts,
            instance_counts=np.bincount(class_index, minlength=num_classes),
            num_images=num_images,
            num_annotated_images=len(np.unique(image_index)),
            category_ids=tuple(category_ids),
            names=tuple(names),
            groups=tuple(
                frequency_group(count) if group is None else group
                for group, count in zip(groups, image_counts.tolist(), strict=True)
            ),
            box_dimensions=(
                None if centers is None else box_dimensions(class_index, centers, num_classes)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain Python values, ready for JSON."""
        per_class = zip(
            self.category_ids,
            self.names,
            self.groups,
            self.image_counts.tolist(),
            self.instance_counts.tolist(),
            strict=True,
        )
        keys = ("category_id", "name", "group", "image_count", "instance_count")
        classes = [dict(zip(keys, values, strict=True)) for values in per_class]
        if self.box_dimensions is not None:
            for record, dimension in zip(classes, self.box_dimensions.tolist(), strict=True):
                record["box_dimension"] = dimension
        return {
            _VERSION_KEY: _VERSION,
            "num_images": self.num_images,
            "num_annotated_images": self.num_annotated_images,
            "classes": classes,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "ClassStats":
        """Return the inverse of :meth:`to_dict`.

        Raises:
            InputError: `content` is of another version, or lacks or contradicts something.
        """
        if content.get(_VERSION_KEY) != _VERSION:
            raise InputError(
                f"class statistics: {_VERSION_KEY!r} is {content.get(_VERSION_KEY)!r}, expected "
                f"{_VERSION}; count them again with `balms-det stats`"
            )
        try:
            classes = content["classes"]
            dimensions = [c["box_dimension"] for c in classes if "box_dimension" in c]
            return cls(
                image_counts=np.array([c["image_count"] for c in classes], np.int64),
                instance_counts=np.array([c["instance_count"] for c in classes], np.int64),
                num_images=content["num_images"],
                num_annotated_images=content["num_annotated_images"],
                category_ids=tuple(c["category_id"] for c in classes),
                names=tuple(c["name"] for c in classes),
                groups=tuple(c["group"] for c in classes),
                box_dimensions=np.array(dimensions) if dimensions else None,
            )
        except KeyError as error:
            raise InputError(
                f"class statistics: there is no {error}; count them again with `balms-det stats`"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the statistics to `path` as JSON; what is there is replaced whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        try:
            with atomic_file(path) as file:
                file.write(orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2))
        except OSError as error:
            raise InputError(
                f"{path}: the statistics cannot be written ({error.strerror}); "
                "check that the folder exists and has room"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ClassStats":
        """Read the statistics that :meth:`save` wrote, or count an LVIS or COCO annotation file.

        Raises:
            InputError: `path` is neither.
        """
        content = read_json(path)
        if not (isinstance(content, dict) and _VERSION_KEY in content):
            return cls.from_annotation_file(AnnotationFile.from_content(content, path))
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
