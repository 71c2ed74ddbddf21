"""The LazyConfig, on a small backbone but with all of LVIS's classes."""

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, LazyConfig, get_cfg, instantiate
from detectron2.modeling import SwinTransformer
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage
from tiny_model import batch, stats_file

from balms_det.annotations.class_stats import ClassStats
from balms_det.classifier import ScaledLinear
from balms_det.config import add_balms_config, config_file
from balms_det.decouple import freeze_except
from balms_det.losses.criterion import build_criterion
from balms_det.losses.registry import LOSSES
from balms_det.modeling import LongTailMaskHead, LongTailPredictor, criterion_from_options
from balms_det.runtime.errors import InputError

NUM_CLASSES = 1203
CONFIG = Path(config_file("lazy/mask_rcnn_r50_fpn_lvis.py"))


def small(config):
    """The model's config with an R-18, 64 channels and few proposals, from scratch."""
    model = config.model
    model.backbone.bottom_up.stages.depth = 18
    model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "BN"
    del model.backbone.bottom_up.stages.stride_in_1x1
    model.backbone.out_channels = 64
    model.backbone.norm = "BN"
    model.proposal_generator.head.in_channels = 64
    model.proposal_generator.post_nms_topk = (20, 20)
    for head in (model.roi_heads.box_head, model.roi_heads.mask_head):
        head.input_shape.channels = 64
    model.roi_heads.box_head.fc_dims = [32]
    model.roi_heads.box_predictor.input_shape.channels = 32
    model.roi_heads.mask_head.conv_dims = [16, 16]
    model.roi_heads.batch_size_per_image = 32
    return config


@pytest.fixture
def config(tmp_path):
    config = small(LazyConfig.load(str(CONFIG)))
    path = stats_file(tmp_path, NUM_CLASSES)
    config.model.roi_heads.box_predictor.criterion.stats_file = str(path)
    return config


def test_a_training_step_and_inference_with_every_class_of_lvis(config):
    torch.manual_seed(0)
    model = instantiate(config.model)
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.weight.shape == (NUM_CLASSES, 32)
    assert predictor.criterion.loss.margins.shape == (NUM_CLASSES,)
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    with EventStorage():
        losses = model.train()(batch(num_classes=NUM_CLASSES))
    assert all(loss.isfinite() for loss in losses.values())
    before = predictor.cls_score.weight.clone()
    sum(losses.values()).backward()
    optimizer.step()
    assert not torch.equal(predictor.cls_score.weight, before)
    with torch.no_grad():
        outputs = model.eval()(batch())
    for output in outputs:
        assert 0 < len(output["instances"]) <= 300
        assert output["instances"].pred_classes.max() < NUM_CLASSES


def test_the_command_line_of_a_lazy_config_chooses_the_method(config):
    prefix = "model.roi_heads.box_predictor"
    overrides = ["LOSS.NAME=balanced_softmax", "COUNT_BY=images"]
    config = LazyConfig.apply_overrides(
        config, [f"{prefix}.criterion.options.{override}" for override in overrides]
    )
    predictor = instantiate(config.model.roi_heads.box_predictor)
    assert predictor.cls_score.out_features == NUM_CLASSES + 1
    assert predictor.criterion.loss.shifts.shape == (NUM_CLASSES + 1,)


def test_the_schedule_is_that_of_the_yaml_configuration():
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_file(config_file("lvis_r50_balsig.yaml"))
    lazy = LazyConfig.load(str(CONFIG))
    multiplier = instantiate(lazy.lr_multiplier)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.optimizer.lr == cfg.SOLVER.BASE_LR
    for step in cfg.SOLVER.STEPS:
        before, after = (multiplier((step + d) / cfg.SOLVER.MAX_ITER) for d in (-1, 0))
        assert before == pytest.approx(10 * after)
    assert lazy.dataloader.train.dataset.names == cfg.DATASETS.TRAIN[0]
    assert lazy.dataloader.evaluator.dataset_name == cfg.DATASETS.TEST[0]
    predictor = lazy.model.roi_heads.box_predictor
    assert predictor.num_classes == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert predictor.test_score_thresh == cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    assert predictor.test_topk_per_image == cfg.TEST.DETECTIONS_PER_IMAGE


def test_a_lazy_model_trains_in_two_stages(config):
    config.model.roi_heads.box_predictor.classifier = ScaledLinear
    model = instantiate(config.model)
    freeze_except(model, ["roi_heads.box_predictor.cls_score.scale"])
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["roi_heads.box_predictor.cls_score.scale.factor"]


def test_the_predictor_and_the_mask_head_fit_a_transformer(config):
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    model.backbone.bottom_up = LazyCall(SwinTransformer)(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, drop_path_rate=0
    )
    model.backbone.in_features = ("p0", "p1", "p2", "p3")
    predictor = config.model.roi_heads.box_predictor
    predictor.input_shape.channels = model.roi_heads.box_predictor.input_shape.channels
    model.roi_heads.num_classes = NUM_CLASSES
    model.roi_heads.box_predictor = predictor
    model.roi_heads.mask_head._target_ = LongTailMaskHead
    model = instantiate(model)
    with EventStorage():
        losses = model.train()(batch(num_images=1, num_classes=NUM_CLASSES))
    sum(losses.values()).backward()
    assert model.roi_heads.box_predictor.cls_score.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_options_give_the_criterion_that_the_configuration_node_gives(tmp_path, name):
    path = stats_file(tmp_path)
    options = {"LOSS": {"NAME": name, "MARGIN": {"TAU": 0.5}}, "COUNT_BY": "images"}
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.LONG_TAIL.LOSS.NAME", name, "MODEL.LONG_TAIL.LOSS.MARGIN.TAU", 0.5,
            "MODEL.LONG_TAIL.COUNT_BY", "images", "MODEL.LONG_TAIL.STATS_FILE", str(path),
        ]
    )  # fmt: skip
    from_node = build_criterion(cfg.MODEL.LONG_TAIL, 10, ClassStats.load(path))
    from_options = criterion_from_options(num_classes=10, stats_file=str(path), options=options)
    logits = torch.randn(7, from_node.activation.num_logits(10))
    gt_classes = torch.tensor([0, 9, 10, 10, 4, 4, 1])
    assert torch.equal(from_options(logits, gt_classes), from_node(logits, gt_classes))


def test_without_statistics_there_is_inference():
    predictor = instantiate(
        LazyCall(LongTailPredictor)(
            input_shape=8,
            box2box_transform=LazyCall(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes=4,
            criterion=LazyCall(criterion_from_options)(num_classes=4),
        )
    )
    assert predictor.cls_score.out_features == 4


@pytest.mark.parametrize(
    "options, word",
    [
        ({"LOSS": {"NAMES": "softmax"}}, "LOSS.NAMES"),
        ({"LOSS": {"MARGIN": {"TAU": "much"}}}, "much"),
        ({"LOSS": {"NAME": "balanced"}}, "balanced_sigmoid"),
    ],
)
def test_options_that_do_not_exist_are_named(options, word):
    with pytest.raises(InputError, match=word):
        criterion_from_options(num_classes=10, options=options)


def test_statistics_of_other_classes_are_refused(config, tmp_path):
    config.model.roi_heads.num_classes = 80
    with pytest.raises(InputError, match="of 1203 classes, .* 80"):
        instantiate(config.model)
