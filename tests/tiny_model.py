"""A Mask R-CNN small enough to build, train a step and run in a second."""

import argparse

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from second_device import name_of_device

from balms_det.annotations.class_stats import ClassStats
from balms_det.config import config_file
from balms_det.engine import load_config

SIZE = 64  # of the images, in pixels


def tiny_cfg(*opts):
    """glyphs_quickstart.yaml (R-18, 64 channels, 10 classes) with fewer proposals."""
    fewer = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 20]
    opts = [str(opt) for opt in (*fewer, "MODEL.DEVICE", name_of_device(), *opts)]
    path = config_file("glyphs_quickstart.yaml")
    return load_config(argparse.Namespace(config_file=path, opts=opts, dataset=[]))


def stats_file(folder, num_classes=10):
    """Write long-tailed class statistics and return their path."""
    counts = [200 // (j + 1) for j in range(num_classes)]
    stats = ClassStats(
        image_counts=counts,
        instance_counts=counts,
        num_images=200,
        num_annotated_images=200,
        category_ids=range(1, num_classes + 1),
        names=[f"class {j}" for j in range(num_classes)],
        groups=["f"] * num_classes,
    )
    stats.save(folder / "class_stats.json")
    return folder / "class_stats.json"


def batch(objects=2, num_images=2, num_classes=10, seed=0):
    """Images with random pixels and `objects` rectangles each, as Detectron2's mapper has them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for _ in range(num_images):
        corner = torch.randint(0, SIZE // 2, (objects, 2), generator=generator)
        size = torch.randint(10, SIZE // 2, (objects, 2), generator=generator)
        instances = Instances((SIZE, SIZE))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        instances.gt_classes = torch.randint(num_classes, (objects,), generator=generator)
        if objects:  # Detectron2's mapper gives images without objects no masks.
            masks = torch.zeros(objects, SIZE, SIZE, dtype=torch.bool)
            for mask, (x, y), (w, h) in zip(masks, corner, size, strict=True):
                mask[y : y + h, x : x + w] = True
            instances.gt_masks = BitMasks(masks)
        image = torch.randint(256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "height": SIZE, "width": SIZE, "instances": instances})
    return inputs
