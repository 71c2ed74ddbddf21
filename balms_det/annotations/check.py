"""Every fault of a data set, found before a week of training is spent on it."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from hotcoco import COCO
from PIL import ExifTags, Image
from tqdm import tqdm

from balms_det.annotations.file import AnnotationFile, read_json, record_fault, sections_of
from balms_det.runtime.errors import InputError

# A box may reach this far outside its image, in pixels: LVIS and COCO round coordinates.
_BOX_TOLERANCE = 1.0
# Twice the area, in square pixels, that three corners of a polygon must span at least.
_LEAST_TRIANGLE = 1e-6

# EXIF orientations that turn the picture by a quarter, and so swap its width and height.
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Fault:
    """One fault of a data set.

    Attributes:
        kind: what it is, in snake_case.
        where: the record, with its id, and the file where there is one.
        message: what is wrong, with the value.
        severity: a "warning" is worth knowing, but may be meant so.
    """

    kind: str
    where: str
    message: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.where}: {self.message}"


def check_dataset(
    annotation_path: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None,
    *,
    progress: bool = False,
) -> list[Fault]:
    """List every fault of an LVIS or COCO data set.

    Errors are records that lack required fields, duplicate and unknown ids, images without size,
    two images with one file, boxes that are no numbers, degenerate or outside, masks that are
    missing, malformed, empty or of another size, contradictory federated lists, and pictures that
    are missing, cannot be decoded to the end or have another size. A size is compared after the
    EXIF orientation has been applied, which is how training reads pictures. Classes without an
    instance are a warning: small sets and LVIS's validation set have them.

    Args:
        annotation_path: an instance annotation file.
        image_root: the folder of the pictures; None leaves the pictures out.
        progress: show a progress bar on stderr while the pictures are decoded.

    Returns:
        Faults of the annotations in the order above, then those of the pictures.

    Raises:
        InputError: the annotation file is no JSON or not of either format, so that nothing in it
            can be checked, or the image root is no folder.
    """
    if image_root is not None and not os.path.isdir(image_root):
        raise InputError(f"{image_root}: the image root is not a folder; check the path")
    sections = sections_of(read_json(annotation_path), annotation_path)
    # What a malformed record is the id of is malformed, not unknown.
    image_ids, category_ids = _ids_in(sections["images"]), _ids_in(sections["categories"])
    faults, sections = _separate_faulty_records(sections)
    file = AnnotationFile.from_sections(sections, annotation_path)
    faults += _check_ids_and_boxes(file, image_ids, category_ids)
    faults += _check_masks(file)
    faults += _check_federated_lists(file, category_ids)
    faults += _check_instances(file)
    file_names, name_faults = _image_names(file)
    faults += name_faults
    if image_root is not None:
        faults += _check_pictures(file, file_names, image_root, progress)
    return faults


def _ids_in(records: list[Any]) -> set[int]:
    return {r["id"] for r in records if type(r) is dict and type(r.get("id")) is int}


def _separate_faulty_records(
    sections: dict[str, list[Any]],
) -> tuple[list[Fault], dict[str, list[dict[str, Any]]]]:
    """The records without their required fields as faults, and the sections without them."""
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


def _check_ids_and_boxes(
    file: AnnotationFile, image_ids: set[int], category_ids: set[int]
) -> list[Fault]:
    """Whatever hotcoco's healthcheck finds that spoils training, one fault per record.

    Its other findings are opinions (fewer than ten instances of a class) or do not fit here: it
    counts crowd regions as instances.
    """
    if not file.images and not file.annotations and not file.categories:
        return []
    # Annotations are numbered by position, so that each finding leads to one record even where
    # ids repeat; of each record it is given what it checks, for it refuses malformed masks.
    report = COCO(
        {
            "images": [{k: image[k] for k in ("id", "width", "height")} for image in file.images],
            "annotations": [
                {
                    "id": position,
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": annotation["bbox"],
                }
                for position, annotation in enumerate(file.annotations)
            ],
            "categories": [
                {k: category[k] for k in ("id", "name")} for category in file.categories
            ],
        }
    ).healthcheck()
    found: dict[str, list[int]] = {
        finding["code"]: sorted(finding["affected_ids"])
        for finding in report["errors"] + report["warnings"]
    }

    faults = []
    for section, records in (("image", file.images), ("category", file.categories)):
        count = Counter(record["id"] for record in records)
        for record_id in found.get(f"duplicate_{section}_id", ()):
            message = f"{count[record_id]} records have this id"
            faults.append(Fault(f"duplicate_{section}_id", f"{section} {record_id}", message))
    for annotation_id, count_of_id in Counter(a["id"] for a in file.annotations).items():
        if count_of_id > 1:
            message = f"{count_of_id} annotations have this id"
            where = f"annotation {annotation_id}"
            faults.append(Fault("duplicate_annotation_id", where, message))
    sizes = {image["id"]: (image["width"], image["height"]) for image in file.images}
    for image_id in found.get("zero_dimensions", ()):
        width, height = sizes[image_id]
        message = f"the annotation file says that it is {width} x {height}"
        faults.append(Fault("image_without_size", f"image {image_id}", message))

    per_annotation: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
        ("orphan_image_id", "unknown_image", lambda a: f"no image has the id {a['image_id']}"),
        (
            "orphan_category_id",
            "unknown_category",
            lambda a: f"no category has the id {a['category_id']}",
        ),
        (
            "degenerate_bbox",
            "degenerate_box",
            lambda a: f"the box {a['bbox']} has no positive width and height",
        ),
        (
            "bbox_out_of_bounds",
            "box_outside_image",
            lambda a: "the box {} leaves the image of {} x {}".format(
                a["bbox"], *sizes[a["image_id"]]
            ),
        ),
    )
    for code, kind, message_of in per_annotation:
        for position in found.get(code, ()):
            annotation = file.annotations[position]
            if (
                (kind == "unknown_image" and annotation["image_id"] in image_ids)
                or (kind == "unknown_category" and annotation["category_id"] in category_ids)
                or (
                    kind == "box_outside_image"
                    and _is_within_tolerance(annotation["bbox"], *sizes[annotation["image_id"]])
                )
            ):
                continue
            faults.append(Fault(kind, _where(annotation), message_of(annotation)))
    return faults


def _is_within_tolerance(box: list[float], width: int, height: int) -> bool:
    x, y, box_width, box_height = box
    return (
        min(x, y) >= -_BOX_TOLERANCE
        and x + box_width <= width + _BOX_TOLERANCE
        and y + box_height <= height + _BOX_TOLERANCE
    )


def _where(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"


def _check_masks(file: AnnotationFile) -> Iterator[Fault]:
    # Healthcheck does not look into masks.
    sizes = {image["id"]: [image["height"], image["width"]] for image in file.images}
    for annotation in file.annotations:
        mask = annotation.get("segmentation")
        if isinstance(mask, list) and mask:
            found = _polygon_faults(mask)
        elif isinstance(mask, dict):
            found = _rle_faults(mask, sizes.get(annotation["image_id"]))
        elif mask is None or mask == []:
            found = iter([("missing_mask", "there is no segmentation")])
        else:
            found = iter([("malformed_mask", f"the segmentation is {mask!r:.40}")])
        for kind, message in found:
            yield Fault(kind, _where(annotation), message)


def _polygon_faults(polygons: list[Any]) -> Iterator[tuple[str, str]]:
    for position, polygon in enumerate(polygons):
        name = f"segmentation[{position}]"
        if not isinstance(polygon, list) or not {type(value) for value in polygon} <= {int, float}:
            yield "malformed_mask", f"{name} is {polygon!r:.40}, expected [x1, y1, x2, y2, ...]"
        elif len(polygon) % 2:
            yield "malformed_mask", f"{name} has {len(polygon)} numbers, expected x, y pairs"
        elif len(polygon) < 6:
            yield "degenerate_polygon", f"{name} has {len(polygon) // 2} points, expected 3 or more"
        elif not _spans_area(polygon):
            yield "degenerate_polygon", f"{name} has no area: {polygon!r:.60}"


def _spans_area(polygon: list[float]) -> bool:
    """Whether some corner lies off the line through the first corner and one other.

    Nearly always the first three corners tell, which makes this far faster than the area; and the
    area of a polygon that crosses itself can be zero although it covers pixels.
    """
    x0, y0 = polygon[:2]
    dx = dy = 0.0
    for x, y in zip(polygon[2::2], polygon[3::2], strict=True):
        if dx == 0 and dy == 0:
            dx, dy = x - x0, y - y0
        elif abs(dx * (y - y0) - dy * (x - x0)) >= _LEAST_TRIANGLE:
            return True
    return False


def _rle_faults(mask: dict[str, Any], size: list[int] | None) -> Iterator[tuple[str, str]]:
    """Faults of a run-length encoded mask in an image of `size` (height, width), if that is known.

    Decoders do not find them all: pycocotools returns whatever was in memory where the runs end
    before the image does.
    """
    counts = mask.get("counts")
    try:
        runs = _run_lengths(counts)
    except ValueError:
        yield "malformed_mask", f"the run lengths {counts!r:.40} cannot be decoded"
        return
    if size is not None and mask.get("size") != size:
        yield "mask_size", f"the mask has the size {mask.get('size')}, the image {size}"
    elif size is not None and sum(runs) != size[0] * size[1]:
        yield "malformed_mask", f"the runs cover {sum(runs)} of {size[0] * size[1]} pixels"
    elif sum(runs[1::2]) == 0:
        yield "empty_mask", "no pixel is set"


def _run_lengths(counts: Any) -> list[int]:
    """The lengths of runs of background and object in turn, from a list or COCO's compressed text.

    pycocotools decodes the text only into whole masks. A character holds six bits, counted from
    "0": five of a number, low ones first, and whether more follow. From the fourth on, a number is
    the difference to the run two before.

    Raises:
        ValueError: `counts` is neither.
    """
    runs: list[int] = []
    if isinstance(counts, list):
        runs = counts
    elif isinstance(counts, str):
        value = shift = 0
        for character in counts:
            bits = ord(character) - ord("0")
            if not 0 <= bits < 64:
                raise ValueError(f"{character!r} is not a character of run lengths")
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                if bits & 16:  # the sign
                    value -= 1 << shift
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
        if shift:
            raise ValueError("the run lengths end within a number")
    if not runs or not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("the run lengths are not non-negative integers")
    return runs


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
    # Healthcheck takes crowd regions for instances; nothing is trained on them.
    present = {a["category_id"] for a in file.annotations if a.get("iscrowd", 0) == 0}
    names = [category["name"] for category in file.categories if category["id"] not in present]
    if not names:
        return []
    shown = ", ".join(repr(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
    message = f"{len(names)} of {len(file.categories)} classes have no instance: {shown}"
    return [Fault("zero_instance_classes", "categories", message, severity="warning")]


def _image_names(file: AnnotationFile) -> tuple[list[str | None], list[Fault]]:
    """The path below the image root of each image, None where it has none, and the faults."""
    names: list[str | None] = []
    images_of: defaultdict[str, list[int]] = defaultdict(list)
    faults = []
    for image in file.images:
        try:
            name = file.image_name(image)
            images_of[os.path.normpath(name)].append(image["id"])
        except InputError:
            name = None
            message = "has neither 'file_name' nor 'coco_url'"
            faults.append(Fault("malformed_record", f"image {image['id']}", message))
        names.append(name)
    for name, ids in images_of.items():
        if len(ids) > 1:
            message = "is the file of the images " + ", ".join(map(str, ids))
            faults.append(Fault("shared_image_file", name, message))
    return names, faults


def _check_pictures(
    file: AnnotationFile,
    names: list[str | None],
    image_root: str | os.PathLike[str],
    progress: bool,
) -> list[Fault]:
    """Decode every picture, in threads: Pillow lets go of the interpreter while it decodes."""

    def check(image: dict[str, Any], name: str | None) -> Fault | None:
        if name is None:
            return None
        found = _picture_fault(os.path.join(image_root, name), image["width"], image["height"])
        return found and Fault(found[0], f"image {image['id']} ({name})", found[1])

    with ThreadPoolExecutor() as pool:
        checked = pool.map(check, file.images, names)
        bar = tqdm(checked, "pictures", len(names), unit="", disable=not progress)
        return [fault for fault in bar if fault is not None]


def _picture_fault(path: str, width: int, height: int) -> tuple[str, str] | None:
    """Kind and message of what is wrong with the picture at `path`, expected to have that size."""
    try:
        with Image.open(path) as picture:
            picture.load()
            size = picture.size
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except FileNotFoundError:
        return "missing_image", f"there is no file {path}"
    except Exception as error:  # Pillow's decoders raise whatever the damage leads to.
        return "corrupt_image", f"it cannot be decoded ({error})"
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
