"""Every fault of a data set, found before a week of training is spent on it."""

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from balms_det.annotations.faults import Fault
from balms_det.annotations.file import AnnotationFile, read_json, record_fault, sections_of
from balms_det.annotations.id_faults import check_ids_and_boxes
from balms_det.annotations.image_faults import check_images, image_names
from balms_det.annotations.mask_faults import check_masks
from balms_det.runtime.errors import InputError


def check_dataset(
    annotation_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    *,
    progress: bool = False,
) -> list[Fault]:
    """List every fault of an LVIS or COCO data set.

    Errors are records that lack required fields, duplicate and unknown ids, images without size,
    two images with one file, boxes that are not numbers, degenerate or outside, masks that are
    missing, malformed, empty or of another size, contradictory federated lists, and images that
    are missing, cannot be decoded to the end or have another size. A size is compared after the
    EXIF orientation has been applied, as training reads images. Classes without an
    instance are a warning: small sets and LVIS's validation set have them.

    Args:
        annotation_path: an instance annotation file.
        image_root: the directory of the images; None checks only annotations.
        progress: show a progress bar on stderr while images are decoded.

    Returns:
        Faults of the annotations in the order above, then those of the images.

    Raises:
        InputError: the annotation file is not JSON or not of either format, so that nothing in it
            can be checked, or the image root is not a directory.
    """
    if image_root is not None and not os.path.isdir(image_root):
        raise InputError(f"{image_root}: the image root is not a folder; check the path")
    sections = sections_of(read_json(annotation_path), annotation_path)
    # The id of a malformed record is known.
    image_ids, category_ids = _ids_in(sections["images"]), _ids_in(sections["categories"])
    faults, sections = _separate_faulty_records(sections)
    file = AnnotationFile.from_sections(sections, annotation_path)
    faults += check_ids_and_boxes(file, image_ids, category_ids)
    faults += check_masks(file)
    faults += _check_federated_lists(file, category_ids)
    faults += _check_instances(file)
    file_names, name_faults = image_names(file)
    faults += name_faults
    if image_root is not None:
        faults += check_images(file, file_names, image_root, progress)
    return faults


def _ids_in(records: list[Any]) -> set[int]:
    return {r["id"] for r in records if type(r) is dict and type(r.get("id")) is int}


def _separate_faulty_records(
    sections: dict[str, list[Any]],
) -> tuple[list[Fault], dict[str, list[dict[str, Any]]]]:
    """Return the records that lack required fields as faults, and the sections without them."""
    faults = []
    sound: dict[str, list[dict[str, Any]]] = {}
    for section, records in sections.items():
        sound[section] = []
        for position, record in enumerate(records):
            message = record_fault(section, record)
            if message is None and section == "annotations" and not _is_box(record["bbox"]):
                message = f"has 'bbox' {record['bbox']!r:.60}, expected [x, y, width, height]"
            if message is None:
                sound[section].append(record)
            else:
                where = f"{section}[{position}]"
                if isinstance(record, dict) and "id" in record:
                    where += f" (id {record['id']!r:.40})"
                faults.append(Fault("malformed_record", where, message))
    return faults, sound


def _is_box(value: list[Any]) -> bool:
    return len(value) == 4 and all(type(number) in (int, float) for number in value)


def _check_federated_lists(file: AnnotationFile, category_ids: set[int]) -> Iterator[Fault]:
    present: defaultdict[int, set[int]] = defaultdict(set)
    for annotation in file.annotations:
        present[annotation["image_id"]].add(annotation["category_id"])
    for image in file.images:
        where = f"image {image['id']}"
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            ids = image.get(field, [])
            if not isinstance(ids, list) or not all(type(i) is int for i in ids):
                yield Fault("malformed_record", where, f"has {field!r} {ids!r:.40}")
                continue
            for category_id in sorted(set(ids) - category_ids):
                message = f"{field} has {category_id}, but no category has this id"
                yield Fault("unknown_category", where, message)
            if field == "neg_category_ids":
                for category_id in sorted(set(ids) & category_ids & present[image["id"]]):
                    message = f"category {category_id} is listed as absent, but annotated"
                    yield Fault("negative_but_present", where, message)


def _check_instances(file: AnnotationFile) -> list[Fault]:
    # Healthcheck counts crowd regions as instances; nothing is trained on them.
    present = {a["category_id"] for a in file.annotations if a.get("iscrowd", 0) == 0}
    names = [category["name"] for category in file.categories if category["id"] not in present]
    if not names:
        return []
    shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    message = f"{len(names)} of {len(file.categories)} classes have no instance: {shown}"
    return [Fault("zero_instance_classes", "categories", message, severity="warning")]
