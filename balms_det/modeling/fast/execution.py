"""How a model is run: the same detections and gradients, computed in a faster way.

What this changes is how numbers are rounded and nothing else; it is off unless
MODEL.LONG_TAIL.INFERENCE or MODEL.LONG_TAIL.FAST_TRAINING asks for it.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.poolers import ROIPooler
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from balms_det.modeling.fast.roi_align import use_fast_gradients
from balms_det.modeling.fast.winograd import (
    trainable_winograd_conv2d,
    winograd_conv2d,
    winograd_weight,
)

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Measured: with fewer, its additions take as long as the multiplications that it spares.
_LEAST_WINOGRAD_CHANNELS = 256


def prepared_for_inference(model: nn.Module, inference: Any) -> nn.Module:
    """Return `model` in evaluation mode as a MODEL.LONG_TAIL.INFERENCE node says.

    A copy, for training may go on with the model, unless nothing changes.
    """
    dtype = PRECISIONS[inference.PRECISION]
    if not (inference.FAST_CONVOLUTIONS or inference.COMPILE_BACKBONE or dtype):
        return model
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if inference.FAST_CONVOLUTIONS:
        fold_norms(model)
        model.to(memory_format=torch.channels_last)
        # Graphics processors have libraries that do this.
        if model.device.type == "cpu" and dtype is None:
            use_matrix_products(model)
    if inference.COMPILE_BACKBONE:
        model.backbone.compile(dynamic=True)  # images differ in size
    if dtype is not None:
        model.forward = torch.autocast(model.device.type, dtype=dtype)(model.forward)
    return model


def fold_norms(model: nn.Module) -> None:
    """Multiply the normalisations that are constant in evaluation into their convolutions."""
    for conv in model.modules():
        if not isinstance(conv, Conv2d):
            continue
        norm = conv.norm
        # SyncBatchNorm differs from BatchNorm2d in training alone.
        if isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm | FrozenBatchNorm2d):
            statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            conv.norm = None


def use_matrix_products(model: nn.Module) -> None:
    """Compute convolutions as matrix products: 1 x 1, and by Winograd's algorithm 3 x 3.

    PyTorch's own convolution of 1 x 1 of a single image uses one of a processor's cores. The model
    cannot be trained any more; :func:`speed_up_training` is for that.
    """
    for conv in _convolutions(model):
        if _is_pointwise(conv):
            convolve = partial(_pointwise_conv2d, conv)
        elif _suits_winograd(conv):
            weight = winograd_weight(conv.weight)
            convolve = partial(winograd_conv2d, weight=weight, bias=conv.bias)
        else:
            continue
        # In its place, for Detectron2's modules also hold their layers in plain lists.
        conv.forward = partial(_forward, conv, convolve)


def speed_up_training(model: nn.Module) -> None:
    """Compute gradients on a CPU, in single precision, in fewer operations or on all cores.

    Convolutions of 1 x 1 are matrix products, those of 3 x 3 follow Winograd's algorithm, and the
    gradient of RoIAlign is a product with a sparse matrix. Without gradients, on other devices and
    in mixed precision the model runs as before.
    """
    for pooler in model.modules():
        if isinstance(pooler, ROIPooler):
            use_fast_gradients(pooler)
    for conv in _convolutions(model):
        if _is_pointwise(conv):
            conv.forward = partial(_training_forward, conv, partial(_pointwise_conv2d, conv))
        elif _suits_winograd(conv):
            conv.forward = partial(_training_forward, conv, partial(_winograd_conv2d, conv))


def _convolutions(model: nn.Module) -> Iterator[Conv2d]:
    for conv in model.modules():
        if isinstance(conv, Conv2d) and conv.groups == 1 and conv.dilation == (1, 1):
            yield conv


def _is_pointwise(conv: Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.padding == (0, 0)


def _suits_winograd(conv: Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == (1, 1)
        and min(conv.in_channels, conv.out_channels) >= _LEAST_WINOGRAD_CHANNELS
    )


def _training_forward(conv: Conv2d, convolve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        result: Tensor = type(conv).forward(conv, x)
        return result
    return _forward(conv, convolve, x)


def _winograd_conv2d(conv: Conv2d, x: Tensor) -> Tensor:
    return trainable_winograd_conv2d(x, conv.weight, conv.bias)


def _forward(conv: Conv2d, convolve: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = convolve(x)
    if conv.norm is not None:
        x = conv.norm(x)
    return x if conv.activation is None else conv.activation(x)


def _pointwise_conv2d(conv: Conv2d, x: Tensor) -> Tensor:
    """Return (N, C, H, W) -> (N, D, H', W'), both best with channels last in memory."""
    pixels = x[:, :, :: conv.stride[0], :: conv.stride[1]].permute(0, 2, 3, 1)
    return F.linear(pixels, conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)
