"""Faster ways to run a model give the same detections and gradients, and leave it as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ROIAlign
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tiny_model import batch, tiny_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from balms_det.engine import build_long_tail_model
from balms_det.modeling import prepared_for_inference
from balms_det.modeling.fast import execution
from balms_det.modeling.fast.execution import fold_norms, speed_up_training, use_matrix_products
from balms_det.modeling.fast.roi_align import FastGradientROIAlign
from balms_det.modeling.fast.winograd import (
    trainable_winograd_conv2d,
    winograd_conv2d,
    winograd_weight,
)

SIZES = [(1, 1, 1), (2, 4, 6), (3, 7, 5), (1, 14, 15), (0, 4, 4)]


@pytest.mark.parametrize("tiles", [1, 5, 512])
@pytest.mark.parametrize("size", SIZES)
def test_winograds_convolution_is_the_direct_one(size, tiles, monkeypatch):
    monkeypatch.setattr("balms_det.modeling.fast.winograd._TILES", tiles)
    n, height, width = size
    x = torch.randn(n, 3, height, width, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    for b in (bias, None):
        actual = winograd_conv2d(x, winograd_weight(weight), b)
        torch.testing.assert_close(actual, F.conv2d(x, weight, b, padding=1), rtol=0, atol=1e-12)


def test_winograds_convolution_is_as_accurate_as_the_direct_one():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 8, 8), torch.randn(16, 256, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    direct = (F.conv2d(x, weight, padding=1) - exact).abs().max()
    assert (winograd_conv2d(x, winograd_weight(weight), None) - exact).abs().max() < 3 * direct


@pytest.mark.parametrize("tiles", [1, 5, 512])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wanted", ["x weight bias", "x weight", "x", "weight", "bias"])
def test_winograds_gradients_are_the_direct_ones(size, wanted, tiles, monkeypatch):
    monkeypatch.setattr("balms_det.modeling.fast.winograd._TILES", tiles)
    n, height, width = size
    shapes = {"x": (n, 3, height, width), "weight": (4, 3, 3, 3), "bias": (4,)}
    tensors = {
        name: torch.randn(shape, dtype=torch.float64, requires_grad=name in wanted.split())
        for name, shape in shapes.items()
    }
    x, weight, bias = tensors.values()
    upstream = torch.randn(n, 4, height, width, dtype=torch.float64)
    gradients = []
    for y in (F.conv2d(x, weight, bias, padding=1), trainable_winograd_conv2d(x, weight, bias)):
        gradients.append(
            torch.autograd.grad(y, [t for t in tensors.values() if t.requires_grad], upstream)
        )
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-12)


def test_winograds_gradients_are_as_accurate_as_the_direct_ones():
    torch.manual_seed(0)
    x = torch.randn(2, 256, 14, 14, requires_grad=True)
    weight = torch.randn(256, 256, 3, 3, requires_grad=True)
    upstream = torch.randn(2, 256, 14, 14)

    def gradients(convolve, *tensors):
        return torch.autograd.grad(convolve(*tensors, None), tensors, upstream.to(tensors[0]))

    def direct(x, weight, bias):
        return F.conv2d(x, weight, bias, padding=1)

    exact = gradients(direct, x.double(), weight.double())
    for ours, theirs, reference in zip(
        gradients(trainable_winograd_conv2d, x, weight),
        gradients(direct, x, weight),
        exact,
        strict=True,
    ):
        assert (ours - reference).abs().max() < 3 * (theirs - reference).abs().max()


def test_winograds_gradients_take_fewer_multiplications_by_the_same_factor():
    x = torch.randn(1, 16, 64, 64, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)

    def flops(convolve):
        with FlopCounterMode(display=False) as counter:
            convolve(x, weight).sum().backward()
        return counter.get_total_flops()

    direct = flops(lambda x, weight: F.conv2d(x, weight, padding=1))
    ours = flops(lambda x, weight: trainable_winograd_conv2d(x, weight, None))
    assert direct / ours == pytest.approx(36 / 16, rel=0.01)  # but for the kernels' transforms


def test_winograds_convolution_can_be_activated_in_place():
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    (actual,) = torch.autograd.grad(
        trainable_winograd_conv2d(x, weight, None).relu_().square().sum(), x
    )
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1).relu().square().sum(), x)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_winograds_convolution_has_no_second_derivative():
    x, weight = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(4, 3, 3, 3)
    y = trainable_winograd_conv2d(x, weight, None).square().sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_norms_change_nothing(norm, bias):
    layer = norm(4)
    for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(tensor, 0.5, 2)
    conv = Conv2d(3, 4, 3, bias=bias, norm=layer, activation=F.relu).double().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = conv(x)
    fold_norms(conv)
    assert conv.norm is None
    torch.testing.assert_close(conv(x), expected, rtol=1e-10, atol=1e-10)


def test_group_norms_stay():
    conv = Conv2d(3, 4, 3, norm=nn.GroupNorm(2, 4))
    fold_norms(conv)
    assert isinstance(conv.norm, nn.GroupNorm)


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 4)])
@pytest.mark.parametrize(
    "is_replaced, kernel, options",
    [
        (True, 3, {"padding": 1}),
        (True, 1, {}),
        (True, 1, {"stride": 2, "bias": False}),
        (False, 1, {"padding": 1}),
        (False, 3, {"padding": 1, "stride": 2}),
        (False, 3, {"padding": 2, "dilation": 2}),
        (False, 3, {"padding": 1, "groups": 2}),
    ],
)
def test_matrix_products_are_the_convolution(norm, is_replaced, kernel, options, monkeypatch):
    monkeypatch.setattr(execution, "_LEAST_WINOGRAD_CHANNELS", 1)
    conv = Conv2d(6, 4, kernel, norm=norm, activation=F.relu, **options).double()
    inputs = [torch.randn(n, 6, 9, 8, dtype=torch.float64) for n in (2, 0)]
    with torch.no_grad():
        expected = [conv(x) for x in inputs]
        use_matrix_products(nn.Sequential(conv))
        actual = [conv(x) for x in inputs]
    assert ("forward" in vars(conv)) == is_replaced
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def tiny(*opts):
    cfg = tiny_cfg("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, *opts)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for _ in range(3):
            # The batch norms' statistics.
            model.backbone(torch.randn(2, 3, 64, 64).to(model.device))
    return model, cfg.MODEL.LONG_TAIL.INFERENCE


def detections(model, inputs):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


KEY = "MODEL.LONG_TAIL.INFERENCE."


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ([KEY + "FAST_CONVOLUTIONS", True], 1e-5),
        ([KEY + "PRECISION", "bfloat16"], 1e-2),
        ([KEY + "FAST_CONVOLUTIONS", True, KEY + "PRECISION", "bfloat16"], 1e-2),
    ],
)
def test_detections_stay_and_so_does_the_model(options, tolerance, monkeypatch):
    monkeypatch.setattr(execution, "_LEAST_WINOGRAD_CHANNELS", 1)
    model, inference = tiny(*options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = batch()
    expected = detections(model, inputs)
    prepared = prepared_for_inference(model, inference)
    for found, reference in zip(detections(prepared, inputs), expected, strict=True):
        assert len(found) == len(reference) > 0
        torch.testing.assert_close(found.scores, reference.scores, rtol=0, atol=tolerance)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def losses_and_gradients(model):
    model.train().zero_grad()
    torch.manual_seed(1)  # which proposals are sampled
    with EventStorage():
        losses = model(batch())
    sum(losses.values()).backward()
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["LongTailROIHeads", "LongTailCascadeROIHeads"])
def test_fast_training_has_the_same_losses_and_gradients(name, monkeypatch):
    monkeypatch.setattr(execution, "_LEAST_WINOGRAD_CHANNELS", 1)
    opts = "MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True
    model, _ = tiny("MODEL.LONG_TAIL.LOSS.NAME", "sigmoid", *opts)
    expected = losses_and_gradients(model)
    fast = copy.deepcopy(model)
    speed_up_training(fast)
    replaced = [m for m in fast.modules() if isinstance(m, Conv2d) and "forward" in vars(m)]
    assert len(replaced) > 10
    assert {type(m) for m in fast.modules() if isinstance(m, ROIAlign)} == {FastGradientROIAlign}
    actual = losses_and_gradients(fast)
    for ours, theirs in zip(actual, expected, strict=True):  # losses, gradients
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert (ours[key] - value).norm() <= 1e-3 * value.norm(), key
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    "options", [[], [KEY + "FAST_CONVOLUTIONS", True], [KEY + "PRECISION", "bfloat16"]]
)
def test_a_model_that_trains_fast_is_evaluated_as_any_other(options, monkeypatch):
    monkeypatch.setattr(execution, "_LEAST_WINOGRAD_CHANNELS", 1)
    model, inference = tiny(*options)
    fast = copy.deepcopy(model)
    speed_up_training(fast)
    expected = detections(prepared_for_inference(model, inference), batch())
    for found, reference in zip(
        detections(prepared_for_inference(fast, inference), batch()), expected, strict=True
    ):
        assert torch.equal(found.scores, reference.scores)
        assert torch.equal(found.pred_boxes.tensor, reference.pred_boxes.tensor)


def test_mixed_precision_trains_as_before(monkeypatch):
    monkeypatch.setattr(execution, "_LEAST_WINOGRAD_CHANNELS", 1)
    conv = Conv2d(3, 4, 3, padding=1)
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
        speed_up_training(nn.Sequential(conv))
        assert torch.equal(conv(x), expected)
    assert not torch.equal(conv(x), expected)


@pytest.mark.parametrize("fast", [True, False])
def test_the_trainer_trains_fast_where_asked_to(fast):
    cfg = tiny_cfg("MODEL.LONG_TAIL.FAST_TRAINING", fast)
    layers = [m for m in build_long_tail_model(cfg, None).modules() if isinstance(m, ROIAlign)]
    assert all((type(layer) is FastGradientROIAlign) == fast for layer in layers)


def test_by_default_the_model_runs_as_it_is():
    model, inference = tiny()
    assert prepared_for_inference(model, inference) is model


def test_the_backbone_is_compiled_where_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: calls.append((self, kwargs)))
    model, inference = tiny(KEY + "COMPILE_BACKBONE", True)
    prepared = prepared_for_inference(model, inference)
    assert calls == [(prepared.backbone, {"dynamic": True})]


@pytest.mark.parametrize("size", [1, 3])
def test_images_of_a_batch_are_detected_as_one_by_one(size):
    model, _ = tiny()
    inputs = batch(num_images=3)
    one_by_one = [detections(model, [each])[0] for each in inputs]
    for start in range(0, 3, size):
        for found, reference in zip(
            detections(model, inputs[start : start + size]), one_by_one[start:], strict=False
        ):
            assert torch.equal(found.pred_classes, reference.pred_classes)
            torch.testing.assert_close(found.scores, reference.scores, rtol=0, atol=1e-5)
