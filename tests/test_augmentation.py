"""Large-scale jitter and changes of colour, through the mapper that training uses."""

import copy

import cv2
import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from tiny_model import tiny_cfg

from balms_det.data import LongTailDatasetMapper
from balms_det.data.augmentation import train_augmentations

HEIGHT, WIDTH = 60, 40
JITTER = "INPUT.LARGE_SCALE_JITTER"
# A concave polygon, one that touches every side, and one in a corner.
POLYGONS = [
    [5.0, 5, 30, 8, 12, 25, 28, 50, 6, 45],
    [0.0, 30, 20, 0, 40, 30, 20, 60],
    [1.0, 1, 6, 1, 6, 6, 1, 6],
]


@pytest.fixture
def record(tmp_path):
    """An image with objects of the polygons, as Detectron2's dictionary."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), image)
    annotations = []
    for index, polygon in enumerate(POLYGONS):
        x, y = polygon[::2], polygon[1::2]
        box = [min(x), min(y), max(x), max(y)]
        annotations.append(
            {
                "bbox": box, "bbox_mode": BoxMode.XYXY_ABS,
                "segmentation": [polygon], "category_id": index,
            }
        )  # fmt: skip
    return {
        "file_name": str(path), "height": HEIGHT, "width": WIDTH, "image_id": 0,
        "annotations": annotations,
    }  # fmt: skip


def jitter(size, least, most):
    """Return the overrides of large-scale jitter without padding."""
    scales = [f"{JITTER}.MIN_SCALE", least, f"{JITTER}.MAX_SCALE", most]
    return (f"{JITTER}.SIZE", size, *scales, f"{JITTER}.PAD", False)


def mapped(record, *opts, seed=0, is_train=True):
    mapper = LongTailDatasetMapper(tiny_cfg(*opts), is_train=is_train)
    np.random.seed(seed)
    return mapper(copy.deepcopy(record))


@pytest.mark.parametrize("seed", range(8))
def test_an_image_and_its_boxes_stay_within_the_size(record, seed):
    item = mapped(record, *jitter(32, 0.5, 3.0), seed=seed)
    height, width = item["image"].shape[1:]
    assert max(height, width) <= 32
    instances = item["instances"]
    assert len(instances) <= len(POLYGONS)
    assert instances.gt_masks.tensor.shape[1:] == (height, width)
    # Each box is that of the pixels, hence also not empty.
    assert instances.gt_boxes.tensor.equal(instances.gt_masks.get_bounding_boxes().tensor)
    assert instances.gt_boxes.nonempty().all()


def test_without_jitter_in_the_range_the_longer_side_has_the_size(record):
    item = mapped(record, *jitter(30, 1.0, 1.0))
    assert item["image"].shape == (3, 30, 20)
    assert len(item["instances"]) == 3


def test_the_scale_follows_the_range(record):
    longest = [
        max(mapped(record, *jitter(100, 0.5, 0.8), seed=seed)["image"].shape) for seed in range(12)
    ]
    assert 50 <= min(longest) < max(longest) <= 80


def test_flips_follow_the_jitter(record):
    opts = (*jitter(HEIGHT, 1.0, 1.0), "INPUT.RANDOM_FLIP", "horizontal")
    images = {mapped(record, *opts, seed=seed)["image"].numpy().tobytes() for seed in range(10)}
    assert len(images) == 2


def test_colour_changes_the_pixels_and_nothing_else(record):
    plain = mapped(record)
    changed = mapped(record, "INPUT.COLOR_JITTER", 0.5)
    assert not changed["image"].equal(plain["image"])
    assert changed["image"].dtype == plain["image"].dtype
    assert changed["instances"].gt_boxes.tensor.equal(plain["instances"].gt_boxes.tensor)
    assert changed["instances"].gt_masks.tensor.equal(plain["instances"].gt_masks.tensor)


def test_the_factors_of_the_colours_are_those_asked_for():
    transforms = train_augmentations(tiny_cfg("INPUT.COLOR_JITTER", 0.25), [])
    assert [type(t) for t in transforms] == [
        T.RandomBrightness, T.RandomContrast, T.RandomSaturation
    ]  # fmt: skip
    assert {(t.intensity_min, t.intensity_max) for t in transforms} == {(0.75, 1.25)}


def test_by_default_the_augmentations_are_detectron2s_own():
    default = [T.ResizeShortestEdge(32)]
    assert train_augmentations(tiny_cfg(), default) == default


def test_the_images_of_a_test_are_left_alone(record):
    opts = ("INPUT.MIN_SIZE_TEST", WIDTH, "INPUT.COLOR_JITTER", 0.9, *jitter(32, 0.1, 2.0))
    with_opts, without = (mapped(record, *o, is_train=False) for o in (opts, opts[:2]))
    assert with_opts["image"].equal(without["image"])
