"""The authors' detection release as a configuration, and the table that compares it."""

import argparse
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets.lvis_v1_category_image_count import LVIS_CATEGORY_IMAGE_COUNT

from balms_det.annotations.class_stats import ClassStats
from balms_det.engine import load_config
from balms_det.losses.criterion import build_criterion

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods" / "BALANCED_LOSSES.md"
# Of LVIS v1: Detectron2 has the number of images with each class, but not that of instances.
COUNTS = [record["image_count"] for record in LVIS_CATEGORY_IMAGE_COUNT]
ANNOTATED = 99_388
K = 1203


def load(name, *opts):
    opts = [str(opt) for opt in opts]
    return load_config(argparse.Namespace(config_file=name, opts=opts, dataset=[]))


def lvis_v1():
    return ClassStats(
        image_counts=np.array(COUNTS),
        instance_counts=np.array(COUNTS),  # they change the sums below by less than a percent
        num_images=100_170,
        num_annotated_images=ANNOTATED,
        category_ids=range(1, K + 1),
        names=[f"class {j}" for j in range(K)],
        groups=["f"] * K,
    )


def sums_at_initialisation(cfg):
    """Sum of the sigmoids that the loss sees, of an object's row and of a background row."""
    criterion = build_criterion(cfg.MODEL.LONG_TAIL, K, lvis_v1())
    bias = criterion.activation.initial_bias(K, cfg.MODEL.LONG_TAIL.LOSS.PRIOR_PROB)
    sums = []
    for gt_class in (7, K):
        logits = bias[None].clone().requires_grad_()
        criterion(logits, torch.tensor([gt_class])).backward()
        # The gradient of a sigmoid cross-entropy is the sigmoid less its target.
        sums.append(logits.grad.sum().item() + (gt_class < K))
    return sums


RECIPES = {
    "slides": ("lvis_r50+balsig", "MODEL.LONG_TAIL.LOSS.MARGIN.ROWS", "all"),
    "default": ("lvis_r50+balsig",),
    "release": ("lvis_r50_balsig_release",),
}


def test_the_sums_at_initialisation_are_those_of_the_page():
    sums = {name: sums_at_initialisation(load(*recipe)) for name, recipe in RECIPES.items()}
    rows = re.findall(
        r"^\| (?:Σ_j|the same of a background RoI).*?\| (.*) \| (.*) \| (.*) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 2
    for kind, row in enumerate(rows):
        for name, cell in zip(RECIPES, row, strict=True):
            digits = len(cell.partition(".")[2])
            assert f"{sums[name][kind]:.{digits}f}" == cell, (name, kind)


def test_the_released_margin_is_its_code():
    """log((1 - p) / p) of the image frequency p among annotated images, foreground rows only."""
    built = build_criterion(load("lvis_r50_balsig_release").MODEL.LONG_TAIL, K, lvis_v1())
    for j in (0, 5, 1202):
        p = COUNTS[j] / ANNOTATED
        assert built.loss.margins[j].item() == pytest.approx(math.log((1 - p) / p), rel=1e-6)


@pytest.mark.parametrize("data", ["lvis", "lvis_v05"])
def test_stages_follow_one_another_with_the_released_schedules(data):
    first, second = (load(f"{data}_r50_{loss}_release") for loss in ("sigmoid", "balsig"))
    assert (first.SOLVER.MAX_ITER, first.SOLVER.STEPS) == (90_000, (60_000, 80_000))
    assert (second.SOLVER.MAX_ITER, second.SOLVER.STEPS) == (22_000, (11_000, 18_000))
    for cfg in (first, second):
        assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH) == (0.02, 16)
        assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
        assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
        assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.0001
        assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert first.MODEL.LONG_TAIL.LOSS.NAME == "sigmoid"
    assert not first.MODEL.LONG_TAIL.DECOUPLE.ENABLED
    assert second.MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES == ["roi_heads.box_predictor.cls_score"]
    assert second.MODEL.WEIGHTS == f"output/{data}_r50_sigmoid_release/model_final.pth"
    names = {"lvis": ("lvis_v1_train", 1203), "lvis_v05": ("lvis_v0.5_train", 1230)}[data]
    for cfg in (first, second):
        assert (*cfg.DATASETS.TRAIN, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == names
