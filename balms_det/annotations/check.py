"""Every fault of a data set, found before a week of training is spent on it."""

import os
from collections import Counter
from typing import Any

from balms_det.annotations.box_faults import check_boxes
from balms_det.annotations.faults import Fault
from balms_det.annotations.file import AnnotationFile, read_json, sections_of
from balms_det.annotations.id_faults import check_federated_lists, check_ids, check_instances
from balms_det.annotations.image_faults import check_image_names, check_images
from balms_det.annotations.mask_faults import check_masks
from balms_det.annotations.schema import record_fault
from balms_det.runtime.errors import InputError

# Faults by which records are taken for others than they are, or cannot be read. Other faults spoil
# one object, and training says how many there are.
_REFUSED = frozenset(
    (
        "malformed_record",
        "duplicate_image_id",
        "duplicate_category_id",
        "duplicate_category_name",
        "duplicate_annotation_id",
        "unknown_image",
        "unknown_category",
        "image_without_size",
        "normalised_boxes",
        "corner_boxes",
        "malformed_mask",
        "mask_size",
    )
)


def check_dataset(
    annotation_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    *,
    progress: bool = False,
) -> list[Fault]:
    """List every fault of an LVIS or COCO data set.

    Errors are records that lack required fields or have fields of another type, duplicate ids and
    class names, unknown ids, images without size, two images with one file, boxes that are
    degenerate, outside or in another convention, masks that are malformed, empty, outside or of
    another size, contradictory federated lists, and images that are missing, cannot be decoded to
    the end or have another size. A size is compared after the EXIF orientation has been applied, as
    training reads images. Classes without an instance are a warning: small sets and LVIS's
    validation set have them. So are objects without a mask where the file has no mask at all: it
    trains boxes.

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
    faults += _check_records(file, image_ids, category_ids)
    faults += check_federated_lists(file, category_ids)
    faults += check_instances(file)
    faults += check_image_names(file)
    if image_root is not None:
        faults += check_images(file, image_root, progress)
    return faults


def _check_records(
    file: AnnotationFile, image_ids: set[int], category_ids: set[int]
) -> list[Fault]:
    """Return the faults of ids, boxes and masks."""
    return [*check_ids(file, image_ids, category_ids), *check_boxes(file), *check_masks(file)]


def refuse_unusable(file: AnnotationFile) -> list[str]:
    """Refuse a file that would train or score something else than is meant.

    Args:
        file: its well-formed records.

    Returns:
        A remark on each kind of fault that spoils single objects: how many, and the first.

    Raises:
        InputError: names the first fault that spoils the file.
    """
    image_ids, category_ids = _ids_in(file.images), _ids_in(file.categories)
    faults = _check_records(file, image_ids, category_ids)
    hint = f"`balms-det check {file.path}` lists every fault"
    for fault in faults:
        if fault.kind in _REFUSED:
            where = "" if fault.where == file.path else f"{fault.where}: "
            raise InputError(f"{file.path}: {where}{fault.message} ({fault.kind}); {hint}")
    # A set of some of the classes may list others as absent: that spoils nothing.
    faults += [*check_federated_lists(file, category_ids), *check_image_names(file)]
    of_kind = Counter(fault.kind for fault in faults)
    first = {fault.kind: fault for fault in reversed(faults)}
    return [
        f"{file.path}: {count} x {kind}, such as {first[kind].where}: {first[kind].message}; {hint}"
        for kind, count in of_kind.items()
    ]


def _ids_in(records: list[Any]) -> set[int]:
    return {r["id"] for r in records if type(r) is dict and type(r.get("id")) is int}


def _separate_faulty_records(
    sections: dict[str, list[Any]],
) -> tuple[list[Fault], dict[str, list[dict[str, Any]]]]:
    """Return the records that are not well formed as faults, and the sections without them."""
    faults = []
    sound: dict[str, list[dict[str, Any]]] = {}
    for section, records in sections.items():
        sound[section] = []
        for position, record in enumerate(records):
            message = record_fault(section, record)
            if message is None:
                sound[section].append(record)
            else:
                where = f"{section}[{position}]"
                if isinstance(record, dict) and "id" in record:
                    where += f" (id {record['id']!r:.40})"
                faults.append(Fault("malformed_record", where, message))
    return faults, sound
