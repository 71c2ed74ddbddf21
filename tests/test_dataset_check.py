"""One sound data set, spoilt in one way at a time: exactly that must be reported."""

import copy
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from tool_status import exit_status

from balms_det.annotations.box_faults import check_boxes
from balms_det.annotations.check import check_dataset
from balms_det.annotations.faults import Fault
from balms_det.annotations.file import AnnotationFile
from balms_det.annotations.mask_faults import _run_lengths
from balms_det.runtime.errors import InputError

TOOL = Path(__file__).parents[1] / "tools" / "check_dataset.py"
WIDTH, HEIGHT = 40, 30
SQUARE = [4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]
# All of the image is background but for one pixel.
RLE = {"size": [HEIGHT, WIDTH], "counts": [500, 1, HEIGHT * WIDTH - 501]}


def compressed(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def sound_content():
    """Three images and categories, with gaps in the ids; polygon and both kinds of RLE masks."""

    def image(image_id):
        return {
            "id": image_id,
            "height": HEIGHT,
            "width": WIDTH,
            "coco_url": f"http://images.example/train/{image_id}.jpg",
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [7],
        }

    def annotation(annotation_id, image_id, category_id, segmentation):
        return {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [4.0, 4.0, 16.0, 16.0],
            "area": 256.0,
            "segmentation": segmentation,
        }

    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:20, 4:20] = 1
    return {
        "images": [image(2), image(3), image(9)],
        "annotations": [
            annotation(1, 2, 5, [SQUARE, [0.0, 0.0, 3.0, 0.0, 3.0, 3.0]]),
            annotation(4, 3, 7, compressed(mask)),
            annotation(6, 3, 8, copy.deepcopy(RLE)),
            {**annotation(7, 3, 8, copy.deepcopy(RLE)), "iscrowd": 1},
        ],
        "categories": [{"id": i, "name": f"class {i}", "frequency": "r"} for i in (5, 7, 8)],
    }


@pytest.fixture
def data_set(tmp_path):
    """The folder of a sound data set: set.json and train/*.jpg."""
    (tmp_path / "train").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for image_id in (2, 3, 9):
        Image.fromarray(pixels).save(tmp_path / "train" / f"{image_id}.jpg")
    write(tmp_path, sound_content())
    return tmp_path


def write(folder, content):
    (folder / "set.json").write_text(json.dumps(content))


def kinds(folder):
    return sorted(fault.kind for fault in check_dataset(folder / "set.json", folder))


def test_sound_data_set_has_no_fault(data_set):
    assert check_dataset(data_set / "set.json", data_set) == []
    assert check_dataset(data_set / "set.json", None) == []


def segmentation(value):
    return lambda c: c["annotations"][0].update(segmentation=value)


def box(*value):
    return lambda c: c["annotations"][0].update(bbox=list(value))


# Name -> (what is done to the content, kinds of the faults that follow, in order).
SPOILT_ANNOTATIONS = {
    "no box": (
        lambda c: c["annotations"][2].pop("bbox"),
        ["malformed_record", "zero_instance_classes"],
    ),
    "box of three numbers": (box(1.0, 2.0, 3.0), ["malformed_record", "zero_instance_classes"]),
    "box with null": (box(1.0, 2.0, None, 3.0), ["malformed_record", "zero_instance_classes"]),
    "text as image id": (
        lambda c: c["images"][2].update(id="9"),
        ["malformed_record"],
    ),
    "annotated image without height": (
        lambda c: c["images"][0].pop("height"),
        ["malformed_record"],
    ),
    "annotated category without name": (
        lambda c: c["categories"][0].pop("name"),
        ["malformed_record"],
    ),
    "image without file": (
        lambda c: c["images"][2].pop("coco_url"),
        ["malformed_record"],
    ),
    "image that is no object": (lambda c: c["images"].append(17), ["malformed_record"]),
    "duplicate image id": (
        lambda c: c["images"].append(
            {**c["images"][2], "coco_url": "http://images.example/train/8.jpg"}
        ),
        ["duplicate_image_id", "missing_image"],
    ),
    "two images with one file": (
        lambda c: c["images"].append({**c["images"][2], "id": 10}),
        ["shared_image_file"],
    ),
    "image without size": (
        lambda c: c["images"][2].update(width=0),
        ["image_size", "image_without_size"],
    ),
    "duplicate annotation id": (
        lambda c: c["annotations"][1].update(id=1),
        ["duplicate_annotation_id"],
    ),
    "duplicate category id": (
        lambda c: c["categories"].append({"id": 5, "name": "again", "frequency": "r"}),
        ["duplicate_category_id"],
    ),
    "unknown image": (lambda c: c["annotations"][0].update(image_id=77), ["unknown_image"]),
    "unknown category": (
        lambda c: c["annotations"][0].update(category_id=77),
        ["unknown_category", "zero_instance_classes"],
    ),
    "unknown category and image": (
        lambda c: c["annotations"][0].update(category_id=77, image_id=77),
        ["unknown_category", "unknown_image", "zero_instance_classes"],
    ),
    "box without width": (box(4.0, 4.0, 0.0, 5.0), ["degenerate_box"]),
    "box of negative height": (box(4.0, 14.0, 5.0, -5.0), ["degenerate_box"]),
    "box outside on the right": (box(30.0, 4.0, 12.0, 5.0), ["box_outside_image"]),
    "box outside at the bottom": (box(3.0, 4.0, 12.0, 28.0), ["box_outside_image"]),
    "box outside on the left": (box(-2.0, 4.0, 12.0, 5.0), ["box_outside_image"]),
    "box outside by rounding": (box(-0.01, 4.0, WIDTH + 0.02, 5.0), []),
    "no segmentation": (
        lambda c: c["annotations"][0].pop("segmentation"),
        ["missing_mask"],
    ),
    "empty list of polygons": (segmentation([]), ["missing_mask"]),
    "text as segmentation": (segmentation("square"), ["malformed_mask"]),
    "flat list of numbers": (segmentation([1, 1, 5, 1, 5, 5]), ["malformed_mask"] * 6),
    "null in a polygon": (segmentation([[1, 1, 5, None, 5, 5]]), ["malformed_mask"]),
    "odd number of coordinates": (segmentation([[1, 1, 5, 1, 5, 5, 7]]), ["malformed_mask"]),
    "empty polygon": (segmentation([SQUARE, []]), ["degenerate_polygon"]),
    "polygon of two points": (segmentation([[1.0, 1.0, 5.0, 5.0]]), ["degenerate_polygon"]),
    "polygon on a line": (
        segmentation([[1.1, 1.1, 2.2, 2.2, 5.5, 5.5, 3.3, 3.3]]),
        ["degenerate_polygon"],
    ),
    "polygon of one point": (segmentation([[1.5, 1.5] * 4]), ["degenerate_polygon"]),
    "polygon with a repeated first point": (segmentation([[4.0, 4.0, *SQUARE]]), []),
    "polygon that crosses itself": (segmentation([[0, 0, 4, 4, 4, 0, 0, 4]]), []),
    "run lengths that end early": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": [5, 10]}),
        ["malformed_mask"],
    ),
    "run lengths that go beyond": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": [5, HEIGHT * WIDTH]}),
        ["malformed_mask"],
    ),
    "negative run length": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": [-5, 1205]}),
        ["malformed_mask"],
    ),
    "undecodable run lengths": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": "é!"}),
        ["malformed_mask"],
    ),
    "cut off run lengths": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": "o"}),
        ["malformed_mask"],
    ),
    "no run lengths": (segmentation({"size": [HEIGHT, WIDTH]}), ["malformed_mask"]),
    "mask of another size": (
        segmentation({"size": [WIDTH, HEIGHT], "counts": RLE["counts"]}),
        ["mask_size"],
    ),
    "mask without a pixel": (
        segmentation({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}),
        ["empty_mask"],
    ),
    "class without instance": (lambda c: c["annotations"].pop(0), ["zero_instance_classes"]),
    "class with crowd regions only": (
        lambda c: c["annotations"].pop(2),
        ["zero_instance_classes"],
    ),
    "unknown negative category": (
        lambda c: c["images"][0].update(neg_category_ids=[77]),
        ["unknown_category"],
    ),
    "unknown not exhaustive category": (
        lambda c: c["images"][0].update(not_exhaustive_category_ids=[77]),
        ["unknown_category"],
    ),
    "negative category that is present": (
        lambda c: c["images"][0].update(neg_category_ids=[8, 5]),
        ["negative_but_present"],
    ),
    "negative area": (
        lambda c: c["annotations"][0].update(area=-1),
        ["malformed_record", "zero_instance_classes"],
    ),
    "text as area": (
        lambda c: c["annotations"][0].update(area="256"),
        ["malformed_record", "zero_instance_classes"],
    ),
    "text as crowd flag": (
        lambda c: c["annotations"][0].update(iscrowd="0"),
        ["malformed_record", "zero_instance_classes"],
    ),
    "unknown frequency": (
        lambda c: c["categories"][0].update(frequency="often"),
        ["malformed_record"],
    ),
    "image of an absurd size": (lambda c: c["images"][2].update(width=10**9), ["malformed_record"]),
    "two classes of one name": (
        lambda c: c["categories"][1].update(name="class 5"),
        ["duplicate_category_name"],
    ),
    "polygon outside": (
        segmentation([[4.0, 4.0, WIDTH + 9.0, 4.0, 20.0, 20.0]]),
        ["mask_outside_image"],
    ),
    "polygon outside at the top": (
        segmentation([[4.0, -4.0, 20.0, 4.0, 20.0, 20.0]]),
        ["mask_outside_image"],
    ),
    "polygon outside by rounding": (
        segmentation([[4.0, 4.0, WIDTH + 0.5, 4.0, 20.0, HEIGHT + 0.5]]),
        [],
    ),
    "run lengths of an absurd size": (
        segmentation({"size": [10**9, 10**9], "counts": [10**18]}),
        ["mask_size"],
    ),
    "no mask at all": (
        lambda c: [annotation.pop("segmentation") for annotation in c["annotations"]],
        ["no_masks"],
    ),
    "boxes as fractions": (
        lambda c: [annotation.update(bbox=[0.1, 0.1, 0.4, 0.5]) for annotation in c["annotations"]],
        ["normalised_boxes"],
    ),
    "boxes as corners of their polygons": (
        lambda c: (
            c.update(annotations=c["annotations"][:1]),
            c["annotations"][0].update(bbox=[4.0, 4.0, 20.0, 20.0], segmentation=[SQUARE]),
        ),
        ["corner_boxes", "zero_instance_classes"],
    ),
    "negative categories that are no list": (
        lambda c: c["images"][0].update(neg_category_ids="none"),
        ["malformed_record"],
    ),
}


@pytest.mark.parametrize("name", SPOILT_ANNOTATIONS)
def test_spoilt_annotations(data_set, name):
    spoil, expected = SPOILT_ANNOTATIONS[name]
    content = sound_content()
    spoil(content)
    write(data_set, content)
    assert kinds(data_set) == expected


@given(
    boxes=st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 15), st.integers(1, 20), st.integers(1, 15)),
        min_size=1,
        max_size=30,
    ),
    masks=st.booleans(),
)
def test_boxes_within_their_images_have_no_fault_and_corners_of_masks_have_one(boxes, masks):
    """Whatever the boxes: sound ones are never taken for another convention."""

    def file(as_corners):
        annotations = []
        for number, (x, y, w, h) in enumerate(boxes, 1):
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            box = [x, y, x + w, y + h] if as_corners else [x, y, w, h]
            annotations.append({"id": number, "image_id": 1, "category_id": 1, "bbox": box})
            if masks:
                annotations[-1]["segmentation"] = [polygon]
        images = [{"id": 1, "width": WIDTH, "height": HEIGHT, "file_name": "1.jpg"}]
        sections = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "one"}],
        }
        return AnnotationFile.from_sections(sections, "set.json")

    # Corners equal x, y, width, height for a box that starts at the origin, to the pixel.
    told_apart = sum(x > 1 or y > 1 for x, y, _, _ in boxes) > len(boxes) / 2
    if max(max(box) for box in boxes) > 1:  # otherwise they could be fractions
        assert not list(check_boxes(file(False)))
    found = {fault.kind for fault in check_boxes(file(True))}
    if masks and told_apart:
        assert found == {"corner_boxes"}


def replace_picture(folder, size=(WIDTH, HEIGHT), **options):
    Image.new("RGB", size).save(folder / "train" / "9.jpg", **options)


def truncate_picture(folder):
    path = folder / "train" / "9.jpg"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])


def orientation(value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


SPOILT_PICTURES = {
    "missing": (lambda f: (f / "train" / "9.jpg").unlink(), ["missing_image"]),
    "truncated": (truncate_picture, ["corrupt_image"]),
    "empty": (lambda f: (f / "train" / "9.jpg").write_bytes(b""), ["corrupt_image"]),
    "no picture": (lambda f: (f / "train" / "9.jpg").write_text("hello"), ["corrupt_image"]),
    "of another size": (lambda f: replace_picture(f, (WIDTH + 1, HEIGHT)), ["image_size"]),
    "of 16 bits a pixel": (
        lambda f: Image.new("I;16", (WIDTH, HEIGHT)).save(f / "train" / "9.jpg", "PNG"),
        [],
    ),
    "of floating-point pixels": (
        lambda f: Image.new("F", (WIDTH, HEIGHT)).save(f / "train" / "9.jpg", "TIFF"),
        ["corrupt_image"],
    ),
    "upside down by EXIF": (lambda f: replace_picture(f, exif=orientation(3)), []),
    "turned by EXIF to the size": (
        lambda f: replace_picture(f, (HEIGHT, WIDTH), exif=orientation(6)),
        [],
    ),
    "turned by EXIF from the size": (
        lambda f: replace_picture(f, exif=orientation(6)),
        ["image_size"],
    ),
}


@pytest.mark.parametrize("name", SPOILT_PICTURES)
def test_spoilt_pictures(data_set, name):
    spoil, expected = SPOILT_PICTURES[name]
    spoil(data_set)
    assert kinds(data_set) == expected
    assert check_dataset(data_set / "set.json", None) == []


def test_a_size_is_that_which_training_reads(data_set):
    """The check and Detectron2 agree on every EXIF orientation."""
    from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image

    for value in range(1, 9):
        replace_picture(data_set, exif=orientation(value))
        image = read_image(str(data_set / "train" / "9.jpg"), "BGR")
        try:
            check_image_size({"width": WIDTH, "height": HEIGHT}, image)
            expected = []
        except SizeMismatchError:
            expected = ["image_size"]
        assert kinds(data_set) == expected


def test_every_fault_of_every_kind_is_listed(data_set):
    """Faults that do not touch one another's records add up, whatever their order."""
    chosen = [
        SPOILT_ANNOTATIONS[name]
        for name in (
            "box outside on the left",
            "polygon of two points",
            "duplicate annotation id",
            "negative category that is present",
            "two images with one file",
            "image that is no object",
            "unknown not exhaustive category",
        )
    ]
    random.Random(0).shuffle(chosen)
    content = sound_content()
    for spoil, _ in chosen:
        spoil(content)
    write(data_set, content)
    (data_set / "train" / "3.jpg").unlink()
    (data_set / "train" / "2.jpg").unlink()
    expected = sum((expected for _, expected in chosen), ["missing_image"] * 2)
    assert Counter(kinds(data_set)) == Counter(expected)


def test_faults_lead_to_their_record_even_where_ids_repeat(data_set):
    content = sound_content()
    content["annotations"][1].update(id=1, bbox=[1.0, 1.0, 0.0, 1.0])
    write(data_set, content)
    faults = {fault.kind: fault for fault in check_dataset(data_set / "set.json", data_set)}
    assert faults["degenerate_box"].where == "annotation 1 of image 3"
    assert "[1.0, 1.0, 0.0, 1.0]" in faults["degenerate_box"].message
    assert faults["duplicate_annotation_id"].message == "2 annotations have this id"


def test_coco_without_federated_lists(data_set):
    content = sound_content()
    for image in content["images"]:
        image["file_name"] = f"train/{image['id']}.jpg"
        for field in ("coco_url", "neg_category_ids", "not_exhaustive_category_ids"):
            del image[field]
    for category in content["categories"]:
        del category["frequency"]
    write(data_set, content)
    assert kinds(data_set) == []


def test_empty_data_set(data_set):
    write(data_set, {"images": [], "annotations": [], "categories": []})
    assert kinds(data_set) == []


def test_what_cannot_be_checked_at_all_is_refused(data_set):
    with pytest.raises(InputError, match="nowhere: the image root is not a folder"):
        check_dataset(data_set / "set.json", data_set / "nowhere")
    write(data_set, [1, 2])
    with pytest.raises(InputError, match="LVIS or COCO"):
        check_dataset(data_set / "set.json", data_set)


MASK_SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(mask=hnp.arrays(np.uint8, MASK_SHAPES, elements=st.integers(0, 1)))
def test_run_lengths_are_those_of_pycocotools(mask):
    runs = _run_lengths(compressed(mask)["counts"])
    flat = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(flat, mask.flatten(order="F"))


def test_the_tool_tells_by_its_exit_status(data_set, capsys):
    path = data_set / "set.json"
    assert exit_status(TOOL, path, data_set) == 0
    assert capsys.readouterr().out == f"{path}: faults: 0, warnings: 0\n"
    assert exit_status(TOOL, path) == 0
    assert "the images were not checked" in capsys.readouterr().out

    content = sound_content()
    content["annotations"].pop(0)
    write(data_set, content)
    assert exit_status(TOOL, path, data_set) == 0
    warning, summary = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: zero_instance_classes: ") and "'class 5'" in warning
    assert summary == f"{path}: faults: 0, warnings: 1"

    (data_set / "train" / "9.jpg").unlink()
    assert exit_status(TOOL, path, data_set) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("error: missing_image: image 9 (train/9.jpg): ")
    assert printed[-1] == f"{path}: faults: 1, warnings: 1"

    path.write_text("{")
    assert exit_status(TOOL, path, data_set) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: this is not valid JSON")


def test_a_fault_is_one_line():
    fault = Fault("kind", "where", "message")
    assert str(fault) == "error: kind: where: message"
