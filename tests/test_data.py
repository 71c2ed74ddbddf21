"""Registering annotation files, counting them, and loading them with clear errors."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image
from pycocotools import mask as coco_mask

from balms_det.annotations.class_stats import ClassStats
from balms_det.annotations.file import read_annotation_file
from balms_det.config import add_balms_config
from balms_det.data import (
    SAMPLERS,
    LongTailDatasetMapper,
    build_test_loader,
    build_train_loader,
    check_num_classes,
    dataset_class_stats,
    load_dataset_dicts,
    register_dataset,
)
from balms_det.runtime.errors import InputError

SQUARE = [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]]


@pytest.fixture
def registered():
    """register_dataset, undone after the test."""
    names = []

    def register(name, *args):
        register_dataset(name, *args)
        names.append(name)
        return name

    yield register
    for name in set(names):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def lvis_set(tmp_path):
    """A tiny LVIS-format set, with gaps in its category ids: (json, image root)."""
    rng = np.random.default_rng(0)
    (tmp_path / "train").mkdir()
    images, annotations = [], []
    for image_id in (7, 3, 5):
        pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / f"{image_id:03}.jpg")
        images.append(
            {
                "id": image_id,
                "height": 32,
                "width": 40,
                "coco_url": f"http://images.example/train/{image_id:03}.jpg",
                "neg_category_ids": [20],
                "not_exhaustive_category_ids": [],
            }
        )
        annotations.append(
            {
                "id": image_id,
                "image_id": image_id,
                "category_id": 30 if image_id == 3 else 10,
                "bbox": [4.0, 4.0, 16.0, 16.0],
                "area": 256.0,
                "segmentation": SQUARE,
            }
        )
    categories = [
        {"id": i, "name": f"category {i}", "frequency": f}
        for i, f in ((30, "r"), (10, "f"), (20, "c"))
    ]
    path = tmp_path / "set.json"
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return str(path), str(tmp_path)


def config(*overrides):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_list(
        ["DATALOADER.NUM_WORKERS", 0, "MODEL.ROI_HEADS.NUM_CLASSES", 3, "SOLVER.IMS_PER_BATCH", 2]
        + list(overrides)
    )
    return cfg


def test_gaps_in_category_ids_are_closed_and_names_and_groups_kept(registered, lvis_set):
    registered("gaps", *lvis_set)
    metadata = MetadataCatalog.get("gaps")
    assert metadata.thing_dataset_id_to_contiguous_id == {10: 0, 20: 1, 30: 2}
    assert metadata.thing_classes == ["category 10", "category 20", "category 30"]
    assert metadata.class_groups == ["f", "c", "r"]
    assert metadata.evaluator_type == "lvis"
    dicts = DatasetCatalog.get("gaps")
    assert [d["image_id"] for d in dicts] == [3, 5, 7]
    assert [d["annotations"][0]["category_id"] for d in dicts] == [2, 0, 0]
    assert dicts[0]["neg_category_ids"] == [20]


def test_files_without_federated_fields_are_coco(registered, lvis_set, tmp_path):
    content = json.loads((tmp_path / "set.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        image["file_name"] = image.pop("coco_url").split("example/")[1]
    for category in content["categories"]:
        del category["frequency"]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    registered("as_coco", str(path), lvis_set[1])
    assert MetadataCatalog.get("as_coco").evaluator_type == "coco"
    batch = next(iter(build_train_loader(config("DATASETS.TRAIN", ("as_coco",)))))
    assert len(batch) == 2


def test_degenerate_polygons_are_dropped_and_their_objects_have_no_mask(lvis_set):
    file = read_annotation_file(lvis_set[0])
    file.annotations[0]["segmentation"] = [[1.0, 2.0, 3.0, 4.0]]
    file.annotations[1]["segmentation"] = [*SQUARE, [0.0, 0.0]]
    dicts = load_dataset_dicts(file, lvis_set[1])
    by_id = {d["image_id"]: d["annotations"] for d in dicts}
    assert [set(a) & {"segmentation"} for a in by_id[7]] == [set()]
    assert by_id[3][0]["segmentation"] == SQUARE


def with_masks(tmp_path, masks):
    """Write set.json with these segmentations, None for an object without one."""
    content = json.loads((tmp_path / "set.json").read_text())
    for annotation, mask in zip(content["annotations"], masks, strict=True):
        annotation["segmentation"] = mask
        if mask is None:
            del annotation["segmentation"]
    (tmp_path / "set.json").write_text(json.dumps(content))


def trained_masks(name, *opts):
    """Return the masks of each training image of a set, (N, H, W) bool, by image id."""
    cfg = config(
        "MODEL.MASK_ON", True, "INPUT.MIN_SIZE_TRAIN", (32,), "INPUT.RANDOM_FLIP", "none", *opts
    )
    mapper = LongTailDatasetMapper(cfg, is_train=True)
    masks = {}
    for record in map(mapper, DatasetCatalog.get(name)):
        instances = record["instances"]
        found = instances.gt_masks if instances.has("gt_masks") else []
        if isinstance(found, PolygonMasks):
            found = BitMasks.from_polygon_masks(found, *instances.image_size)
        masks[record["image_id"]] = found.tensor.numpy() if len(found) else np.empty((0, 32, 40))
    return masks


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_every_kind_of_mask_trains_the_same_pixels(registered, lvis_set, tmp_path, mask_format):
    """Polygons, run lengths as a list and as text."""
    registered("polygons", *lvis_set)
    expected = trained_masks("polygons", "INPUT.MASK_FORMAT", mask_format)
    pixels = next(iter(expected.values()))[0]
    assert 200 < pixels.sum() < 300
    text = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    text = {"size": [32, 40], "counts": text["counts"].decode()}
    flat = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes.tolist(), flat.size]).tolist()
    with_masks(tmp_path, [{"size": [32, 40], "counts": runs}, text, SQUARE])
    registered("mixed", *lvis_set)
    actual = trained_masks("mixed", "INPUT.MASK_FORMAT", mask_format)
    assert set(actual) == set(expected)
    for image_id, masks in actual.items():
        np.testing.assert_array_equal(masks, expected[image_id])


def test_objects_without_a_mask_train_boxes_only(registered, lvis_set, tmp_path):
    with_masks(tmp_path, [SQUARE, None, SQUARE])
    registered("partly", *lvis_set)
    masks = trained_masks("partly")
    assert sorted(len(of_image) for of_image in masks.values()) == [0, 1, 1]
    mapper = LongTailDatasetMapper(config("MODEL.MASK_ON", False), is_train=True)
    assert [len(mapper(r)["instances"]) for r in DatasetCatalog.get("partly")] == [1, 1, 1]


def test_registering_twice_is_harmless_but_a_taken_name_is_refused(registered, lvis_set, tmp_path):
    registered("once", *lvis_set)
    registered("once", *lvis_set)
    other = tmp_path / "other.json"
    other.write_text((tmp_path / "set.json").read_text())
    with pytest.raises(InputError, match="'once' is registered already"):
        register_dataset("once", str(other), lvis_set[1])


def test_missing_image_root_is_refused(lvis_set, tmp_path):
    with pytest.raises(InputError, match="is not a directory"):
        register_dataset("nowhere", lvis_set[0], str(tmp_path / "nowhere"))


def test_statistics_of_a_registered_set_are_those_of_its_file(registered, lvis_set):
    registered("counted", *lvis_set)
    stats = dataset_class_stats(["counted"])
    assert stats.instance_counts.tolist() == [2, 0, 1]
    assert stats.groups == ("f", "c", "r")


def test_statistics_of_a_set_without_a_file_come_from_its_dictionaries(registered, lvis_set):
    registered("file", *lvis_set)
    DatasetCatalog.register("dicts", lambda: DatasetCatalog.get("file"))
    MetadataCatalog.get("dicts").thing_classes = MetadataCatalog.get("file").thing_classes
    try:
        from_dicts, from_file = dataset_class_stats(["dicts"]), dataset_class_stats(["file"])
    finally:
        DatasetCatalog.remove("dicts")
        MetadataCatalog.remove("dicts")
    assert from_dicts.instance_counts.tolist() == from_file.instance_counts.tolist()
    assert from_dicts.image_counts.tolist() == from_file.image_counts.tolist()


def test_several_sets_are_counted_together(registered, lvis_set):
    registered("first", *lvis_set)
    registered("second", *lvis_set)
    one, both = dataset_class_stats(["first"]), dataset_class_stats(["first", "second"])
    assert isinstance(both, ClassStats)
    assert both.num_images == 2 * one.num_images
    np.testing.assert_array_equal(both.image_counts, 2 * one.image_counts)
    np.testing.assert_array_equal(both.instance_counts, 2 * one.instance_counts)


def test_unregistered_name_says_how_to_register_it():
    with pytest.raises(InputError, match="--dataset unheard_of JSON IMAGE_ROOT"):
        dataset_class_stats(["unheard_of"])
    with pytest.raises(InputError, match="--dataset unheard_of JSON IMAGE_ROOT"):
        build_test_loader(config(), "unheard_of")


def test_number_of_classes_must_be_the_models(registered, lvis_set):
    registered("three", *lvis_set)
    check_num_classes("three", 3)
    with pytest.raises(InputError, match="MODEL.ROI_HEADS.NUM_CLASSES 3"):
        check_num_classes("three", 80)
    with pytest.raises(InputError, match="MODEL.ROI_HEADS.NUM_CLASSES 3"):
        build_test_loader(config("MODEL.ROI_HEADS.NUM_CLASSES", 80), "three")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_missing_and_truncated_pictures_are_named(registered, lvis_set, tmp_path, num_workers):
    registered("broken", *lvis_set)
    cfg = config("DATALOADER.NUM_WORKERS", num_workers)
    picture = tmp_path / "train" / "005.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="005.jpg: the image cannot be read.*balms-det check"):
        list(build_test_loader(cfg, "broken"))
    picture.unlink()
    with pytest.raises(InputError, match="005.jpg: there is no such image.*balms-det check"):
        list(build_test_loader(cfg, "broken"))


def test_picture_of_another_size_is_named(registered, lvis_set, tmp_path):
    registered("resized", *lvis_set)
    Image.new("RGB", (64, 64)).save(tmp_path / "train" / "005.jpg")
    with pytest.raises(InputError, match="005.jpg: the image is not of the size"):
        list(build_test_loader(config(), "resized"))


@pytest.mark.e2e
def test_repeat_factors_oversample_rare_classes_on_any_registered_set(registered, lvis_set):
    """With threshold 1 the repeat factor of a class on 1 of 3 images is sqrt(3), on 2 sqrt(1.5)."""
    registered("rfs", *lvis_set)
    cfg = config(
        "DATASETS.TRAIN", ("rfs",),
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD", 1.0,
        "INPUT.MIN_SIZE_TRAIN", (32,),
    )  # fmt: skip
    torch.manual_seed(0)
    loader = iter(build_train_loader(cfg))
    drawn = [d["image_id"] for _ in range(1500) for d in next(loader)]
    share_of_rare = drawn.count(3) / len(drawn)
    expected = 3**0.5 / (3**0.5 + 2 * 1.5**0.5)
    assert share_of_rare == pytest.approx(expected, abs=0.03)


def test_class_balanced_sampling_draws_every_class_alike_on_any_registered_set(
    registered, lvis_set
):
    """Category 30 is on one image, 10 on two, 20 on none."""
    registered("balanced", *lvis_set)
    cfg = config(
        "DATASETS.TRAIN", ("balanced",),
        "DATALOADER.SAMPLER_TRAIN", "ClassBalancedTrainingSampler",
        "INPUT.MIN_SIZE_TRAIN", (32,),
    )  # fmt: skip
    loader = iter(build_train_loader(cfg))
    drawn = [d["image_id"] for _ in range(500) for d in next(loader)]
    assert drawn.count(3) / len(drawn) == pytest.approx(1 / 2, abs=0.08)
    assert drawn.count(5) / len(drawn) == pytest.approx(1 / 4, abs=0.08)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_refuses_a_set_of_other_classes(registered, lvis_set, sampler):
    registered("others", *lvis_set)
    cfg = config(
        "DATASETS.TRAIN", ("others",),
        "DATALOADER.SAMPLER_TRAIN", sampler,
        "MODEL.ROI_HEADS.NUM_CLASSES", 2,
    )  # fmt: skip
    with pytest.raises(InputError, match="MODEL.ROI_HEADS.NUM_CLASSES 3"):
        build_train_loader(cfg)
