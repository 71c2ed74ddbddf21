"""The layers that give logits from features.

Each is a Linear or a Conv2d by its parameters' names and shapes, so that a checkpoint of one loads
into another.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineLinear(nn.Linear):
    """A linear layer on directions: t cos(w_j, f) + b_j (Seesaw's normalised classifier).

    Its logits do not grow with the norm of a class's weights, which is larger for frequent classes
    (arXiv:2008.10032).
    """

    def __init__(self, in_features: int, out_features: int, temperature: float = 20.0) -> None:
        """
        Args:
            in_features, out_features: as of :class:`torch.nn.Linear`.
            temperature: t, positive.
        """
        super().__init__(in_features, out_features)
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        directions = self.temperature * _unit(features)
        return F.linear(directions, _unit(self.weight), self.bias)


class CosineConv2d(nn.Conv2d):
    """The same at every position of a map: a 1 x 1 convolution (Seesaw's normalised mask head)."""

    def __init__(self, in_channels: int, out_channels: int, temperature: float = 20.0) -> None:
        """
        Args:
            in_channels, out_channels: as of :class:`torch.nn.Conv2d`.
            temperature: t, positive.
        """
        super().__init__(in_channels, out_channels, kernel_size=1)
        self.temperature = temperature
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        assert self.bias is not None
        nn.init.zeros_(self.bias)

    def normalised(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return inputs and (any of the) weights, channels in dimension 1, of the equal
        convolution."""
        return self.temperature * _unit(x), _unit(weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(*self.normalised(x, self.weight), self.bias)


class ClassScales(nn.Module):
    """One learned factor per logit, starting at one: (R, C) -> (R, C)."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(num_logits))

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.factor


class ScaledLinear(nn.Linear):
    """The classifier of LWS, learnable weight scaling (arXiv:1910.09217, section 4).

        eta_j = s_j (w_j . f + b_j),  s_j = 1 before training

    In the second stage w and b are frozen and the scales alone are learned, which is what
    ``MODEL.LONG_TAIL.DECOUPLE.TRAIN_MODULES: ["roi_heads.box_predictor.cls_score.scale"]`` says.
    The paper scales w_j; the authors' code scales the logit, hence the bias too, and so does this.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.scale = ClassScales(out_features)

    def forward(self, features: Tensor) -> Tensor:
        scaled: Tensor = self.scale(super().forward(features))
        return scaled


def _unit(vectors: Tensor) -> Tensor:
    """Return vectors along dimension 1, scaled to length one; in half precisions their norm
    overflows."""
    half = vectors.dtype in (torch.float16, torch.bfloat16)
    return F.normalize(vectors.float() if half else vectors, dim=1, eps=1e-6).to(vectors.dtype)


CLASSIFIERS: dict[str, type[nn.Linear]] = {
    "linear": nn.Linear,
    "cosine": CosineLinear,
    "lws": ScaledLinear,
}


def choose_classifier(long_tail: Any) -> Callable[[int, int], nn.Linear]:
    """Return the classifier of a MODEL.LONG_TAIL node, still to be given its inputs and outputs."""
    if long_tail.CLASSIFIER == "cosine":
        return partial(CosineLinear, temperature=long_tail.COSINE_TEMPERATURE)
    return CLASSIFIERS[long_tail.CLASSIFIER]
