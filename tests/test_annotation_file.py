"""Reading annotation files: structure is checked, and every refusal names place and remedy."""

import gc
import json

import pytest

from balms_det.annotations.file import read_annotation_file
from balms_det.runtime.errors import InputError


def content():
    return {
        "images": [{"id": 5, "height": 4, "width": 6, "file_name": "five.png"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 30, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 30, "name": "thirty"}, {"id": 7, "name": "seven"}],
    }


@pytest.fixture
def write(tmp_path):
    def write(value):
        path = tmp_path / "set.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


def test_categories_are_sorted_and_records_kept_as_they_are(write):
    file = read_annotation_file(write(content()))
    assert [category["id"] for category in file.categories] == [7, 30]
    assert file.images == content()["images"]
    assert file.annotations == content()["annotations"]
    assert file.format == "coco"


def test_federated_fields_make_it_lvis(write):
    by_frequency, by_negatives = content(), content()
    by_frequency["categories"][0]["frequency"] = "r"
    by_negatives["images"][0]["neg_category_ids"] = []
    assert read_annotation_file(write(by_frequency)).format == "lvis"
    assert read_annotation_file(write(by_negatives)).format == "lvis"


URL = "http://images.example/train2017/000005.jpg"


@pytest.mark.parametrize(
    ("lvis", "names", "expected"),
    [
        (False, {"file_name": "a/five.png"}, "a/five.png"),
        (False, {"file_name": "five.png", "coco_url": URL}, "five.png"),
        (False, {"coco_url": URL}, "train2017/000005.jpg"),
        (True, {"file_name": "five.png", "coco_url": URL}, "train2017/000005.jpg"),
        (True, {"file_name": "five.png"}, "five.png"),
        (True, {"file_name": "five.png", "coco_url": None}, "five.png"),
    ],
)
def test_where_a_picture_lies(write, tmp_path, lvis, names, expected):
    value = content()
    value["images"][0] = {"id": 5, "height": 4, "width": 6, **names}
    if lvis:
        value["images"][0]["neg_category_ids"] = []
    file = read_annotation_file(write(value))
    assert file.image_name(file.images[0]) == expected
    # The root needs no trailing slash.
    assert file.image_path(file.images[0], "root") == f"root/{expected}"
    assert file.image_path(file.images[0], tmp_path) == str(tmp_path / expected)


def test_an_image_without_a_file_is_refused_when_asked_for(write):
    value = content()
    del value["images"][0]["file_name"]
    file = read_annotation_file(write(value))
    with pytest.raises(InputError, match="image 5 has neither 'file_name' nor 'coco_url'"):
        file.image_path(file.images[0], "root")


def test_a_byte_order_mark_is_read_over(write):
    path = write("\ufeff" + json.dumps(content()))
    assert read_annotation_file(path).images == content()["images"]


def without(section, field):
    value = content()
    del value[section][0][field]
    return value


def altered(section, **fields):
    value = content()
    value[section][0].update(fields)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "the top level is a list, expected an object"),
        ({"images": [], "annotations": []}, "there is no list 'categories'"),
        ({**content(), "images": {}}, "there is no list 'images'"),
        ({**content(), "categories": []}, "the list 'categories' is empty"),
        ({**content(), "annotations": [7]}, r"annotations\[0\] is 7, expected an object"),
        (without("images", "height"), r"images\[0\] has no 'height'"),
        (without("annotations", "bbox"), r"annotations\[0\] has no 'bbox'"),
        (without("categories", "name"), r"categories\[0\] has no 'name'"),
        (altered("images", id="5"), r"images\[0\] has 'id' '5', expected a non-negative integer"),
        (altered("images", id=5.0), r"images\[0\] has 'id' 5.0, expected"),
        (altered("annotations", category_id=True), "has 'category_id' True, expected"),
        (altered("annotations", image_id=-1), "has 'image_id' -1, expected"),
        (altered("annotations", bbox=None), r"has 'bbox' None, expected \[x, y, width, height\]"),
        (altered("categories", name=3), "has 'name' 3, expected a string"),
        (altered("categories", id=7), "two categories have the id 7 .'thirty' and 'seven'."),
        ('{"images": [', "this is not valid JSON"),
        ('{"images": [NaN]}', "this is not valid JSON .*NaN"),
        ("", "this is not valid JSON"),
    ],
)
def test_other_content_is_refused_by_name(write, value, message):
    path = write(value)
    with pytest.raises(InputError, match=message) as refusal:
        read_annotation_file(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere.json: the file cannot be read"):
        read_annotation_file(tmp_path / "nowhere.json")


def test_garbage_collection_is_left_as_it_was(write):
    was_enabled = gc.isenabled()
    try:
        for enabled in (True, False):
            (gc.enable if enabled else gc.disable)()
            read_annotation_file(write(content()))
            assert gc.isenabled() == enabled
            with pytest.raises(InputError):
                read_annotation_file(write("{"))
            assert gc.isenabled() == enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()
