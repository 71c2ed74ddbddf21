"""Copy-Paste and large-scale jitter: masks, occlusion, draws, and data sets of all kinds."""

import argparse

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from balms_det.data import (
    LongTailDatasetMapper,
    build_train_loader,
    load_train_dataset,
    loader,
    register_dataset,
)
from balms_det.data.copy_paste import CopyPaste, images_of_rare_classes, paste
from balms_det.engine import load_config
from balms_det.runtime.errors import InputError
from balms_det.synthetic import GlyphOptions, generate

PASTE, JITTER = "INPUT.COPY_PASTE", "INPUT.LARGE_SCALE_JITTER"


def mapped(boxes, classes, value, size=(20, 30)):
    """An image of one value with rectangular objects, x1 y1 x2 y2."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if boxes:
        masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        instances.gt_masks = BitMasks(masks)
    image = torch.full((3, *size), value, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def pasted_in_loops(target, source, chosen):
    """Image, and (class, mask) of each object, pixel by pixel."""
    height, width = target["image"].shape[1:]
    image = target["image"].clone()
    objects = []
    sources = []
    for index in chosen:
        mask = torch.zeros(height, width, dtype=torch.bool)
        other = source["instances"].gt_masks.tensor[index]
        for y in range(min(height, other.shape[0])):
            for x in range(min(width, other.shape[1])):
                if other[y, x]:
                    mask[y, x] = True
                    image[:, y, x] = source["image"][:, y, x]
        if mask.any():
            sources.append((source["instances"].gt_classes[index].item(), mask))
    for index, number in enumerate(target["instances"].gt_classes.tolist()):
        mask = target["instances"].gt_masks.tensor[index].clone()
        for _, over in sources:
            mask[over] = False
        if mask.any():
            objects.append((number, mask))
    return image, objects + sources


def assert_is(result, image, objects):
    instances = result["instances"]
    assert torch.equal(result["image"], image)
    assert instances.gt_classes.tolist() == [number for number, _ in objects]
    assert torch.equal(instances.gt_masks.tensor, torch.stack([mask for _, mask in objects]))
    for box, (_, mask) in zip(instances.gt_boxes.tensor.tolist(), objects, strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


TARGET = ([[2, 2, 10, 8], [12, 5, 20, 15], [3, 12, 6, 16]], [0, 1, 2], 50)
SOURCE = ([[8, 4, 16, 10], [2, 11, 8, 18], [25, 0, 30, 4]], [7, 8, 9], 200)


@pytest.mark.parametrize("size", [(20, 30), (14, 40), (40, 12), (5, 5)])
@pytest.mark.parametrize("chosen", [[0], [1], [0, 1, 2], [2, 0]])
def test_pixels_masks_and_boxes_agree_with_loops(size, chosen):
    boxes = [[min(x, size[1] - 1) if i % 2 == 0 else min(x, size[0] - 1) for i, x in enumerate(b)]
             for b in SOURCE[0]]  # fmt: skip
    boxes = [[x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)] for x1, y1, x2, y2 in boxes]
    target, source = mapped(*TARGET), mapped(boxes, *SOURCE[1:], size)
    result = paste(target, source, torch.tensor(chosen))
    assert_is(result, *pasted_in_loops(target, source, chosen))


def test_an_object_that_is_hidden_is_dropped_and_one_in_part_shrinks():
    target = mapped([[0, 0, 10, 10], [12, 0, 16, 4]], [0, 1], 50)
    source = mapped([[5, 0, 17, 10]], [7], 200)
    result = paste(target, source, torch.tensor([0]))["instances"]
    assert result.gt_classes.tolist() == [0, 7]
    assert result.gt_boxes.tensor.tolist() == [[0, 0, 5, 10], [5, 0, 17, 10]]


def test_objects_that_nothing_hides_keep_their_boxes_to_the_last_bit():
    target = mapped([[2, 2, 10, 8]], [0], 50)
    target["instances"].gt_boxes.tensor += 0.25  # as annotated, not tight
    result = paste(target, mapped([[20, 10, 24, 14]], [7], 200), torch.tensor([0]))
    assert torch.equal(result["instances"].gt_boxes.tensor[:1], target["instances"].gt_boxes.tensor)


def test_inputs_stay_and_nothing_pasted_is_the_image_itself():
    target, source = mapped(*TARGET), mapped(*SOURCE)
    before = target["image"].clone(), target["instances"].gt_masks.tensor.clone()
    paste(target, source, torch.tensor([0, 1]))
    assert torch.equal(target["image"], before[0])
    assert torch.equal(target["instances"].gt_masks.tensor, before[1])
    assert paste(target, source, torch.tensor([], dtype=torch.int64)) is target
    outside = mapped([[25, 0, 30, 4]], [9], 200)
    assert paste(mapped([], [], 0, (20, 20)), outside, torch.tensor([0]))["instances"] is not None


def test_images_without_objects_can_be_below_and_above():
    empty = mapped([], [], 0)
    below = paste(empty, mapped(*SOURCE), torch.tensor([1]))["instances"]
    assert below.gt_classes.tolist() == [8]
    assert paste(mapped(*TARGET), empty, torch.tensor([], dtype=torch.int64)) is not None


# Draws


def records(images_of):
    """Dataset dicts of ten images, in which each class is in the images that are given."""
    dicts = [{"index": i, "annotations": []} for i in range(40)]
    for number, images in images_of.items():
        for i in images:
            dicts[i]["annotations"].append({"category_id": number})
    return dicts


def identity_mapper(record):
    classes = [a["category_id"] for a in record["annotations"]]
    boxes = [[3 * i, 0, 3 * i + 2, 2] for i in range(len(classes))]
    return {**mapped(boxes, classes, record["index"]), "index": record["index"]}


def test_rare_classes_have_up_to_ten_images():
    found = images_of_rare_classes(records({0: range(30), 1: range(10), 2: range(11), 4: [7, 7]}))
    assert {number: images.tolist() for number, images in found.items()} == {
        1: list(range(10)),
        4: [7],
    }


def test_rare_classes_are_pasted_with_their_probability_and_equally_often():
    dataset = records({0: range(40), 1: [3], 2: [4, 5, 6, 7, 8, 9]})
    copy_paste = CopyPaste(identity_mapper, dataset, prob=1.0, rare_prob=0.8)
    np.random.seed(0)
    pasted = torch.zeros(3)
    for _ in range(600):
        classes = copy_paste({"index": 30, "annotations": []})["instances"].gt_classes
        for number in range(3):
            pasted[number] += (classes == number).any()
    # 40% of the images for each of the two rare classes, and rarely by drawing from all images.
    assert 200 < pasted[1] < 290 and 200 < pasted[2] < 330


def test_it_pastes_with_its_probability():
    dataset = records({0: range(40)})
    for prob, least, most in ((0.0, 0, 0), (0.3, 35, 85), (1.0, 150, 250)):
        copy_paste = CopyPaste(identity_mapper, dataset, prob=prob, rare_prob=1.0)
        np.random.seed(0)
        number = sum(
            len(copy_paste({"index": 30, "annotations": []})["instances"]) > 0 for _ in range(400)
        )
        assert least <= number <= most  # half of the objects that could be


# Data sets and the configuration


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy_paste")
    generate(folder, GlyphOptions(train_images=8, val_images=2, size=64, min_scale=0.2))
    register_dataset("copy_paste_train", str(folder / "glyphs_train.json"), str(folder))
    yield folder
    DatasetCatalog.remove("copy_paste_train")


def config(*opts):
    base = ["DATASETS.TRAIN", "('copy_paste_train',)", "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MASK_FORMAT", "bitmask", "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu",
            "INPUT.MIN_SIZE_TRAIN", "(64,)"]  # fmt: skip
    opts = [str(opt) for opt in (*base, *opts)]
    return load_config(
        argparse.Namespace(config_file="glyphs_quickstart.yaml", opts=opts, dataset=[])
    )


def plain_list(folder):
    """The same data set as a list of dictionaries with polygons, as any function may load it."""
    return [
        {
            "file_name": record["file_name"], "height": record["height"], "width": record["width"],
            "annotations": [
                {
                    "bbox": [8.0, 8.0, 24.0, 24.0], "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": i % 10, "segmentation": [[8, 8, 24, 8, 24, 24, 8, 24]],
                }
            ],
        }
        for i, record in enumerate(load_train_dataset(config()))
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["registered", "list of polygons"])
@pytest.mark.parametrize("jitter", [0, 48])
def test_training_batches_have_consistent_instances(folder, kind, jitter):
    cfg = config(f"{PASTE}.PROB", 1.0, f"{PASTE}.RARE_PROB", 0.5, f"{JITTER}.SIZE", jitter)
    dataset = None if kind == "registered" else plain_list(folder)
    batch = next(iter(build_train_loader(cfg, dataset=dataset)))
    assert len(batch) == 4
    for image in batch:
        instances = image["instances"]
        if jitter:
            assert image["image"].shape == (3, jitter, jitter)
        if not instances.has("gt_masks"):
            continue
        masks = instances.gt_masks.tensor
        assert masks.shape == (len(instances), *image["image"].shape[1:])
        assert masks.flatten(1).any(dim=1).all()
        tight = BitMasks(masks).get_bounding_boxes().tensor
        assert ((instances.gt_boxes.tensor - tight).abs() <= 2).all()


def test_nothing_is_pasted_unless_it_is_asked_for(folder, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("nothing asks for it")

    monkeypatch.setattr(loader, "CopyPaste", fail)
    assert len(next(iter(build_train_loader(config())))) == 4
    with pytest.raises(AssertionError, match="nothing asks"):
        build_train_loader(config(f"{PASTE}.PROB", 0.1))


def test_jitter_pads_with_no_object_and_crops_to_what_is_left(tmp_path):
    """An object over the whole image fills as much of the square as the image does."""
    path = tmp_path / "a.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(path)
    record = {
        "file_name": str(path), "height": 40, "width": 60,
        "annotations": [{
            "bbox": [0, 0, 60, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0,
            "segmentation": [[0, 0, 60, 0, 60, 40, 0, 40]],
        }],
    }  # fmt: skip
    for scale, height, width in ((0.5, 21, 32), (1.0, 43, 64), (2.0, 64, 64)):
        cfg = config(
            f"{JITTER}.SIZE", 64, f"{JITTER}.MIN_SCALE", scale, f"{JITTER}.MAX_SCALE", scale
        )
        image = LongTailDatasetMapper(cfg, True)(record)
        (mask,) = image["instances"].gt_masks.tensor
        inside = (image["image"] != 128).all(dim=0)
        assert torch.equal(mask, inside)
        assert mask.sum() == height * width
        assert mask[:, :1].any()


@pytest.mark.parametrize("key, value", [(f"{PASTE}.PROB", 0.5), (f"{JITTER}.SIZE", 64)])
def test_polygons_are_refused_with_the_remedy(folder, key, value):
    cfg = config(key, value, "INPUT.MASK_FORMAT", "polygon")
    with pytest.raises(InputError, match=f"{key} is {value}, .*'polygon'.*'bitmask'"):
        build_train_loader(cfg)


@pytest.mark.parametrize(
    "key, value", [(f"{PASTE}.PROB", 1.5), (f"{PASTE}.RARE_PROB", -0.1), (f"{JITTER}.SIZE", -1)]
)
def test_values_that_make_no_sense_are_refused(key, value):
    with pytest.raises(InputError, match=key):
        config(key, value)
