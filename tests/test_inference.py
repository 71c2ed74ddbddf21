"""Detections are those of Detectron2's own selection, to the last bit.

Among detections with the very same score Detectron2's order is arbitrary (its last sort is not
stable), so the reference there is Detectron2 with that sort made stable.
"""

from contextlib import nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    fast_rcnn_inference_single_image,
)
from detectron2.structures import Boxes, Instances
from second_device import name_of_device
from torchvision.ops import nms

from balms_det.modeling import LongTailPredictor, criterion_from_options, inference
from balms_det.modeling.inference import PredictedBoxes, select_detections

IMAGE_SHAPE = (120, 160)


def case(num_rois=80, num_classes=40, *, class_agnostic=False, scores="distinct", seed=0):
    """Clustered boxes, some beyond the image, and scores: the arguments of the selection."""
    generator = torch.Generator().manual_seed(seed)
    num_boxes = 1 if class_agnostic else num_classes
    corner = torch.randint(-20, 130, (num_rois, 1, 2), generator=generator).float()
    jitter = 12 * torch.rand(num_rois, num_boxes, 2, generator=generator)
    size = 10 + 40 * torch.rand(num_rois, num_boxes, 2, generator=generator)
    boxes = torch.cat([corner + jitter, corner + jitter + size], dim=2).flatten(1)
    # Distinct in float32, which random numbers are not.
    count = num_rois * (num_classes + 1)
    values = (1 + torch.randperm(count, generator=generator)).view(num_rois, num_classes + 1)
    values = values / (count + 1)
    if scores == "tied":
        values = (values * 8).round() / 8
    elif scores == "equal":
        values = torch.full_like(values, 0.5)
    return boxes, values


def stable_sort():
    """Make every sort of a tensor stable."""
    sort = torch.Tensor.sort

    def stable(tensor, *args, **kwargs):
        return sort(tensor, *args, stable=True, **kwargs)

    return mock.patch.object(torch.Tensor, "sort", stable)


def assert_equal_to_detectron2(
    boxes, scores, score_thresh=0.0, nms_thresh=0.5, topk=30, ties=False
):
    boxes, scores = boxes.to(name_of_device()), scores.to(name_of_device())
    arguments = (IMAGE_SHAPE, score_thresh, nms_thresh, topk)
    with stable_sort() if ties else nullcontext():
        expected, expected_rows = fast_rcnn_inference_single_image(
            boxes.clone(), scores.clone(), *arguments
        )
    before = boxes.clone(), scores.clone()
    actual, rows = select_detections(PredictedBoxes(boxes), scores, *arguments)
    torch.testing.assert_close((boxes, scores), before, rtol=0, atol=0, equal_nan=True)
    assert actual.image_size == expected.image_size
    assert torch.equal(rows, expected_rows)
    for field in ("scores", "pred_classes"):
        assert torch.equal(actual.get(field), expected.get(field))
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    return actual


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("scores", ["distinct", "tied", "equal"])
@pytest.mark.parametrize("topk", [1, 30, 300, 5000])
@pytest.mark.parametrize("nms_thresh", [0.0, 0.5, 1.0])
def test_equal_to_detectron2(class_agnostic, scores, topk, nms_thresh):
    boxes, values = case(class_agnostic=class_agnostic, scores=scores)
    ties = scores != "distinct"
    assert_equal_to_detectron2(boxes, values, nms_thresh=nms_thresh, topk=topk, ties=ties)


@pytest.mark.parametrize("scores", ["distinct", "tied"])
@pytest.mark.parametrize("grid", [True, False])
def test_equal_where_classes_have_many_candidates(scores, grid):
    """On a grid many overlaps are at the threshold."""
    boxes, values = case(1000, 40, class_agnostic=True, scores=scores)
    boxes = boxes.round() if grid else boxes
    ties = scores != "distinct"
    assert len(assert_equal_to_detectron2(boxes, values, topk=500, ties=ties)) == 500


@pytest.mark.gpu
def test_what_the_host_cannot_decide_is_left_to_the_device(device):
    """An overlap of one half, at the threshold of one half: the kernels' rounding decides."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [20, 0, 30, 10]])
    scores = torch.tensor([0.9, 0.8, 0.7])
    exact = inference._ExactNMS(
        boxes.to(device), scores.to(device), boxes.double().numpy(), np.arange(3), 0.5
    )
    for members, expected in (([0, 1], ["cpu", device.type]), ([0, 2], ["cpu"])):
        with mock.patch.object(inference, "nms", side_effect=nms) as called:
            assert exact(np.array(members)).tolist() == members
        assert [call.args[0].device.type for call in called.call_args_list] == expected


@pytest.mark.parametrize("score_thresh", [0.0, 0.3, 0.99, 1.0])
def test_equal_at_every_score_threshold(score_thresh):
    assert_equal_to_detectron2(*case(), score_thresh=score_thresh)


def test_equal_when_nearly_everything_is_suppressed():
    """All boxes of a class are the same, so that one survives: the walk must go to the end."""
    boxes, scores = case(num_rois=200, num_classes=20)
    boxes = boxes[:1].expand(len(boxes), -1).contiguous()
    assert len(assert_equal_to_detectron2(boxes, scores, topk=100)) == 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_left_out(bad):
    boxes, scores = case()
    boxes[3, 5] = bad
    scores[10, 7] = bad
    assert_equal_to_detectron2(boxes, scores)


def test_without_rois_or_candidates_nothing_is_detected():
    boxes, scores = case()
    assert len(assert_equal_to_detectron2(boxes[:0], scores[:0])) == 0
    assert len(assert_equal_to_detectron2(boxes, torch.zeros_like(scores))) == 0


def test_a_negative_limit_keeps_every_survivor():
    boxes, scores = case()
    assert len(assert_equal_to_detectron2(boxes, scores, topk=-1)) > 1000


def test_at_lvis_size():
    boxes, scores = case(num_rois=1000, num_classes=1203, seed=3)
    assert len(assert_equal_to_detectron2(boxes, scores, score_thresh=0.9, topk=300)) == 300


def test_the_best_few_thousand_of_a_million_candidates_suffice(monkeypatch):
    """What makes it fast: suppression looks at a small multiple of what is kept."""
    looked_at = []
    class_wise_nms = inference.class_wise_nms

    def counting(boxes, *args):
        looked_at.append(len(boxes))
        return class_wise_nms(boxes, *args)

    monkeypatch.setattr(inference, "class_wise_nms", counting)
    boxes, scores = case(num_rois=500, num_classes=1203)
    select_detections(PredictedBoxes(boxes), scores, IMAGE_SHAPE, 0.0001, 0.5, 300)
    assert sum(looked_at) <= 6000


def predictor(head, class_agnostic=False, num_classes=40, **options):
    return head(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=class_agnostic,
        test_score_thresh=0.0,
        test_topk_per_image=30,
        **options,
    )


def predictions(num_rois, class_agnostic, num_classes=40):
    """Logits, deltas and proposals of one image."""
    boxes, scores = case(num_rois, num_classes, class_agnostic=True)
    deltas = torch.randn(num_rois, 4 if class_agnostic else 4 * num_classes)
    image = Instances(IMAGE_SHAPE)
    image.proposal_boxes = Boxes(boxes)
    return scores.logit(), deltas, image


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("extreme", [None, 1e4, 1e20, float("inf"), -float("inf"), float("nan")])
def test_boxes_decoded_where_looked_at_are_those_of_detectron2(class_agnostic, extreme):
    """In a batch of several images, one of them without proposals."""
    criterion = criterion_from_options(num_classes=40, options={"LOSS": {"NAME": "sigmoid"}})
    ours = predictor(LongTailPredictor, class_agnostic, criterion=criterion)
    theirs = predictor(FastRCNNOutputLayers, class_agnostic, use_sigmoid_ce=True)
    torch.manual_seed(0)
    images = [predictions(count, class_agnostic) for count in (80, 0, 45)]
    logits, deltas = (torch.cat([image[i] for image in images]) for i in (0, 1))
    if extreme is not None:
        deltas[[2, 2, 3], [0, 1, 2]] = extreme
    proposals = [image[2] for image in images]
    expected = theirs.inference((logits, deltas), proposals)
    actual = ours.inference((logits[:, :-1], deltas), proposals)
    assert [len(found) for found in actual[0]] == [30, 0, 30]
    for found, reference in zip(actual[0], expected[0], strict=True):
        assert torch.equal(found.scores, reference.scores)
        assert torch.equal(found.pred_classes, reference.pred_classes)
        assert torch.equal(found.pred_boxes.tensor, reference.pred_boxes.tensor)
    assert all(map(torch.equal, actual[1], expected[1]))


def test_only_the_boxes_of_candidates_that_are_looked_at_are_decoded():
    _, deltas, image = predictions(200, class_agnostic=False)
    _, scores = case(num_rois=200)
    decoded = []

    class Counting:
        def apply_deltas(self, deltas, boxes):
            decoded.append(deltas.numel() // 4)
            return boxes.repeat(1, deltas.shape[1] // 4)

    boxes = PredictedBoxes(deltas, image.proposal_boxes.tensor, Counting())
    select_detections(boxes, scores, IMAGE_SHAPE, 0.0, 0.5, 30)
    assert sum(decoded) < 1000 < 200 * 40


@pytest.mark.parametrize("nms_thresh", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("num_classes", [1, 3, 200])
@pytest.mark.parametrize("grid", [1.0, 0.0])
def test_suppression_is_that_of_torchvision_class_by_class(nms_thresh, num_classes, grid):
    """On a grid of whole pixels, where many overlaps are at the threshold, and off it."""
    generator = torch.Generator().manual_seed(0)
    corner = 20 * torch.rand(400, 2, generator=generator)
    boxes = torch.cat([corner, corner + 12 * torch.rand(400, 2, generator=generator)], dim=1)
    boxes = boxes.round() if grid else boxes  # with empty boxes among them
    classes = torch.randint(num_classes, (400,), generator=generator)
    scores = torch.arange(400, 0, -1).float()
    expected = torch.zeros(400, dtype=torch.bool)
    for j in range(num_classes):
        members = (classes == j).nonzero()[:, 0]
        expected[members[nms(boxes[members], scores[members], nms_thresh)]] = True

    def exact_nms(members):
        which = torch.from_numpy(members)
        return members[nms(boxes[which], scores[which], nms_thresh).numpy()]

    keep = inference.class_wise_nms(boxes.numpy(), classes.numpy(), nms_thresh, exact_nms)
    assert keep.tolist() == expected.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 100_000])
def test_the_best_are_those_of_topk(size):
    values = torch.rand(size, dtype=torch.float64)
    for count in {1, min(size, 30), size}:
        best, index = inference._best(values, count)
        assert torch.equal(best.sort().values, values.topk(count).values.sort().values)
        assert torch.equal(values[index], best)
