"""Faults of ids and names: given twice, or of records that do not exist."""

from collections import Counter
from collections.abc import Iterable, Iterator

from balms_det.annotations.faults import Fault, where_of
from balms_det.annotations.file import AnnotationFile


def check_ids(file: AnnotationFile, image_ids: set[int], category_ids: set[int]) -> Iterator[Fault]:
    """Yield ids and class names that records share, and references to records that do not exist.

    Args:
        file: its sound records.
        image_ids, category_ids: of all records, sound or not.
    """
    for section, plural, records in (
        ("image", "images", file.images),
        ("category", "categories", file.categories),
        ("annotation", "annotations", file.annotations),
    ):
        for record_id, count in _repeated(record["id"] for record in records):
            message = f"{count} {plural} have this id"
            yield Fault(f"duplicate_{section}_id", f"{section} {record_id}", message)
    for name, count in _repeated(category["name"] for category in file.categories):
        message = f"{count} categories have this name"
        yield Fault("duplicate_category_name", f"category {name!r}", message)
    for annotation in file.annotations:
        if annotation["image_id"] not in image_ids:
            message = f"no image has the id {annotation['image_id']}"
            yield Fault("unknown_image", where_of(annotation), message)
        if annotation["category_id"] not in category_ids:
            message = f"no category has the id {annotation['category_id']}"
            yield Fault("unknown_category", where_of(annotation), message)


def check_federated_lists(file: AnnotationFile, category_ids: set[int]) -> Iterator[Fault]:
    """Yield classes in an image's lists that do not exist, or are annotated in it although listed
    as absent."""
    listed: dict[int, set[int]] = {}
    for image in file.images:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            for category_id in sorted(set(image.get(field, ())) - category_ids):
                message = f"{field} has {category_id}, but no category has this id"
                yield Fault("unknown_category", f"image {image['id']}", message)
        listed[image["id"]] = set(image.get("neg_category_ids", ())) & category_ids
    contradicted = {
        (annotation["image_id"], annotation["category_id"])
        for annotation in file.annotations
        if annotation["category_id"] in listed.get(annotation["image_id"], ())
    }
    for image_id, category_id in sorted(contradicted):
        message = f"category {category_id} is listed as absent, but annotated"
        yield Fault("negative_but_present", f"image {image_id}", message)


def check_instances(file: AnnotationFile) -> Iterator[Fault]:
    """Yield a warning where classes have no instance; crowd regions are not trained on."""
    present = {a["category_id"] for a in file.annotations if not a.get("iscrowd", 0)}
    names = [category["name"] for category in file.categories if category["id"] not in present]
    if names:
        shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
        message = f"{len(names)} of {len(file.categories)} classes have no instance: {shown}"
        yield Fault("zero_instance_classes", "categories", message, severity="warning")


def _repeated(values: Iterable[int | str]) -> list[tuple[int | str, int]]:
    return [(value, count) for value, count in Counter(values).items() if count > 1]
