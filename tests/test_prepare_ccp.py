"""Clothing Co-Parsing made into objects: which pixels are one object, and their outlines."""

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from pycocotools import mask as mask_util

from balms_det.annotations.check import check_dataset
from balms_det.runtime.errors import InputError

SCRIPT = Path(__file__).resolve().parents[1] / "datasets" / "prepare_ccp.py"
LABELS = ["null", "accessories", "dress", "shoes", "skin"]
HEIGHT, WIDTH = 512, 300  # no resizing, so that pixels can be counted


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_ccp", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rasterised(polygons):
    codes = mask_util.frPyObjects(polygons, HEIGHT, WIDTH)
    return mask_util.decode(mask_util.merge(codes)).astype(bool)


def rectangles(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, width, height in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def test_the_pixels_of_a_class_are_one_object_without_noise(script):
    parts = [(20, 20, 60, 80), (150, 40, 10, 10), (200, 200, 3, 3), (220, 300, 6, 6)]
    (found,) = script.objects_of(rectangles(*parts), "dress")
    # Nine pixels are too few, and 36 are less than a hundredth of the largest part.
    assert np.array_equal(found, rectangles(*parts[:2]))


def test_parts_that_touch_by_a_corner_are_one_part(script):
    mask = rectangles((10, 10, 20, 20), (30, 30, 20, 20))
    assert len(script.objects_of(mask, "accessories")) == 1


def test_shoes_are_two_objects_and_the_rest_joins_the_nearer_one(script):
    left, right, laces = (20, 400, 40, 30), (150, 400, 40, 40), (30, 380, 12, 5)
    larger, smaller = script.objects_of(rectangles(left, right, laces), "shoes")
    assert np.array_equal(larger, rectangles(right))
    assert np.array_equal(smaller, rectangles(left, laces))


@pytest.mark.parametrize(("width", "objects"), [(59, 1), (60, 2)])
def test_the_second_shoe_has_a_share_of_the_first(script, width, objects):
    mask = rectangles((10, 100, 200, 20), (10, 300, width, 10))
    assert len(script.objects_of(mask, "shoes")) == objects


def test_every_part_of_accessories_is_an_object_the_largest_first(script):
    parts = [(10, 10, 12, 12), (50, 50, 20, 20), (90, 90, 15, 15)]
    found = script.objects_of(rectangles(*parts), "accessories")
    assert [int(mask.sum()) for mask in found] == [400, 225, 144]


def test_nothing_but_noise_is_no_object(script):
    assert script.objects_of(rectangles((5, 5, 2, 2)), "dress") == []


@pytest.mark.parametrize(
    "holes", [[], [(60, 60, 20, 30)], [(40, 40, 10, 10), (45, 100, 9, 20), (100, 60, 2, 1)]]
)
def test_outlines_enclose_the_pixels_and_no_hole(script, holes):
    mask = rectangles((20, 20, 100, 120)) & ~rectangles(*holes)
    polygons = script.polygons_of(mask.astype(np.uint8))
    assert (len(polygons) > 1) == bool(holes)
    assert np.array_equal(rasterised(polygons), mask)


def test_the_outline_of_a_disc_is_simpler_and_nearly_the_same(script, monkeypatch):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = (x - 150) ** 2 + (y - 200) ** 2 < 80**2
    (polygon,) = script.polygons_of(mask.astype(np.uint8))
    monkeypatch.setattr(script, "TOLERANCE", 0)
    (exact,) = script.polygons_of(mask.astype(np.uint8))
    assert len(polygon) < 0.6 * len(exact)
    assert (rasterised([polygon]) != mask).sum() < 0.02 * mask.sum()


def test_parts_of_a_single_pixel_have_no_outline(script):
    assert script.polygons_of(rectangles((5, 5, 1, 1)).astype(np.uint8)) == []


@pytest.fixture
def clone(tmp_path):
    """A directory as the repository's, of three photographs; the last one is larger."""
    for folder in ("photos", "annotations/pixel-level"):
        (tmp_path / folder).mkdir(parents=True)
    names = np.empty((1, len(LABELS)), object)
    names[0] = [np.array([label]) for label in LABELS]
    scipy.io.savemat(tmp_path / "label_list.mat", {"label_list": names})
    for number, scale in ((1, 1), (2, 1), (3, 2)):
        labels = np.zeros((scale * HEIGHT, scale * WIDTH), np.uint8)
        labels[scale * 100 : scale * 300, scale * 50 : scale * 150] = LABELS.index("dress")
        labels[scale * 10 : scale * 40, scale * 50 : scale * 80] = LABELS.index("skin")
        if number == 2:
            labels[400:440, 50:90] = labels[400:440, 150:190] = LABELS.index("shoes")
        annotations = tmp_path / "annotations" / "pixel-level" / f"{number:04d}.mat"
        scipy.io.savemat(annotations, {"groundtruth": labels})
        pixels = np.full((*labels.shape, 3), 99, np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{number:04d}.jpg"), pixels)
    return tmp_path


def test_the_folds_are_valid_files_of_the_objects(script, clone, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "FOLD_OF_PHOTOGRAPH", "012")
    out = tmp_path / "out"
    script.main([str(clone), "--out", str(out)])
    for fold in range(3):
        train, val = (
            json.loads((out / f"fold{fold}_{split}.json").read_text()) for split in ("train", "val")
        )
        assert [image["id"] for image in val["images"]] == [fold + 1]
        assert sorted(image["id"] for image in train["images"] + val["images"]) == [1, 2, 3]
        assert train["categories"] == val["categories"]
        assert [category["name"] for category in val["categories"]] == LABELS[1:4]
        counted = [0, 2, 0 if fold == 1 else 2]
        assert [category["instance_count"] for category in val["categories"]] == counted
        for split in ("train", "val"):
            faults = check_dataset(out / f"fold{fold}_{split}.json", out / "images")
            assert [fault for fault in faults if fault.severity == "error"] == []
    (image,) = val["images"]
    assert (image["height"], image["width"]) == (HEIGHT, WIDTH)
    assert image["neg_category_ids"] == [3]  # nobody says that there are no accessories
    (dress,) = val["annotations"]
    assert dress["bbox"] == pytest.approx([50, 100, 100, 200], abs=0.3)
    assert dress["area"] == 100 * 200


def test_another_directory_is_refused(script, tmp_path):
    with pytest.raises(InputError, match="label_list.mat: it does not exist; give a clone"):
        script.main([str(tmp_path), "--out", str(tmp_path / "out")])


def test_a_photograph_that_is_missing_is_named(script, clone, tmp_path):
    (clone / "photos" / "0002.jpg").unlink()
    with pytest.raises(InputError, match="0002.mat: this file or its photograph is missing"):
        script.main([str(clone), "--out", str(tmp_path / "out")])


def test_every_photograph_has_a_fold(script):
    assert len(script.FOLD_OF_PHOTOGRAPH) == 1004
    assert set(script.FOLD_OF_PHOTOGRAPH) == {"0", "1", "2"}
