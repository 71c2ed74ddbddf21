"""Networks that give one feature vector per image, and the classifier on top of them.

Shapes and names used throughout:
    N: images. C, H, W: channels, height and width. K: classes. D: features.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from balms_det.classifier import choose_classifier
from balms_det.runtime.errors import InputError


class Classifier(nn.Module):
    """A backbone and the layer that gives class logits from its features.

    The two are separate modules, `backbone` and `classifier`, so that a second stage of training
    can freeze the one and go on with the other.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Linear,
        *,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        """
        Args:
            backbone: (N, C, H, W) float -> (N, D).
            classifier: (N, D) -> (N, K).
            pixel_mean, pixel_std: of each channel, on the scale from 0 to 255.
        """
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return (N, D) features of (N, C, H, W) uint8 images."""
        pixels = images.contiguous(memory_format=torch.channels_last) - self.pixel_mean
        features: Tensor = self.backbone(pixels.div_(self.pixel_std))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K) logits of (N, C, H, W) uint8 images."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (arXiv:1512.03385, option A).

    Where the block halves the resolution, the shortcut takes every second pixel and pads the new
    channels with zeros.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, self.stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        # In place, for these small networks wait for memory more than for arithmetic.
        out = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        if self.stride > 1:
            new = out.shape[1] - x.shape[1]
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, new // 2, new - new // 2)
            )
        return F.relu(out.add_(x), inplace=True)


class CifarResNet(nn.Sequential):
    """A ResNet for images of 32 pixels (arXiv:1512.03385, section 4.2), 6n + 2 layers deep."""

    def __init__(self, in_channels: int, blocks: int, *, stride: int = 1) -> None:
        """
        Args:
            in_channels: C.
            blocks: n, of each of the three resolutions; 5 is ResNet-32.
            stride: of the first convolution; 2 is a quarter of the work.
        """
        width = 16
        widths = [width] * (blocks + 1) + [2 * width] * blocks + [4 * width] * blocks
        super().__init__(
            nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            *(CifarBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)


class SmallConvNet(nn.Sequential):
    """Two convolutions and a hidden layer, for images of a few pixels."""

    def __init__(self, in_channels: int, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, 64),
            nn.ReLU(),
        )


def _torchvision_resnet(block: type[BasicBlock | Bottleneck], layers: list[int]) -> nn.Module:
    """Return a ResNet of torchvision without its classifier."""
    network: nn.Module = ResNet(block, layers)
    network.fc = nn.Identity()
    return network


# By name, the network for a number of input channels, and the number of its features.
BACKBONES: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "small": (lambda channels: SmallConvNet(channels), 64),
    "resnet8_cifar_half": (lambda channels: CifarResNet(channels, blocks=1, stride=2), 64),
    "resnet32_cifar": (lambda channels: CifarResNet(channels, blocks=5), 64),
    "resnet10": (lambda channels: _torchvision_resnet(BasicBlock, [1, 1, 1, 1]), 512),
    "resnet152": (lambda channels: _torchvision_resnet(Bottleneck, [3, 8, 36, 3]), 2048),
}


def build_network(cfg: Any, num_classes: int) -> Classifier:
    """Return the network that the configuration describes, randomly initialised but for its
    backbone
    where MODEL.BACKBONE.WEIGHTS names a file.

    Raises:
        InputError: the file cannot be used.
    """
    build_backbone, num_features = BACKBONES[cfg.MODEL.BACKBONE.NAME]
    backbone = build_backbone(len(cfg.MODEL.PIXEL_MEAN))
    if cfg.MODEL.BACKBONE.WEIGHTS:
        _load_backbone(backbone, cfg.MODEL.BACKBONE.WEIGHTS)
    classifier = choose_classifier(cfg.MODEL.LONG_TAIL)(num_features, num_classes)
    return Classifier(
        backbone,
        classifier,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def _load_backbone(backbone: nn.Module, path: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        # The classifier of a ResNet of torchvision is one of ImageNet's classes.
        backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    except Exception as error:  # Unpickling a file of another kind can raise anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"MODEL.BACKBONE.WEIGHTS {path}: the file cannot be used ({reason}); give the state "
            "dict of a ResNet of torchvision of the same depth, or '' to start from scratch"
        ) from error
