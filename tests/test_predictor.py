"""Box regression in training: Detectron2's loss and gradients, of the RoIs' own classes only."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_model import stats_file

from balms_det.modeling import LongTailPredictor, criterion_from_options

K, CHANNELS = 10, 6


def predictors(folder, class_agnostic, loss_type):
    """Detectron2's and ours, with the same parameters."""
    options = {
        "box2box_transform": Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        "num_classes": K,
        "cls_agnostic_bbox_reg": class_agnostic,
        "box_reg_loss_type": loss_type,
    }
    criterion = criterion_from_options(
        num_classes=K, stats_file=str(stats_file(folder)), options={"LOSS": {"NAME": "softmax"}}
    )
    theirs = FastRCNNOutputLayers(ShapeSpec(channels=CHANNELS), **options)
    ours = LongTailPredictor(ShapeSpec(channels=CHANNELS), **options, criterion=criterion)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return theirs.train(), ours.train()


def batch(counts, foreground=True):
    generator = torch.Generator().manual_seed(0)
    images = []
    for count in counts:
        image = Instances((100, 100))
        corner, size = 50 * torch.rand(2, count, 2, generator=generator)
        boxes = torch.cat([corner, corner + size + 1], dim=1)
        image.proposal_boxes = Boxes(boxes)
        image.gt_boxes = Boxes(boxes + 5 * torch.rand(count, 1, generator=generator))
        image.gt_classes = torch.randint(K + 1, (count,), generator=generator)
        if not foreground:
            image.gt_classes.fill_(K)
        images.append(image)
    features = torch.randn(sum(counts), CHANNELS, generator=generator)
    return features, images


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
@pytest.mark.parametrize("counts, foreground", [([30, 20], True), ([8, 0], True), ([9], False)])
def test_losses_and_gradients_are_detectron2s(
    tmp_path, class_agnostic, loss_type, counts, foreground
):
    torch.manual_seed(0)
    results = []
    for predictor in predictors(tmp_path, class_agnostic, loss_type):
        features, images = batch(counts, foreground)
        features.requires_grad_()
        with EventStorage():
            losses = predictor.losses(predictor(features), images)
        sum(losses.values()).backward()
        gradients = [p.grad for p in predictor.parameters()]
        assert all(gradient is not None for gradient in gradients)
        results.append((list(losses.values()), features.grad, *gradients))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_boxes_for_training_the_masks_on_are_detectron2s(tmp_path, class_agnostic):
    boxes = []
    for predictor in predictors(tmp_path, class_agnostic, "smooth_l1"):
        features, images = batch([30, 20])
        boxes.append(predictor.predict_boxes_for_gt_classes(predictor(features), images))
    torch.testing.assert_close(*boxes, rtol=1e-5, atol=1e-4)


def test_deltas_of_other_classes_are_not_computed(tmp_path):
    _, ours = predictors(tmp_path, False, "smooth_l1")
    features, _ = batch([5])
    called = []
    ours.bbox_pred.register_forward_hook(lambda *args: called.append(args))
    ours(features)
    assert not called
    ours.eval()(features)
    assert called
