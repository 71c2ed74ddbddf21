"""AP under several budgets of detections from one set of predictions."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from tiny_model import tiny_cfg

from balms_det.data import build_test_loader, register_dataset
from balms_det.evaluation import (
    LVISEvaluator,
    best_of_each_class,
    best_of_each_image,
    read_predictions,
    score_with_caps,
    score_with_class_budget,
)
from balms_det.evaluation.predictions import ImagePredictions
from balms_det.synthetic import GlyphOptions, generate


def predictions(seed=0, images=5, classes=4, ties=False):
    rng = np.random.default_rng(seed)
    result = []
    for image_id in range(1, images + 1):
        n = int(rng.integers(0, 12))
        scores = rng.choice([0.2, 0.5], n) if ties else rng.random(n)
        result.append(
            ImagePredictions(
                image_id=image_id,
                image_size=(8, 8),
                boxes=rng.random((n, 4), dtype=np.float32),
                scores=scores.astype(np.float32),
                category_ids=rng.integers(1, classes + 1, n),
                masks=b"\n".join(b"%d-%d" % (image_id, i) for i in range(n)),
            )
        )
    return result


def flat(predictions):
    """(image, class, score, mask) of each detection."""
    return [
        (p.image_id, int(c), float(s), rle["counts"])
        for p in predictions
        for c, s, rle in zip(p.category_ids, p.scores, p.rles(), strict=True)
    ]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("budget", [1, 3, 1000])
def test_each_class_keeps_its_best_over_all_images(budget, ties):
    for seed in range(5):
        before = flat(predictions(seed, ties=ties))
        kept = flat(best_of_each_class(predictions(seed, ties=ties), budget))
        expected = []
        for category in range(1, 5):
            of_class = [row for row in before if row[1] == category]
            # Python's sort is stable: ties stay in their order.
            expected += sorted(of_class, key=lambda row: -row[2])[:budget]
        assert sorted(kept) == sorted(expected)
        assert [row for row in before if row in kept] == kept  # order within images stays


@pytest.mark.parametrize("cap", [1, 3, 100])
def test_each_image_keeps_its_best(cap):
    before = predictions()
    for one, kept in zip(before, best_of_each_image(before, cap), strict=True):
        expected = sorted(flat([one]), key=lambda row: -row[2])[:cap]
        assert sorted(flat([kept])) == sorted(expected)


def test_no_predictions_at_all():
    assert best_of_each_class([], 5) == []
    empty = predictions(images=1)[0].select(np.zeros(0, dtype=np.int64))
    assert flat(best_of_each_class([empty], 5)) == []
    assert empty.masks == b"" and len(empty.boxes) == 0


def test_boxes_without_masks_are_selected_too():
    boxes_only = [dataclasses.replace(p, masks=None) for p in predictions()]
    assert all(p.masks is None for p in best_of_each_class(boxes_only, 2))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What one model, given the objects' boxes as proposals, predicts at a certain cap."""
    folder = tmp_path_factory.mktemp("budget")
    options = GlyphOptions(train_images=8, val_images=3, size=64, min_scale=0.2)
    generate(folder, options)
    register_dataset("budget_val", str(folder / "glyphs_val.json"), str(folder))
    torch.manual_seed(0)
    cfg = tiny_cfg("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", "DATASETS.TEST", ("budget_val",),
                   "INPUT.MIN_SIZE_TEST", 64, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
                   "DATALOADER.NUM_WORKERS", 0)  # fmt: skip
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=0.5)

    boxes_of = {
        record["image_id"]: [
            BoxMode.convert(obj["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
            for obj in record["annotations"]
        ]
        for record in DatasetCatalog.get("budget_val")
    }

    def run(cap):
        model.roi_heads.box_predictor.test_topk_per_image = cap
        output = folder / f"cap{cap}"
        evaluator = LVISEvaluator(
            "budget_val", distributed=False, output_dir=output, max_dets_per_image=300
        )
        with torch.no_grad():
            for batch in build_test_loader(cfg, "budget_val"):
                proposals = Instances((64, 64))
                proposals.proposal_boxes = Boxes(torch.tensor(boxes_of[batch[0]["image_id"]]))
                found = ([proposals.to(model.device)], {})
                model.proposal_generator.forward = lambda *args, found=found: found
                evaluator.process(batch, model(batch))
        results = evaluator.evaluate()
        return results, output / "lvis_instances_results.json"

    yield run
    DatasetCatalog.remove("budget_val")
    MetadataCatalog.remove("budget_val")


def test_a_smaller_cap_on_stored_predictions_is_what_a_run_with_it_gives(stored):
    _, path = stored(100)
    rescored = score_with_caps("budget_val", read_predictions(path), [2, 5, 20])
    for cap, result in rescored.items():
        expected, _ = stored(cap)
        assert {task: result[task] for task in ("bbox", "segm")} == expected
    assert rescored[2]["bbox"] != rescored[20]["bbox"]


def test_ap_fixed_counts_no_more_than_the_budget_and_does_not_care_about_images(stored):
    _, path = stored(100)
    predicted = read_predictions(path)
    everything = score_with_caps("budget_val", predicted, [10_000])[10_000]
    assert score_with_class_budget("budget_val", predicted, 10_000) == everything
    little = best_of_each_class(predicted, 1)
    counts = Counter(c for p in little for c in p.category_ids.tolist())
    assert set(counts.values()) == {1}
    fixed = score_with_class_budget("budget_val", predicted, 1)
    assert fixed == score_with_caps("budget_val", little, [10_000])[10_000] != everything
