"""Both ROI heads: names and shapes, a training step and inference, with little or nothing in it."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.cascade_rcnn import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_model import SIZE, batch, stats_file, tiny_cfg

from balms_det.runtime.errors import InputError

K = 10
STANDARD = ["MODEL.ROI_HEADS.NAME", "LongTailROIHeads"]
CASCADE = ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"]


def agnostic(boxes, masks):
    return [
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", boxes,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", masks,
    ]  # fmt: skip


# A cascade refines the boxes that it hands on, which Detectron2 does for all classes alike.
HEADS = {
    "standard-agnostic": STANDARD + agnostic(True, True),
    "standard-specific": STANDARD + agnostic(False, False),
    "standard-specific-boxes": STANDARD + agnostic(False, True),
    "cascade-agnostic": CASCADE + agnostic(True, True),
    "cascade-specific-masks": CASCADE + agnostic(True, False),
}


@pytest.fixture(params=HEADS)
def heads(request):
    return HEADS[request.param]


def build(folder, *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg("MODEL.LONG_TAIL.STATS_FILE", stats_file(folder), *opts))


def predictors(model):
    predictor = model.roi_heads.box_predictor
    return list(predictor) if isinstance(predictor, torch.nn.ModuleList) else [predictor]


def losses_of(model, inputs):
    with EventStorage():
        return model.train()(inputs)


def test_a_training_step_reaches_every_parameter_that_trains(tmp_path, heads):
    model = build(tmp_path, *heads)
    losses = losses_of(model, batch())
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        # The box deltas and mask logits of classes that the batch lacks get zero, not None.
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for predictor in predictors(model):
        assert predictor.cls_score.weight.grad.abs().sum() > 0


def test_a_cascade_has_the_losses_of_every_stage(tmp_path):
    losses = losses_of(build(tmp_path, *CASCADE), batch())
    assert {f"{loss}_stage{i}" for loss in ("loss_cls", "loss_box_reg") for i in range(3)} < set(
        losses
    )


def test_inference_gives_boxes_masks_and_classes_in_range(tmp_path, heads):
    model = build(tmp_path, *heads, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0).eval()
    with torch.no_grad():
        outputs = model(batch())
    for output in outputs:
        instances = output["instances"]
        assert len(instances) > 0
        assert instances.pred_masks.shape == (len(instances), SIZE, SIZE)
        assert instances.pred_classes.max() < K
        assert ((instances.scores >= 0) & (instances.scores <= 1)).all()


@pytest.mark.parametrize("loss", ["balanced_sigmoid", "balanced_softmax"])
def test_images_without_objects_train_the_background(tmp_path, heads, loss):
    model = build(tmp_path, *heads, "MODEL.LONG_TAIL.LOSS.NAME", loss)
    losses = losses_of(model, batch(objects=0))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for predictor in predictors(model):
        # A descent step lowers the logit of every class.
        assert (predictor.cls_score.bias.grad[:K] > 0).all()


def without_proposals(model):
    """Features of a batch, and images on which the RPN found nothing."""
    images = model.preprocess_image(batch())
    features = model.backbone(images.tensor)
    proposals = []
    for size in images.image_sizes:
        empty = Instances(size)
        empty.proposal_boxes = Boxes(torch.zeros(0, 4))
        empty.objectness_logits = torch.zeros(0)
        proposals.append(empty.to(model.device))
    return images, features, proposals


def test_without_proposals_nothing_is_detected(tmp_path, heads):
    model = build(tmp_path, *heads).eval()
    with torch.no_grad():
        images, features, proposals = without_proposals(model)
        detections, _ = model.roi_heads(images, features, proposals)
    assert [len(found) for found in detections] == [0, 0]
    assert detections[0].pred_masks.shape[0] == 0


def test_training_without_proposals_and_objects_backpropagates_zero(tmp_path, heads):
    model = build(tmp_path, *heads).train()
    images, features, proposals = without_proposals(model)
    targets = [x["instances"].to(model.device) for x in batch(objects=0)]
    with EventStorage():
        _, losses = model.roi_heads(images, features, proposals, targets)
    sum(losses.values()).backward()
    assert sum(losses.values()) == 0


@pytest.mark.parametrize("loss, num_logits", [("balanced_sigmoid", K), ("balanced_softmax", K + 1)])
def test_names_and_shapes_are_those_of_detectron2_and_the_release(tmp_path, loss, num_logits):
    opts = [*agnostic(False, False), "MODEL.ROI_BOX_HEAD.FC_DIM", 1024]
    model = build(tmp_path, *opts, "MODEL.LONG_TAIL.LOSS.NAME", loss)
    prefix = "roi_heads.box_predictor."
    shapes = {
        name.removeprefix(prefix): tuple(value.shape)
        for name, value in model.state_dict().items()
        if name.startswith(prefix)
    }
    assert shapes == {
        "cls_score.weight": (num_logits, 1024),
        "cls_score.bias": (num_logits,),
        "bbox_pred.weight": (4 * K, 1024),
        "bbox_pred.bias": (4 * K,),
    }


def test_everything_but_the_classifier_has_the_names_and_shapes_of_detectron2(tmp_path):
    for ours, theirs in [
        (STANDARD, ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]),
        (CASCADE, ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"]),
    ]:
        shapes, stock = (
            {
                name: value.shape
                for name, value in build(tmp_path, *opts).state_dict().items()
                if "cls_score" not in name
            }
            for opts in (ours, theirs)
        )
        assert shapes == stock


@pytest.mark.parametrize("opts", [STANDARD, CASCADE], ids=["standard", "cascade"])
def test_a_sigmoid_classifier_starts_at_its_prior_in_every_stage(tmp_path, opts):
    model = build(tmp_path, *opts, "MODEL.LONG_TAIL.LOSS.PRIOR_PROB", 0.02)
    for predictor in predictors(model):
        start = predictor.cls_score.bias.sigmoid().cpu()
        torch.testing.assert_close(start, torch.full((K,), 0.02))


def test_each_cascade_stage_regresses_in_units_of_its_own(tmp_path):
    weights = [p.box2box_transform.weights for p in predictors(build(tmp_path, *CASCADE))]
    assert len(set(weights)) == 3


@pytest.mark.parametrize("num_classes", [K, 300])  # few candidates, and many
def test_a_cascade_selects_what_detectron2_selects(tmp_path, num_classes):
    opts = [*CASCADE, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 30]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", num_classes]
    torch.manual_seed(0)
    stats = stats_file(tmp_path, num_classes)
    model = build_model(tiny_cfg("MODEL.LONG_TAIL.STATS_FILE", stats, *opts)).eval()
    with torch.no_grad():
        images = model.preprocess_image(batch())
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        expected = CascadeROIHeads._forward_box(model.roi_heads, features, proposals)
        actual = model.roi_heads._forward_box(features, proposals)
    for found, reference in zip(actual, expected, strict=True):
        assert len(found) == len(reference) == 30
        assert torch.equal(found.scores, reference.scores)
        assert torch.equal(found.pred_classes, reference.pred_classes)
        assert torch.equal(found.pred_boxes.tensor, reference.pred_boxes.tensor)


def test_statistics_of_another_number_of_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="of 10 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 12"):
        build(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 12)
