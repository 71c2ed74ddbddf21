"""The cosine layers: their formula, their invariances, and what a configuration makes of them."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from tiny_model import stats_file
from torch import nn

from balms_det.annotations.class_stats import ClassStats
from balms_det.classifier import CosineConv2d, CosineLinear
from balms_det.config import add_balms_config
from balms_det.losses.criterion import build_criterion
from balms_det.modeling import LongTailPredictor
from balms_det.modeling.mask_head import LongTailMaskHead

INPUTS, OUTPUTS, T = 5, 4, 30.0


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = CosineLinear(INPUTS, OUTPUTS, temperature=T).double()
    nn.init.normal_(layer.bias)
    return layer


def test_linear_is_the_temperature_times_the_cosine(layer):
    features = torch.randn(3, INPUTS, dtype=torch.float64)
    for i, row in enumerate(layer(features).tolist()):
        for j, logit in enumerate(row):
            f, w = features[i], layer.weight[j]
            cosine = (f @ w / (f @ f).sqrt() / (w @ w).sqrt()).item()
            assert logit == pytest.approx(T * cosine + layer.bias[j].item(), rel=1e-10)


def test_lengths_do_not_matter(layer):
    features = torch.randn(3, INPUTS, dtype=torch.float64)
    before = layer(features)
    with torch.no_grad():
        layer.weight *= torch.tensor([[0.1], [1.0], [10.0], [1000.0]])
    torch.testing.assert_close(layer(7 * features), before)


def test_convolution_is_the_linear_layer_at_every_position(layer):
    convolution = CosineConv2d(INPUTS, OUTPUTS, temperature=T).double()
    convolution.load_state_dict({"weight": layer.weight[:, :, None, None], "bias": layer.bias})
    x = torch.randn(2, INPUTS, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(
        convolution(x).movedim(1, -1),
        layer(x.movedim(1, -1).reshape(-1, INPUTS)).view(2, 3, 3, OUTPUTS),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_half_precision_features_of_any_length_have_finite_logits(dtype, scale):
    layer = CosineLinear(INPUTS, OUTPUTS).to(dtype)
    features = (scale * torch.ones(2, INPUTS)).to(dtype)
    logits = layer(features)
    assert logits.isfinite().all() and logits.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_whose_squares_overflow_have_finite_gradients(dtype):
    layer = CosineLinear(INPUTS, OUTPUTS).to(dtype)
    features = torch.full((2, INPUTS), 1e4, dtype=dtype, requires_grad=True)
    layer(features).sum().backward()
    assert features.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().sum() > 0


def cfg_with(*keys):
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 6
    cfg.merge_from_list([f"MODEL.LONG_TAIL.{k}" if i % 2 == 0 else k for i, k in enumerate(keys)])
    return cfg


@pytest.mark.parametrize(
    "loss, num_logits", [("sigmoid", 7), ("softmax", 8), ("eqlv2", 8), ("seesaw", 9)]
)
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_predictor_has_the_configured_classifier(name, loss, num_logits):
    cfg = cfg_with("CLASSIFIER", name, "COSINE_TEMPERATURE", T, "LOSS.NAME", loss)
    classifier = LongTailPredictor(cfg, ShapeSpec(channels=INPUTS)).cls_score
    assert type(classifier) is {"linear": nn.Linear, "cosine": CosineLinear}[name]
    assert classifier.weight.shape == (num_logits, INPUTS)
    assert getattr(classifier, "temperature", T) == T


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_mask_head_has_the_configured_classifier(name):
    cfg = cfg_with("MASK_CLASSIFIER", name, "COSINE_TEMPERATURE", T)
    head = LongTailMaskHead(cfg, ShapeSpec(channels=INPUTS, width=4, height=4))
    assert isinstance(head.predictor, CosineConv2d) == (name == "cosine")
    assert set(head.state_dict()) >= {"predictor.weight", "predictor.bias"}


def test_ldam_margin_is_one_of_the_cosine(tmp_path):
    stats = ClassStats.load(stats_file(tmp_path, num_classes=7))
    scales = []
    for name in ("linear", "cosine"):
        cfg = cfg_with("CLASSIFIER", name, "COSINE_TEMPERATURE", T, "LOSS.NAME", "ldam")
        scales.append(build_criterion(cfg.MODEL.LONG_TAIL, 7, stats).loss._scale)
    assert scales == [1.0, T]
